// SPDX-License-Identifier: Apache-2.0
#pragma once

// Activations kept as 4-bit codes, two per byte, for hosts that hold them between layers or write them away: an eighth
// of floats and a scale and zero point per token. What is stored are the codes that quantize_activations() would make,
// under the same rules; activations_from_int4() puts them into the panels that kernels read, bit for bit as if the
// floats had been kept. One pass for the range of a token, one for its codes, one to unpack.
//
//   byte i of a token: code of input 2 i in the low half, of input 2 i + 1 in the high one, 0 behind the last
//   x^ = scale * (code - zero), zero = 8 on symmetric grids
//
// Memory: scales[token] float, zeros[token] bytes, codes[token][(inputs + 1) / 2] bytes.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/gemm/activation_codes.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {

/// Tokens of 4-bit codes, owned by somebody else. Plain data.
struct Int4Tokens {
  const float* scales = nullptr;
  const std::uint8_t* zeros = nullptr;
  const std::uint8_t* codes = nullptr;
  std::size_t tokens = 0;
  std::size_t inputs = 0;
};

inline namespace CBQ_ABI {

/// Bytes of the codes of one token.
[[nodiscard]] constexpr std::size_t int4_row_bytes(std::size_t inputs) noexcept {
  return inputs / 2 + inputs % 2;
}

/// Bytes that store_int4_tokens() writes. Errc::bad_shape.
[[nodiscard]] constexpr Result<std::size_t> int4_tokens_size(std::size_t tokens, std::size_t inputs) noexcept {
  const Result<std::size_t> row = checked_sum(int4_row_bytes(inputs), sizeof(float), std::size_t{1});
  if (!row) return row.error();
  return checked_product(tokens, *row);
}

namespace driver {

/// Signed codes of one token, as arrange_row() reads them.
struct Int4Row {
  const std::uint8_t* bytes = nullptr;
  int zero = 0;
  [[nodiscard]] std::int8_t operator[](std::size_t input) const noexcept {
    const int code = input % 2 == 0 ? bytes[input / 2] & 15 : bytes[input / 2] >> 4;
    return static_cast<std::int8_t>(code - zero);
  }
};

struct Int4Source : Int4Tokens {
  // Hides the pointer: arrange_tokens() asks for rows.
  [[nodiscard]] Int4Row codes(std::size_t token) const noexcept {
    return {Int4Tokens::codes + token * int4_row_bytes(inputs), zeros[token]};
  }
  [[nodiscard]] float scale(std::size_t token) const noexcept { return scales[token]; }
};

/// Codes of one finite row, two per byte.
inline void store_int4_row(const float* values, std::size_t inputs, const TokenQuantization& token, int zero,
                           std::uint8_t* bytes, Isa isa) noexcept {
  constexpr std::size_t piece = 256;
  std::int8_t codes[piece];
  std::int32_t sum = 0;
  for (std::size_t first = 0; first < inputs; first += piece) {
    ActivationRow row;
    row.values = values + first;
    row.inputs = row.group = inputs - first < piece ? inputs - first : piece;
    row.panel_rows = 1;
    row.codes = codes;
    row.zero_terms = &sum;
    row.inverse_scale = token.inverse_scale;
    row.lowest = token.lowest;
    row.highest = token.highest;
    quantize_row(row, isa);
    for (std::size_t i = 0; i < row.inputs; i += 2) {
      const int high = i + 1 < row.inputs ? codes[i + 1] + zero : 0;
      *bytes++ = static_cast<std::uint8_t>((codes[i] + zero) | high << 4);
    }
  }
}

[[nodiscard]] inline Status check_int4(const RuledActivations& x, const Grid& grid,
                                       std::span<const std::byte> memory) noexcept {
  const bool whole = grid.granularity == Granularity::per_token || grid.granularity == Granularity::per_tensor;
  if (grid.bits != 4 || !whole) {
    return Error{Errc::unsupported, "[cbq] store_int4_tokens: 4 bits per token or tensor", "Grid.bits", grid.bits, 4};
  }
  if (const Status valid = check_activation_rules(x.rules, grid, x.rows); !valid) return valid;
  if (const Status valid = check_rows<float>(x, "store_int4_tokens"); !valid) return valid;
  const Result<std::size_t> needed = int4_tokens_size(x.rows, x.columns);
  if (!needed) return needed.error();
  return check_memory(memory, *needed, "store_int4_tokens");
}

/// Whether the memory of `tokens`, which may come from anywhere, can be read as what store_int4_tokens() wrote.
[[nodiscard]] inline Status check_stored(const Int4Tokens& tokens) noexcept {
  const bool any = tokens.tokens != 0;
  if (any && (tokens.scales == nullptr || tokens.zeros == nullptr || (tokens.codes == nullptr && tokens.inputs != 0))) {
    return Error{Errc::bad_argument, "[cbq] activations_from_int4: the memory of the tokens is null", "tokens"};
  }
  for (std::size_t t = 0; t < tokens.tokens; ++t) {
    if (tokens.zeros[t] > 15) {
      return Error{Errc::bad_argument, "[cbq] activations_from_int4: a zero point lies outside the grid",
                   ErrorText("token ") << t, int{tokens.zeros[t]}, 15};
    }
    if (!is_finite(tokens.scales[t])) {
      return Error{Errc::not_finite, "[cbq] activations_from_int4: a scale is NaN or infinite",
                   ErrorText("token ") << t};
    }
    if (tokens.scales[t] >= 0.0f) continue;
    return Error{Errc::bad_argument, "[cbq] activations_from_int4: a scale is negative", ErrorText("token ") << t};
  }
  return {};
}

}  // namespace driver

/// Stores x (M x K) on `grid`, the 4-bit activation grid of a scheme, under its rules, into `memory` of
/// int4_tokens_size(M, K) bytes on a 4-byte boundary. Errors: unsupported (grid), bad_shape (memory, stride),
/// bad_argument (alignment, null memory), not_finite (names the first token with NaN or infinity), those of
/// check_activation_rules().
template <Executor E = SerialExecutor>
[[nodiscard]] Result<Int4Tokens> store_int4_tokens(const RuledActivations& x, const Grid& grid,
                                                   std::span<std::byte> memory, const E& executor = {},
                                                   Isa cap = detect()) {
  if (const Status valid = driver::check_int4(x, grid, memory); !valid) return valid.error();
  const Isa isa = capped(cap);
  auto* scales = reinterpret_cast<float*>(memory.data());
  auto* zeros = reinterpret_cast<std::uint8_t*>(scales + x.rows);
  auto* codes = zeros + x.rows;
  const ActivationRules rules = driver::rules_of(x, grid, isa);
  executor.for_each_index(x.rows, [&](std::size_t t) {
    const RowRange range = row_range(row(x, t), x.columns, isa);
    const TokenQuantization token = driver::token_quantization(driver::token_rule(grid, rules, t), range);
    const int zero = grid.zero == Zero::affine ? -static_cast<int>(token.lowest) : symmetric_zero(grid);
    scales[t] = range.finite ? token.scale : __builtin_nanf("");
    zeros[t] = range.finite ? static_cast<std::uint8_t>(zero) : std::uint8_t{0};
    if (!range.finite) return;
    driver::store_int4_row(row(x, t), x.columns, token, zero, codes + t * int4_row_bytes(x.columns), isa);
  });
  for (std::size_t t = 0; t < x.rows; ++t) {
    if (scales[t] == scales[t]) continue;
    return Error{Errc::not_finite, "[cbq] store_int4_tokens: NaN or infinity in the activations",
                 ErrorText("token ") << t};
  }
  return Int4Tokens{scales, zeros, codes, x.rows, x.columns};
}

/// The activations that `tokens` hold, as kernels read them, in `memory` of activations_size<S>() bytes on a 4-byte
/// boundary; `tokens` may be dropped afterwards. Errors: bad_shape (memory), bad_argument (alignment, null memory, a
/// zero point above 15, a negative scale), not_finite (a scale).
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedActivationsView<S>> activations_from_int4(const Int4Tokens& tokens,
                                                                        std::span<std::byte> memory,
                                                                        const E& executor = {}, Isa cap = detect()) {
  static_assert(checked<S>().activation.bits == 4, "[cbq] activations_from_int4: the scheme's activations have 4 bits");
  const Result<ActivationLayout> layout = activation_layout(S, tokens.tokens, tokens.inputs);
  if (!layout) return layout.error();
  if (const Status valid = driver::check_memory(memory, layout->bytes, "activations_from_int4"); !valid)
    return valid.error();
  if (const Status valid = driver::check_stored(tokens); !valid) return valid.error();
  QuantizedTokens arranged =
      driver::arrange_tokens(driver::Int4Source{tokens}, S, *layout, memory.data(), executor, capped(cap));
  arranged.largest_code = 15;
  return QuantizedActivationsView<S>{arranged};
}

}  // namespace CBQ_ABI
}  // namespace cbq
