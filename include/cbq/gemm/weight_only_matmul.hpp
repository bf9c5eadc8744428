// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T with floating-point activations and packed weights (schemes w<bits>a16). Up to 4 tokens multiply while the
// codes are decoded in registers, so packed weights are read once and memory bandwidth is the limit; more tokens decode
// panels of 256 inputs into the float matmul, which spreads the cost of decoding over 128 tokens. Allocates nothing.
// Results are the same bits for any executor; with more than 4 tokens they are those of float_matmul() on the
// dequantized weights.

#include <cstddef>

#include <cbq/gemm/float_matmul.hpp>
#include <cbq/gemm/matmul.hpp>
#include <cbq/gemm/packed_weights.hpp>

namespace cbq {

/// Packed weights as the right-hand side of the float matmul (see PanelSource).
template <Scheme S, class Kernels>
struct DecodedPanels {
  PackedWeightsView<S> weights = {};
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

inline namespace CBQ_ABI {

/// Inputs of one panel, decoded into `scratch`; block.first is a multiple of 32.
template <Scheme S, class Kernels>
[[nodiscard]] const float* float_panel(const DecodedPanels<S, Kernels>& source, const PanelBlock& block, float* scratch,
                                       Isa isa) noexcept {
  const PackedLayout& layout = source.weights.layout;
  DecodeJob job;
  job.panel = source.weights.data + block.panel * layout.panel_bytes;
  job.header_bytes = layout.header_bytes;
  job.group_bytes = layout.group_bytes;
  job.blocks_per_group = layout.blocks_per_group;
  job.first_block = block.first / block_inputs;
  job.inputs = block.count;
  job.multiplier = source.weights.multiplier;
  job.out = scratch;
  Kernels::template decode_panel<S.weight.bits, S.weight.zero>(isa)(job);
  return scratch;
}

namespace driver {

/// All tokens (at most 4) times the panels of outputs [first, first + count), count at most 32.
template <Scheme S, class E>
void multiply_few(WeightOnlyKernel kernel, const MatrixView<const float>& x, const PackedWeightsView<S>& weights,
                  OutputRange range, const MatrixView<float>& y, const E& epilogue) {
  const PackedLayout& layout = weights.layout;
  for (std::size_t inside = 0; inside < range.count; inside += panel_outputs) {
    const std::size_t output = range.first + inside;
    const std::size_t count = range.count - inside < panel_outputs ? range.count - inside : panel_outputs;
    float sums[weight_only_rows * panel_outputs];
    WeightOnlyTile tile;
    tile.panel = weights.data + output / panel_outputs * layout.panel_bytes;
    tile.header_bytes = layout.header_bytes;
    tile.group_bytes = layout.group_bytes;
    tile.groups = layout.groups;
    tile.blocks_per_group = layout.blocks_per_group;
    tile.multiplier = weights.multiplier;
    tile.x = x.data;
    tile.x_stride = x.stride;
    tile.inputs = x.columns;
    tile.rows = x.rows;
    tile.out = sums;
    tile.out_stride = panel_outputs;
    kernel(tile);
    for (std::size_t r = 0; r < x.rows; ++r) {
      for (std::size_t c = 0; c < count; ++c)
        row(y, r)[output + c] = epilogue(sums[r * panel_outputs + c], r, output + c);
    }
  }
}

}  // namespace driver

/// Outputs `range` of y = x W^T followed by the epilogue, for schemes with floating-point activations. x: M x K; y: M x
/// N, its other columns are left alone. Errors: bad_shape, bad_argument (a range that does not start at a multiple of
/// 16).
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor>
  requires(S.activation.bits == 16)
[[nodiscard]] Status matmul_outputs(const MatrixView<const float>& x, const PackedWeightsView<S>& weights,
                                    OutputRange range, const MatrixView<float>& y, const Post& epilogue = {},
                                    const E& executor = {}, Isa cap = detect()) {
  const WeightOnlyKernel kernel = Kernels::template weight_only_tile<S.weight.bits, S.weight.zero>(capped(cap));
  if (x.rows > weight_only_rows || kernel == nullptr) {
    const DecodedPanels<S, Kernels> source{weights, weights.layout.outputs, weights.layout.inputs};
    const FloatMatmulOptions<E> options{.executor = executor, .columns = {range.first, range.count}, .cap = cap};
    return float_matmul(x, source, y, epilogue, options);
  }
  if (const Status shapes = driver::check_shapes({x.rows, x.columns}, weights.layout, range, y); !shapes) return shapes;
  const std::size_t pieces = divide_up(range.count, driver::piece_outputs);
  executor.for_each_index(pieces, [&](std::size_t piece) {
    const std::size_t inside = piece * driver::piece_outputs;
    const std::size_t count =
        range.count - inside < driver::piece_outputs ? range.count - inside : driver::piece_outputs;
    driver::multiply_few(kernel, x, weights, {range.first + inside, count}, y, epilogue);
  });
  return {};
}

/// y = x W^T followed by the epilogue, for schemes with floating-point activations. x: M x K; y: M x N, fully written.
/// Errors: bad_shape.
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor>
  requires(S.activation.bits == 16)
[[nodiscard]] Status matmul(const MatrixView<const float>& x, const PackedWeightsView<S>& weights,
                            const MatrixView<float>& y, const Post& epilogue = {}, const E& executor = {},
                            Isa cap = detect()) {
  return matmul_outputs<S, Post, Kernels, E>(x, weights, {0, weights.layout.outputs}, y, epilogue, executor, cap);
}

}  // namespace CBQ_ABI
}  // namespace cbq
