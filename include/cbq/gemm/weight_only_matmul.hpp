// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T with floating-point activations and packed weights (schemes w<bits>a16).
//
//   up to 16 tokens   x86: the activations become 24-bit fixed-point numbers (fixed_point_row.hpp) and multiply codes
//                     that are decoded in registers; packed weights are read once, one token waits for memory alone.
//                     |error| < 2^-22.9 * sum over blocks of 32 inputs of (largest |x| * sum |w|), and rounding of one
//                     sum per block, which for like magnitudes is less than what float products lose
//                     Arm, up to 4 tokens: products of floats with codes that are decoded in registers
//   more              panels of 256 inputs are decoded into the float matmul, which spreads the cost of decoding over
//                     128 tokens: results are those of float_matmul() on the dequantized weights
//
// Activations with NaN or infinity, and instruction sets without kernels for few tokens, take the last way. Allocates
// nothing; fixed point takes 64 KiB of the caller's stack, and 224 KiB with more than 18,720 inputs. Results are the
// same bits for any executor.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_matmul.hpp>
#include <cbq/gemm/matmul.hpp>
#include <cbq/gemm/packed_weights.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Packed weights as the right-hand side of the float matmul (see PanelSource), whatever their scheme.
struct DecodedPanels {
  PackedMatrix weights = {};
  DecodeKernel decode = nullptr;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

/// The panels of `weights`, decoded by the kernel for `isa`, which the machine has.
template <class Kernels = RegionKernels, Scheme S>
[[nodiscard]] DecodedPanels decoded_panels(const PackedWeightsView<S>& weights, Isa isa) noexcept {
  return {.weights = weights,
          .decode = Kernels::template decode_panel<S.weight.bits, S.weight.zero>(isa),
          .outputs = weights.layout.outputs,
          .inputs = weights.layout.inputs};
}

/// Inputs of one panel, decoded into `scratch`; block.first is a multiple of 32.
[[nodiscard]] inline const float* float_panel(const DecodedPanels& source, const PanelBlock& block, float* scratch,
                                              Isa) noexcept {
  DecodeJob job;
  job.panel = source.weights.data + block.panel * source.weights.layout.panel_bytes;
  job.header_bytes = source.weights.layout.header_bytes;
  job.group_bytes = source.weights.layout.group_bytes;
  job.blocks_per_group = source.weights.layout.blocks_per_group;
  job.first_block = block.first / block_inputs;
  job.inputs = block.count;
  job.multiplier = source.weights.multiplier;
  job.out = scratch;
  source.decode(job);
  return scratch;
}

static_assert(PanelSource<DecodedPanels>);

namespace driver {

/// Whether floating-point activations fit the weights and both can be read.
template <Element X>
[[nodiscard]] Status check_operands(const MatrixView<const X>& x, const PackedMatrix& weights) noexcept {
  if (x.columns != weights.layout.inputs || (x.rows > 1 && x.stride < x.columns)) {
    return Error{Errc::bad_shape, "[cbq] matmul: activations and weights have different inputs", "x",
                 ErrorText(x.rows) << " x " << x.columns << ", stride " << x.stride,
                 ErrorText("tokens x ") << weights.layout.inputs};
  }
  const bool no_x = x.data == nullptr && x.rows != 0 && x.columns != 0;
  if (no_x || (weights.data == nullptr && packed_bytes(weights.layout) != 0)) {
    return Error{Errc::bad_argument, "[cbq] matmul: memory is null", no_x ? "x" : "weights"};
  }
  return {};
}

/// All tokens (at most 4) times the panels of outputs [first, first + count), count at most 32.
template <class E, OutputElement T>
void multiply_few(WeightOnlyKernel kernel, const MatrixView<const float>& x, const PackedMatrix& weights,
                  OutputRange range, const Output<E, T>& result) {
  for (std::size_t inside = 0; inside < range.count; inside += panel_outputs) {
    const std::size_t output = range.first + inside;
    const std::size_t count = range.count - inside < panel_outputs ? range.count - inside : panel_outputs;
    float sums[weight_only_rows * panel_outputs];
    WeightOnlyTile tile;
    tile.panel = weights.data + output / panel_outputs * weights.layout.panel_bytes;
    tile.header_bytes = weights.layout.header_bytes;
    tile.group_bytes = weights.layout.group_bytes;
    tile.groups = weights.layout.groups;
    tile.blocks_per_group = weights.layout.blocks_per_group;
    tile.multiplier = weights.multiplier;
    tile.x = x.data;
    tile.x_stride = x.stride;
    tile.inputs = x.columns;
    tile.rows = x.rows;
    tile.out = sums;
    tile.out_stride = panel_outputs;
    kernel(tile);
    store_patch(sums, panel_outputs, result, {.row = 0, .column = output, .rows = x.rows, .columns = count});
  }
}

/// Tokens [first, first + count) of x in fixed point; false where a value is not finite.
[[nodiscard]] inline bool convert_tokens(const WeightOnlyKernels& kernels, const MatrixView<const float>& x,
                                         std::size_t first, std::size_t count, FixedBlock* blocks) noexcept {
  bool finite = true;
  for (std::size_t r = 0; r < count; ++r) {
    finite = kernels.to_fixed_point({.values = row(x, first + r),
                                     .inputs = x.columns,
                                     .zero_factor = kernels.zero_factor,
                                     .blocks = blocks + r * divide_up(x.columns, block_inputs)}) &&
             finite;
  }
  return finite;
}

/// Tokens [first, first + tile.rows), which tile.x holds, times the panels of at most 32 outputs.
template <class E, OutputElement T>
void multiply_fixed_point(const WeightOnlyKernels& kernels, FixedPointTile tile, std::size_t first,
                          const PackedMatrix& weights, OutputRange range, const Output<E, T>& result) noexcept {
  float sums[fixed_point_rows * panel_outputs];
  tile.header_bytes = weights.layout.header_bytes;
  tile.group_bytes = weights.layout.group_bytes;
  tile.groups = weights.layout.groups;
  tile.blocks_per_group = weights.layout.blocks_per_group;
  tile.blocks = weights.layout.blocks;
  tile.multiplier = weights.multiplier;
  tile.out = sums;
  for (std::size_t inside = 0; inside < range.count; inside += panel_outputs) {
    const std::size_t output = range.first + inside;
    const std::size_t count = range.count - inside < panel_outputs ? range.count - inside : panel_outputs;
    tile.panel = weights.data + output / panel_outputs * weights.layout.panel_bytes;
    kernels.fixed_point(tile);
    store_patch(sums, panel_outputs, result, {.row = first, .column = output, .rows = tile.rows, .columns = count});
  }
}

/// Calls task(first, outputs) for even pieces of at most 32 outputs.
template <class Executor, class Task>
void for_each_strip(const Executor& executor, OutputRange range, const Task& task) {
  executor.for_each_index(divide_up(range.count, strip_outputs), [&](std::size_t piece) {
    const std::size_t inside = piece * strip_outputs;
    const std::size_t count = range.count - inside < strip_outputs ? range.count - inside : strip_outputs;
    task(OutputRange{range.first + inside, count});
  });
}

/// Calls task with an array of FixedBlock that lives on the stack, and is not inlined, so that nobody else pays for it.
template <std::size_t Blocks, class Task>
[[gnu::noinline]] bool with_fixed_blocks(const Task& task) {
  FixedBlock blocks[Blocks];
  return task(blocks, Blocks);
}

inline constexpr std::size_t few_fixed_blocks = 585;  ///< 64 KiB
inline constexpr std::size_t most_fixed_blocks = 2048;

/// At most 16 tokens in fixed point, as many at a time as fit the stack. False, and nothing written, where an
/// activation is not finite or one token does not fit. X: rows that convert_tokens() takes.
template <class X, class Post, OutputElement T, class E>
[[nodiscard]] bool multiply_in_fixed_point(const WeightOnlyKernels& kernels, const X& x, const PackedMatrix& weights,
                                           OutputRange range, const Output<Post, T>& result, const E& executor) {
  const std::size_t row_blocks = weights.layout.blocks;
  const auto multiply = [&](FixedBlock* blocks, std::size_t capacity) {
    const std::size_t fitting = row_blocks == 0 ? x.rows : capacity / row_blocks;
    const std::size_t step = fitting < x.rows ? fitting : x.rows;
    // All of them before the first result: the epilogue may read what results overwrite.
    for (std::size_t first = 0; first < x.rows; first += step) {
      if (!convert_tokens(kernels, x, first, x.rows - first < step ? x.rows - first : step, blocks)) return false;
    }
    for (std::size_t first = 0; first < x.rows; first += step) {
      const std::size_t rows = x.rows - first < step ? x.rows - first : step;
      if (step < x.rows && !convert_tokens(kernels, x, first, rows, blocks)) return false;
      FixedPointTile tile;
      tile.x = blocks;
      tile.rows = rows;
      for_each_strip(executor, range,
                     [&](OutputRange strip) { multiply_fixed_point(kernels, tile, first, weights, strip, result); });
    }
    return true;
  };
  if (row_blocks <= few_fixed_blocks) return with_fixed_blocks<few_fixed_blocks>(multiply);
  return row_blocks <= most_fixed_blocks && with_fixed_blocks<most_fixed_blocks>(multiply);
}

/// y = x W^T once nothing depends on the scheme any more.
template <class Post, class E, OutputElement T>
[[nodiscard]] Status multiply_decoded(const WeightOnlyKernels& few, const MatrixView<const float>& x,
                                      const DecodedPanels& weights, OutputRange wanted, const MatrixView<T>& y,
                                      const Post& epilogue, const E& executor, Isa isa) {
  if (const Status fit = check_operands(x, weights.weights); !fit) return fit;
  if (const Status fits = check_result(y, x.rows, weights.outputs); !fits) return fits;
  const Result<OutputRange> range = resolve(wanted, weights.outputs);
  if (!range) return range.error();
  if (const Status fits = check_epilogue(epilogue, y.rows, range->first + range->count); !fits) return fits;
  if (x.rows == 0) return {};
  const Output<Post, T> result = output(y, epilogue, isa);
  if (few.fixed_point != nullptr && x.rows <= fixed_point_rows &&
      multiply_in_fixed_point(few, x, weights.weights, *range, result, executor)) {
    return {};
  }
  if (few.floats != nullptr && x.rows <= weight_only_rows) {
    for_each_strip(executor, *range,
                   [&](OutputRange strip) { multiply_few(few.floats, x, weights.weights, strip, result); });
    return {};
  }
  const FloatMatmulOptions<E> options{.executor = executor, .columns = *range, .cap = isa};
  return float_matmul(x, weights, y, epilogue, options);
}

}  // namespace driver

/// Outputs `range` of y = x W^T followed by the epilogue, for schemes with floating-point activations. x: M x K; y: M x
/// N float, half, bfloat16 or int8, its other columns are left alone. Errors: bad_shape, bad_argument (null memory, a
/// range that does not start at a multiple of 16 or leaves y).
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
  requires(S.activation.bits == 16)
[[nodiscard]] Status matmul_outputs(const MatrixView<const float>& x, const PackedWeightsView<S>& weights,
                                    OutputRange range, const MatrixView<T>& y, const Post& epilogue = {},
                                    const E& executor = {}, Isa cap = detect()) {
  const Isa isa = capped(cap);
  return driver::multiply_decoded(Kernels::template weight_only_tile<S.weight.bits, S.weight.zero>(isa), x,
                                  decoded_panels<Kernels>(weights, isa), range, y, epilogue, executor, isa);
}

/// y = x W^T followed by the epilogue, for schemes with floating-point activations. x: M x K; y: M x N, fully written.
/// Errors: bad_shape, bad_argument (null memory).
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
  requires(S.activation.bits == 16)
[[nodiscard]] Status matmul(const MatrixView<const float>& x, const PackedWeightsView<S>& weights,
                            const MatrixView<T>& y, const Post& epilogue = {}, const E& executor = {},
                            Isa cap = detect()) {
  return matmul_outputs<S, Post, Kernels, E, T>(x, weights, OutputRange{}, y, epilogue, executor, cap);
}

}  // namespace CBQ_ABI
}  // namespace cbq
