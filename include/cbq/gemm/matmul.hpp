// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T with quantized activations and packed weights: the driver around the kernels. It allocates nothing. Work is
// cut by shape alone into pieces of 32 outputs x at most 240 tokens, in an order in which contiguous pieces read
// contiguous weights, so a statically scheduled executor gives every thread one sequential stream. Results are the same
// bits for any executor. A strip of 32 packed outputs stays in cache while all its tokens pass: weights are read from
// memory once per 240 tokens.

#include <cstddef>
#include <type_traits>

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
/// Most tokens of one piece: their codes stay in the L2 cache.
inline constexpr std::size_t most_piece_tokens = 12 * activation_panel_rows;

/// Rows and columns of a piece of the result.
struct Patch {
  std::size_t row = 0;
  std::size_t column = 0;
  std::size_t rows = 0;
  std::size_t columns = 0;
};

/// Tokens and inputs of the activations.
struct ActivationShape {
  std::size_t tokens = 0;
  std::size_t inputs = 0;
};

[[nodiscard]] inline Status check_shapes(ActivationShape x, const PackedLayout& weights, OutputRange range,
                                         const MatrixView<float>& y) {
  if (x.inputs != weights.inputs) {
    return Error{Errc::bad_shape, "[cbq] matmul: activations and weights have different inputs", "inputs", x.inputs,
                 weights.inputs};
  }
  if (y.rows != x.tokens || y.columns != weights.outputs || (y.rows > 1 && y.stride < y.columns)) {
    return Error{Errc::bad_shape, "[cbq] matmul: the result must be tokens x outputs", "y",
                 ErrorText(y.rows) << " x " << y.columns << ", stride " << y.stride,
                 ErrorText(x.tokens) << " x " << weights.outputs};
  }
  if (range.first % panel_outputs != 0 || range.first > y.columns || range.count > y.columns - range.first) {
    return Error{Errc::bad_argument, "[cbq] matmul: a range of outputs starts at a multiple of 16 and ends inside y",
                 "range", ErrorText(range.first) << " + " << range.count, y.columns};
  }
  return {};
}

/// Applies an epilogue to a finished patch while it is in the L1 cache.
template <class E>
void apply_epilogue(const E& epilogue, const MatrixView<float>& y, const Patch& patch) {
  if constexpr (!std::is_same_v<E, NoEpilogue>) {
    for (std::size_t r = patch.row; r < patch.row + patch.rows; ++r) {
      float* values = row(y, r);
      for (std::size_t c = patch.column; c < patch.column + patch.columns; ++c) values[c] = epilogue(values[c], r, c);
    }
  }
}

/// One patch of the result: one panel of activations, at most 32 outputs from the start of a panel of weights.
inline void multiply_patch(IntegerKernel kernel, const QuantizedTokens& x, const PackedMatrix& weights,
                           const MatrixView<float>& y, const Patch& patch) {
  const PackedLayout& layout = weights.layout;
  IntegerTile tile;
  tile.panel = weights.data + patch.column / panel_outputs * layout.panel_bytes;
  tile.panel_bytes = layout.panel_bytes;
  tile.header_bytes = layout.header_bytes;
  tile.group_bytes = layout.group_bytes;
  tile.panels = divide_up(patch.columns, panel_outputs);
  tile.groups = layout.groups;
  tile.blocks_per_group = layout.blocks_per_group;
  tile.blocks = layout.blocks;
  tile.weight_multiplier = weights.multiplier;
  tile.codes = x.codes + patch.row * layout.blocks * block_inputs;
  tile.zero_terms = x.zero_terms + patch.row * layout.groups;
  tile.row_scales = x.scales + patch.row;
  tile.panel_rows = patch.rows;
  if (patch.columns % panel_outputs == 0) {
    tile.out = row(y, patch.row) + patch.column;
    tile.out_stride = y.stride;
    kernel(tile);
    return;
  }
  float whole[activation_panel_rows * piece_outputs];  // kernels store whole panels; y has no room for the last one
  tile.out = whole;
  tile.out_stride = piece_outputs;
  kernel(tile);
  for (std::size_t r = 0; r < patch.rows; ++r) {
    float* values = row(y, patch.row + r) + patch.column;
    for (std::size_t c = 0; c < patch.columns; ++c) values[c] = whole[r * piece_outputs + c];
  }
}

/// All pieces of the outputs in `range`. Nothing here depends on the scheme any more.
template <class Post, class E>
void multiply(IntegerKernel kernel, const QuantizedTokens& x, const PackedMatrix& weights, OutputRange range,
              const MatrixView<float>& y, const Post& epilogue, const E& executor) {
  const std::size_t tokens = x.tokens;
  // Pieces of equal height, in whole panels: a short last one would leave threads idle.
  const std::size_t token_pieces = divide_up(tokens, most_piece_tokens);
  const std::size_t piece_panels =
      token_pieces == 0 ? 0 : divide_up(divide_up(tokens, token_pieces), activation_panel_rows);
  const std::size_t piece_tokens = piece_panels * activation_panel_rows;
  const std::size_t output_pieces = divide_up(range.count, piece_outputs);
  executor.for_each_index(token_pieces * output_pieces, [&](std::size_t piece) {
    const std::size_t inside = piece % output_pieces * piece_outputs;
    const std::size_t first_output = range.first + inside;
    const std::size_t count = range.count - inside < piece_outputs ? range.count - inside : piece_outputs;
    const std::size_t first_token = piece / output_pieces * piece_tokens;
    const std::size_t end = tokens - first_token < piece_tokens ? tokens : first_token + piece_tokens;
    for (std::size_t token = first_token; token < end; token += activation_panel_rows) {
      const std::size_t count_rows = end - token < activation_panel_rows ? end - token : activation_panel_rows;
      const Patch patch{token, first_output, count_rows, count};
      multiply_patch(kernel, x, weights, y, patch);
      apply_epilogue(epilogue, y, patch);
    }
  });
}

}  // namespace driver

/// Outputs `range` of y = x W^T followed by the epilogue; the other columns of y are left alone. See matmul().
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor>
[[nodiscard]] Status matmul_outputs(const QuantizedActivationsView<S>& x, const PackedWeightsView<S>& weights,
                                    OutputRange range, const MatrixView<float>& y, const Post& epilogue = {},
                                    const E& executor = {}, Isa cap = detect()) {
  if (const Status shapes = driver::check_shapes({x.tokens, x.layout.inputs}, weights.layout, range, y); !shapes)
    return shapes;
  const IntegerKernel kernel = Kernels::template integer_tile<S.weight.bits, S.weight.zero>(capped(cap));
  driver::multiply(kernel, x, weights, range, y, epilogue, executor);
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
