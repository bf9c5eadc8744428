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

/// Whether float activations fit the weights and both can be read.
[[nodiscard]] inline Status check_operands(const MatrixView<const float>& x, const PackedMatrix& weights) noexcept {
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

/// y = x W^T once nothing depends on the scheme any more; `few` is null where panels are decoded for any number of
/// tokens.
template <class Post, class E, OutputElement T>
[[nodiscard]] Status multiply_decoded(WeightOnlyKernel few, const MatrixView<const float>& x,
                                      const DecodedPanels& weights, OutputRange wanted, const MatrixView<T>& y,
                                      const Post& epilogue, const E& executor, Isa isa) {
  if (const Status fit = check_operands(x, weights.weights); !fit) return fit;
  if (const Status fits = check_result(y, x.rows, weights.outputs); !fits) return fits;
  const Result<OutputRange> range = resolve(wanted, weights.outputs);
  if (!range) return range.error();
  if (x.rows > weight_only_rows || few == nullptr) {
    const FloatMatmulOptions<E> options{.executor = executor, .columns = *range, .cap = isa};
    return float_matmul(x, weights, y, epilogue, options);
  }
  if (const Status fits = check_epilogue(epilogue, y.rows, range->first + range->count); !fits) return fits;
  if (x.rows == 0) return {};
  const Output<Post, T> result = output(y, epilogue, isa);
  executor.for_each_index(divide_up(range->count, strip_outputs), [&](std::size_t piece) {
    const std::size_t inside = piece * strip_outputs;
    const std::size_t count = range->count - inside < strip_outputs ? range->count - inside : strip_outputs;
    multiply_few(few, x, weights.weights, {range->first + inside, count}, result);
  });
  return {};
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
