// SPDX-License-Identifier: Apache-2.0
#pragma once

// Token embedding and head. Both are matrices [vocabulary x hidden]: the head multiplies with its rows, the embedding
// copies them. So an embedding is a linear operator of which only weight_row() is used, tied weights are one operator
// that serves as both and is stored once, and quantized rows are unpacked token by token. Cost of a row: a few
// nanoseconds per element.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/nn/linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// hidden [tokens x inputs] = rows `tokens` of `table`. Errc::bad_shape, and Errc::bad_argument for a token beyond the
/// table.
template <LinearOperator Linear, Executor E>
[[nodiscard]] Status embed(const Linear& table, std::span<const std::uint32_t> tokens, const MatrixView<float>& hidden,
                           ExecutionContext<E>& context) noexcept {
  const LinearInfo info = table.info();
  if (hidden.rows != tokens.size() || hidden.columns != info.inputs || hidden.stride < hidden.columns) {
    return Error{Errc::bad_shape, "the result must be tokens x hidden", "hidden",
                 ErrorText(hidden.rows) << " x " << hidden.columns, ErrorText(tokens.size()) << " x " << info.inputs};
  }
  for (const std::uint32_t token : tokens) {
    if (token >= info.outputs) {
      return Error{Errc::bad_argument, "a token id lies beyond the vocabulary", "token", token,
                   ErrorText("below ") << info.outputs};
    }
  }
  for_each_row_block(context.executor(), tokens.size(), [&](const RowBlock& block) {
    for (std::size_t t = block.first; t < block.first + block.count; ++t) table.weight_row(tokens[t], row(hidden, t));
  });
  return {};
}

/// How cbq quantizes embedding and head to `bits` (16: not at all, 8 or 4) beside linear layers of scheme `layers`: 8
/// bits with one scale per token of the vocabulary, 4 bits with a scale per 32 elements; activations 8 bits where the
/// layers quantize them, else float. Errc::unsupported for other numbers of bits.
[[nodiscard]] constexpr Result<Scheme> head_scheme(int bits, const Scheme& layers) noexcept {
  const int activation_bits = layers.activation.bits == 16 ? 16 : 8;
  switch (bits) {
    case 16:
      return Scheme{};
    case 8:
      return make_scheme(8, activation_bits, 0, Zero::symmetric);
    case 4:
      return make_scheme(4, activation_bits, 32, Zero::symmetric);
    default:
      return Error{Errc::unsupported, "embedding and head have 16, 8 or 4 bits", "head bits", bits, "16, 8 or 4"};
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
