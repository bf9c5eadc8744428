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

/// All tokens (at most 4) times the panels of outputs [first, first + count), count at most 32.
template <class E>
void multiply_few(WeightOnlyKernel kernel, const MatrixView<const float>& x, const PackedMatrix& weights,
                  OutputRange range, const MatrixView<float>& y, const E& epilogue) {
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
    for (std::size_t r = 0; r < x.rows; ++r) {
      for (std::size_t c = 0; c < count; ++c)
        row(y, r)[output + c] = epilogue(sums[r * panel_outputs + c], r, output + c);
    }
  }
}

/// y = x W^T once nothing depends on the scheme any more; `few` is null where panels are decoded for any number of
/// tokens.
template <class Post, class E>
[[nodiscard]] Status multiply_decoded(WeightOnlyKernel few, const MatrixView<const float>& x,
                                      const DecodedPanels& weights, OutputRange range, const MatrixView<float>& y,
                                      const Post& epilogue, const E& executor, Isa isa) {
  if (const Status shapes = check_shapes({x.rows, x.columns}, weights.weights.layout, range, y); !shapes) return shapes;
  if (x.rows > weight_only_rows || few == nullptr) {
    const FloatMatmulOptions<E> options{.executor = executor, .columns = {range.first, range.count}, .cap = isa};
    return float_matmul(x, weights, y, epilogue, options);
  }
  executor.for_each_index(divide_up(range.count, piece_outputs), [&](std::size_t piece) {
    const std::size_t inside = piece * piece_outputs;
    const std::size_t count = range.count - inside < piece_outputs ? range.count - inside : piece_outputs;
    multiply_few(few, x, weights.weights, {range.first + inside, count}, y, epilogue);
  });
  return {};
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
  const Isa isa = capped(cap);
  return driver::multiply_decoded(Kernels::template weight_only_tile<S.weight.bits, S.weight.zero>(isa), x,
                                  decoded_panels<Kernels>(weights, isa), range, y, epilogue, executor, isa);
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
