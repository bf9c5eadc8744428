// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T with quantized activations and packed weights: the driver around the kernels. It allocates nothing. Work is
// cut by shape alone into pieces of 32 outputs x 240 tokens, in an order in which contiguous pieces read contiguous
// weights, so a statically scheduled executor gives every thread one sequential stream. Results are the same bits for
// any executor. A strip of 32 packed outputs stays in cache while all its tokens pass: weights are read from memory
// once per 240 tokens.

#include <cstddef>

#include <cbq/core/executor.hpp>
#include <cbq/gemm/activations.hpp>
#include <cbq/gemm/dispatch.hpp>
#include <cbq/gemm/epilogue.hpp>
#include <cbq/gemm/packed_weights.hpp>

namespace cbq {

/// Outputs [first, first + count) of a matmul, for hosts that cut the work themselves. `first` is a multiple of 16.
struct OutputRange {
  std::size_t first = 0;
  std::size_t count = 0;
};

inline namespace CBQ_ABI {
namespace driver {

/// Outputs of one piece: the two panels of the register tile.
inline constexpr std::size_t piece_outputs = 2 * panel_outputs;
/// Tokens of one piece: their codes stay in the L2 cache.
inline constexpr std::size_t piece_tokens = 12 * activation_panel_rows;

/// Applies an epilogue to a finished tile while it is in the L1 cache.
template <class E>
void apply_epilogue(const E& epilogue, const MatrixView<float>& y, std::size_t first_row, std::size_t first_column,
                    std::size_t row_count, std::size_t column_count) {
  if constexpr (!std::is_same_v<E, NoEpilogue>) {
    for (std::size_t r = first_row; r < first_row + row_count; ++r) {
      float* values = row(y, r);
      for (std::size_t c = first_column; c < first_column + column_count; ++c) values[c] = epilogue(values[c], r, c);
    }
  }
}

/// Multiplies outputs [first_output, first_output + count) (at most 32, from a panel's start) with one panel of
/// activations.
template <Scheme S>
void multiply_tile(IntegerKernel kernel, const QuantizedActivationsView<S>& x, const PackedWeightsView<S>& weights,
                   const MatrixView<float>& y, std::size_t first_token, std::size_t first_output, std::size_t count) {
  const PackedLayout& layout = weights.layout;
  const std::size_t token_count =
      x.tokens - first_token < activation_panel_rows ? x.tokens - first_token : activation_panel_rows;
  IntegerTile tile;
  tile.panel = weights.data + first_output / panel_outputs * layout.panel_bytes;
  tile.panel_bytes = layout.panel_bytes;
  tile.header_bytes = layout.header_bytes;
  tile.group_bytes = layout.group_bytes;
  tile.panels = divide_up(count, panel_outputs);
  tile.groups = layout.groups;
  tile.blocks_per_group = layout.blocks_per_group;
  tile.blocks = layout.blocks;
  tile.weight_multiplier = weights.multiplier;
  tile.codes = x.codes + first_token * layout.blocks * block_inputs;
  tile.zero_terms = x.zero_terms + first_token * layout.groups;
  tile.row_scales = x.scales + first_token;
  tile.panel_rows = token_count;
  if (count % panel_outputs == 0) {
    tile.out = row(y, first_token) + first_output;
    tile.out_stride = y.stride;
    kernel(tile);
    return;
  }
  float whole[activation_panel_rows * piece_outputs];  // kernels store whole panels; y has no room for the last one
  tile.out = whole;
  tile.out_stride = piece_outputs;
  kernel(tile);
  for (std::size_t r = 0; r < token_count; ++r) {
    float* values = row(y, first_token + r) + first_output;
    for (std::size_t c = 0; c < count; ++c) values[c] = whole[r * piece_outputs + c];
  }
}

}  // namespace driver

/// Outputs `range` of y = x W^T followed by the epilogue; the other columns of y are left alone. See matmul().
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor>
[[nodiscard]] Status matmul_outputs(const QuantizedActivationsView<S>& x, const PackedWeightsView<S>& weights,
                                    OutputRange range, const MatrixView<float>& y, const Post& epilogue = {},
                                    const E& executor = {}, Isa cap = detect()) {
  if (x.layout.inputs != weights.layout.inputs) {
    return Error{Errc::bad_shape, "[cbq] matmul: activations and weights have different inputs", "inputs",
                 x.layout.inputs, weights.layout.inputs};
  }
  if (y.rows != x.tokens || y.columns != weights.layout.outputs) {
    return Error{Errc::bad_shape, "[cbq] matmul: the result must be tokens x outputs", "y",
                 ErrorText(y.rows) << " x " << y.columns, ErrorText(x.tokens) << " x " << weights.layout.outputs};
  }
  if (range.first % panel_outputs != 0 || range.first > y.columns || range.count > y.columns - range.first) {
    return Error{Errc::bad_argument, "[cbq] matmul: a range of outputs starts at a multiple of 16 and ends inside y",
                 "range", ErrorText(range.first) << " + " << range.count, y.columns};
  }
  const IntegerKernel kernel = Kernels::template integer_tile<S.weight.bits, S.weight.zero>(capped(cap));
  const std::size_t token_pieces = divide_up(x.tokens, driver::piece_tokens);
  const std::size_t output_pieces = divide_up(range.count, driver::piece_outputs);
  executor.for_each_index(token_pieces * output_pieces, [&](std::size_t piece) {
    const std::size_t inside = piece % output_pieces * driver::piece_outputs;
    const std::size_t first_output = range.first + inside;
    const std::size_t count =
        range.count - inside < driver::piece_outputs ? range.count - inside : driver::piece_outputs;
    const std::size_t first_token = piece / output_pieces * driver::piece_tokens;
    const std::size_t end =
        x.tokens - first_token < driver::piece_tokens ? x.tokens : first_token + driver::piece_tokens;
    for (std::size_t token = first_token; token < end; token += activation_panel_rows) {
      driver::multiply_tile<S>(kernel, x, weights, y, token, first_output, count);
      driver::apply_epilogue(epilogue, y, token, first_output,
                             end - token < activation_panel_rows ? end - token : activation_panel_rows, count);
    }
  });
  return {};
}

/// y = x W^T followed by the epilogue. x: M tokens; y: M x N floats, fully written. Errors: bad_shape.
/// `cap` lowers the instruction set; what the machine lacks is never used.
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor>
[[nodiscard]] Status matmul(const QuantizedActivationsView<S>& x, const PackedWeightsView<S>& weights,
                            const MatrixView<float>& y, const Post& epilogue = {}, const E& executor = {},
                            Isa cap = detect()) {
  return matmul_outputs<S, Post, Kernels, E>(x, weights, {.first = 0, .count = weights.layout.outputs}, y, epilogue,
                                             executor, cap);
}

}  // namespace CBQ_ABI
}  // namespace cbq
