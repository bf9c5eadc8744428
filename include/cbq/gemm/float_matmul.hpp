// SPDX-License-Identifier: Apache-2.0
#pragma once

// C = epilogue([C +] A * B) in float, for right-hand sides that come as panels (<cbq/gemm/float_panel_sources.hpp>):
// packed dense weights, weights decoded on the fly, unpacked matrices as B or B^T; and A^T * B for backward passes.
// Dispatched to the CPU's instructions from any build; allocates nothing; a task uses up to 50 KiB of stack.
//
// Work is cut by shape alone into row blocks of at most 128 rows and contiguous column chunks. In a chunk, strips of
// one or two panels go through all rows of the block while they are hot, so weights are read from memory once per 128
// rows; with up to 4 rows (8 for half and bfloat16) each panel is read once in one sequential stream. With more than 4
// rows the products of one element are added in the order of the inputs; with up to 4 they are dealt out to a fixed
// number of sums. Either way the bits of a result depend on A's number of rows (up to 4 or more), on the instruction
// set and on nothing else: not on the executor, not on column ranges.

#include <cstddef>
#include <span>
#include <type_traits>

#include <cbq/core/executor.hpp>
#include <cbq/gemm/float_driver.hpp>
#include <cbq/gemm/float_panel_sources.hpp>
#include <cbq/gemm/output.hpp>

namespace cbq {

inline namespace CBQ_ABI {

/// How and where a float matmul runs. Executors are handles: cheap to copy.
template <Executor X = SerialExecutor>
struct FloatMatmulOptions {
  X executor = {};
  OutputRange columns = {};
  Accumulate accumulate = Accumulate::overwrite;
  Isa cap = Isa::avx512_vnni;       ///< highest instruction set to use
  std::span<float> workspace = {};  ///< only for float_matmul_transposed()
};

/// C [M x N] = epilogue(A [M x K] * B), or with Accumulate::add epilogue(C + A * B); columns outside options.columns
/// are left alone. C is float, half, bfloat16 or int8, rounded once; it must not overlap A or B; the epilogue may read
/// the element of C that it replaces. Errors: Errc::bad_shape; Errc::bad_argument for null memory, for a range that
/// does not start at a multiple of 16 or leaves C, and for adding to int8.
///
///   float_matmul(x, panels.view(), y);                                  // y = x W^T
///   float_matmul(q, transposed(k), scores, Scale{s}, {.cap = Isa::avx2});
template <PanelSource B, Epilogue E = NoEpilogue, Executor X = SerialExecutor, OutputElement T = float>
[[nodiscard]] Status float_matmul(const MatrixView<const float>& a, const B& b, const MatrixView<T>& c,
                                  const E& epilogue = {}, const FloatMatmulOptions<X>& options = {}) {
  const std::size_t outputs = b.outputs;
  if (a.columns != b.inputs || c.rows != a.rows || c.columns != outputs) {
    return Error{Errc::bad_shape, "[cbq] float_matmul: A is M x K, B has N outputs of K inputs, C is M x N", "",
                 ErrorText(a.rows) << " x " << a.columns << ", " << outputs << " of " << b.inputs << ", " << c.rows
                                   << " x " << c.columns};
  }
  if (a.rows > 1 && (a.stride < a.columns || c.stride < c.columns)) {
    return Error{Errc::bad_shape, "[cbq] float_matmul: a stride is shorter than a row"};
  }
  const bool reads = a.rows != 0 && a.columns != 0;
  const bool writes = a.rows != 0 && outputs != 0;
  if ((reads && a.data == nullptr) || (writes && c.data == nullptr)) {
    return Error{Errc::bad_argument, "[cbq] float_matmul: memory is null", reads && a.data == nullptr ? "A" : "C"};
  }
  if (std::is_same_v<T, std::int8_t> && options.accumulate == Accumulate::add) {
    return Error{Errc::bad_argument, "[cbq] float_matmul: products cannot be added to int8"};
  }
  const Result<OutputRange> range = driver::resolve(options.columns, outputs);
  if (!range) return range.error();
  if (const Status fits = check_epilogue(epilogue, c.rows, range->first + range->count); !fits) return fits;
  if (a.rows == 0 || range->count == 0) return {};
  const Isa isa = capped(options.cap);
  const float_driver::Multiplication<B, E, T> work(a, b, c, epilogue, {.accumulate = options.accumulate, .isa = isa});
  const float_driver::Cut cut =
      float_driver::cut_work({.rows = a.rows,
                              .inputs = a.columns,
                              .range = *range,
                              .strip_panels = float_driver::is_narrow(work) ? 1 : work.tall.panels});
  options.executor.for_each_index(cut.row_blocks * cut.chunks,
                                  [&](std::size_t task) { float_driver::run_task(work, cut, task); });
  return {};
}

/// Floats of workspace that float_matmul_transposed() needs for a result of `rows` rows summed over `inputs` inputs.
[[nodiscard]] constexpr Result<std::size_t> float_matmul_transposed_workspace(std::size_t rows,
                                                                              std::size_t inputs) noexcept {
  const Result<std::size_t> padded = checked_sum(inputs, 2 * float_panel_width);
  if (!padded) return padded.error();
  return checked_product(rows, *padded);
}

/// C [M x N] = epilogue(A^T * B) for A stored as [K x M], as in the gradient of weights; otherwise as float_matmul(). A
/// is transposed into options.workspace first. Errors: those of float_matmul(), and Errc::bad_argument for a short
/// workspace.
template <PanelSource B, Epilogue E = NoEpilogue, Executor X = SerialExecutor, OutputElement T = float>
[[nodiscard]] Status float_matmul_transposed(const MatrixView<const float>& a, const B& b, const MatrixView<T>& c,
                                             const E& epilogue, const FloatMatmulOptions<X>& options) {
  const Result<std::size_t> needed = float_matmul_transposed_workspace(a.columns, a.rows);
  if (!needed) return needed.error();
  if (options.workspace.size() < *needed) {
    return Error{Errc::bad_argument, "[cbq] float_matmul_transposed: too little workspace", "",
                 options.workspace.size(), *needed};
  }
  if (a.rows > 1 && a.stride < a.columns) {
    return Error{Errc::bad_shape, "[cbq] float_matmul_transposed: a stride is shorter than a row"};
  }
  if (a.data == nullptr && a.rows != 0 && a.columns != 0) {
    return Error{Errc::bad_argument, "[cbq] float_matmul_transposed: memory is null", "A"};
  }
  // An odd number of cache lines per row keeps the rows of a tile in different sets of L1.
  const std::size_t stride = divide_up(a.rows, float_panel_width) / 2 * 2 * float_panel_width + float_panel_width;
  const MatrixView<float> rows{options.workspace.data(), a.columns, a.rows, stride};
  const Isa isa = capped(options.cap);
  options.executor.for_each_index(divide_up(a.columns, float_panel_width),
                                  [&](std::size_t group) { float_driver::transpose_rows(a, rows, group, isa); });
  return float_matmul(as_const(rows), b, c, epilogue, options);
}

}  // namespace CBQ_ABI
}  // namespace cbq
