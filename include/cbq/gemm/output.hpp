// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where results go: ranges of outputs, element types, and the way of a finished patch through its epilogue. Kernels
// produce floats; they pass the epilogue and are rounded once to the result's type while the patch is in the L1 cache.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cbq/gemm/epilogue.hpp>
#include <cbq/gemm/output_kernels.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {

/// Outputs [first, first + count) of a matmul, for hosts that cut the work themselves. `first` is a multiple of 16. By
/// default all.
struct OutputRange {
  static constexpr std::size_t rest = static_cast<std::size_t>(-1);
  std::size_t first = 0;
  std::size_t count = rest;  ///< or `rest`: up to the last output
};

/// Elements of a result: float, half and bfloat16 are rounded to nearest even; int8 is also clamped to [-127, 127] and
/// wants an epilogue that scales, RequantizeInt8.
template <class T>
concept OutputElement =
    std::same_as<T, float> || std::same_as<T, half> || std::same_as<T, bfloat16> || std::same_as<T, std::int8_t>;

inline namespace CBQ_ABI {
namespace driver {

/// Rows and columns of a part of the result.
struct Patch {
  std::size_t row = 0;
  std::size_t column = 0;
  std::size_t rows = 0;
  std::size_t columns = 0;
};

/// A result, what happens to it, and the kernel that does it.
template <class E, OutputElement T>
struct Output {
  MatrixView<T> y = {};
  E epilogue = {};
  OutputKernel<E, T> store = nullptr;
  std::size_t epilogue_row = 0;  ///< what the epilogue is told for the first row of y
};

template <class E, OutputElement T>
[[nodiscard]] Output<E, T> output(const MatrixView<T>& y, const E& epilogue, Isa isa) noexcept {
  return {.y = y, .epilogue = epilogue, .store = output_kernel<E, T>(isa)};
}

/// `range` with its count filled in. Errc::bad_argument where it leaves the `outputs` outputs.
[[nodiscard]] inline Result<OutputRange> resolve(const OutputRange& range, std::size_t outputs) noexcept {
  const bool starts_inside = range.first % panel_outputs == 0 && range.first <= outputs;
  if (starts_inside && range.count == OutputRange::rest) return OutputRange{range.first, outputs - range.first};
  if (starts_inside && range.count <= outputs - range.first) return range;
  return Error{Errc::bad_argument, "[cbq] matmul: a range of outputs starts at a multiple of 16 and ends inside y",
               "range", ErrorText(range.first) << " + " << range.count, outputs};
}

/// Whether y is a result of rows x columns that can be written.
template <class T>
[[nodiscard]] Status check_result(const MatrixView<T>& y, std::size_t rows, std::size_t columns) noexcept {
  if (y.rows != rows || y.columns != columns || (rows > 1 && y.stride < columns)) {
    return Error{Errc::bad_shape, "[cbq] matmul: the result must be tokens x outputs", "y",
                 ErrorText(y.rows) << " x " << y.columns << ", stride " << y.stride,
                 ErrorText(rows) << " x " << columns};
  }
  if (y.data == nullptr && rows != 0 && columns != 0) {
    return Error{Errc::bad_argument, "[cbq] matmul: the result's memory is null", "y"};
  }
  return {};
}

/// Whether kernels may write a patch straight into the result: whole panels of floats that nothing else happens to.
template <class E, class T>
[[nodiscard]] constexpr bool stores_directly(std::size_t columns) noexcept {
  return std::is_same_v<E, NoEpilogue> && std::is_same_v<T, float> && columns % panel_outputs == 0;
}

/// Asks for the memory that store_patch() reads and writes while the patch is still to be computed: its rows lie far
/// apart.
template <class E, OutputElement T>
void prefetch_patch(const Output<E, T>& output, const Patch& patch) noexcept {
  constexpr std::size_t line = 64 / sizeof(T);
  for (std::size_t r = patch.row; r < patch.row + patch.rows; ++r) {
    prefetch_epilogue(output.epilogue, output.epilogue_row + r, patch.column);
    for (std::size_t c = 0; c < patch.columns; c += line) __builtin_prefetch(row(output.y, r) + patch.column + c, 1, 2);
  }
}

/// Writes a patch of `sums` (row stride `stride`) to the result.
template <class E, OutputElement T>
void store_patch(const float* sums, std::size_t stride, const Output<E, T>& output, const Patch& patch) noexcept {
  output.store({.sums = sums,
                .stride = stride,
                .epilogue = &output.epilogue,
                .row = output.epilogue_row + patch.row,
                .column = patch.column,
                .to = row(output.y, patch.row) + patch.column,
                .to_stride = output.y.stride,
                .rows = patch.rows,
                .columns = patch.columns});
}

}  // namespace driver
}  // namespace CBQ_ABI
}  // namespace cbq
