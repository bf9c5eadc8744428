// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of queries, keys and values in INT8 under one scale: symmetric, 127 codes to each side, so that products of two
// codes and their sums over a head stay far inside int32 and float.
//
//   code = clamp(round(x / scale), -127, 127), ties to even

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/divide.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Elements of a head, at most.
inline constexpr std::size_t int8_most_width = 256;
/// Largest magnitude that is still a number.
inline constexpr float int8_largest = 0x1p100f;

/// The scale that brings `largest` to 127; 2^-100 where it is no larger.
[[nodiscard]] constexpr float int8_scale(float largest) noexcept {
  const float scale = largest / 127.0f;
  return scale < smallest_scale ? smallest_scale : scale;
}

/// Codes of finite x.
inline void encode_int8(std::span<const float> x, float scale, std::int8_t* codes) noexcept {
  using lanes::Floats;
  const Floats scales(scale), low(-127.0f), high(127.0f);
  lanes::for_each_block(x, 0.0f, [&](const float* sixteen, std::size_t valid) {
    std::int32_t whole[lanes::width];
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const Floats scaled = divide(Floats::load_unaligned(sixteen + v * Floats::size), scales);
      xsimd::nearbyint_as_int(xsimd::min(xsimd::max(scaled, low), high)).store_unaligned(whole + v * Floats::size);
    }
    for (std::size_t j = 0; j < valid; ++j) codes[j] = static_cast<std::int8_t>(whole[j]);
    codes += valid;
  });
}

/// Errc::not_finite where an element is NaN or beyond 2^100, naming the token.
[[nodiscard]] inline Status check_int8_rows(const MatrixView<const float>& x, const char* what) noexcept {
  for (std::size_t t = 0; t < x.rows; ++t) {
    const float largest = max_abs({row(x, t), x.columns});
    if (is_finite(largest) && largest <= int8_largest) continue;
    return Error{Errc::not_finite, "rows of integer attention are numbers up to 2^100",
                 ErrorText(what) << ", token " << t};
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
