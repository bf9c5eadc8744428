// SPDX-License-Identifier: Apache-2.0
#pragma once

// Fake quantization of activations, per token or per group of a token, with exactly the arithmetic of the packed path:
// float, ties to even, and a multiplication by the inverse scale. What a fake-quantized linear layer sees is what the
// integer kernels see, bit for bit.
//
//   symmetric   s = max|x| / q, r = q / max|x|, code = clamp(round(x r), -q, q);  q = 127 for 8 bits, 7 for 4
//   affine      w = max(x, 0) / 2 - min(x, 0) / 2, s = w / 7.5, r = 7.5 / w, z = round(-min(x, 0) r), 4 bits only,
//               code = clamp(round(x r), -z, 15 - z)                                        x^ = s code in both
//
// A token (or group) whose max|x| (affine: w) is below 2^-100 becomes zero: 1 / s could overflow. Two passes over each
// row.

#include <cmath>
#include <cstddef>
#include <cstring>
#include <span>

#include <cbq/quant/rows.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The grid of one token, or of one of its groups: x^ = scale * clamp(round(x * inverse), low, high).
struct TokenGrid {
  float scale = 0;
  float inverse = 0;
  float low = 0;
  float high = 0;
};

/// Whether activations can be quantized on `grid`: per token, 8 bits symmetric or 4 bits; per group, 8 bits symmetric.
/// Errc::unsupported.
[[nodiscard]] constexpr Status check_activation_grid(const Grid& grid) noexcept {
  const bool eight = grid.bits == 8 && grid.zero == Zero::symmetric;
  if (grid.granularity == Granularity::per_token && (eight || grid.bits == 4)) return {};
  if (grid.granularity == Granularity::per_group && grid.group > 0 && eight) return {};
  return Error{Errc::unsupported,
               "activations are quantized per token, to 8 bits symmetric or 4 bits, or per group to 8 bits symmetric",
               "Grid", grid.bits};
}

/// Grid of one token (or group) of finite activations; `grid` as in check_activation_grid.
[[nodiscard]] inline TokenGrid fit_token(const Interval& range, const Grid& grid) noexcept {
  const float low = range.low < 0.0f ? range.low : 0.0f;
  const float high = range.high > 0.0f ? range.high : 0.0f;
  constexpr float smallest = 0x1p-100f;
  if (grid.zero == Zero::symmetric) {
    const float limit = grid.bits == 8 ? 127.0f : 7.0f;
    const float largest = -low > high ? -low : high;
    if (largest < smallest) return {};
    return {largest / limit, limit / largest, -limit, limit};
  }
  const float half_width = high * 0.5f - low * 0.5f;
  if (half_width < smallest) return {};
  const float inverse = 7.5f / half_width;
  const float zero = std::nearbyint(-low * inverse);
  return {half_width / 7.5f, inverse, -zero, 15.0f - zero};
}

/// out[i] = the value of x[i] on the grid of its token (or group); out may be x.
inline void fake_quantize_token(std::span<const float> x, const TokenGrid& token, float* out) noexcept {
  using lanes::Floats;
  const Floats scale(token.scale), inverse(token.inverse), low(token.low), high(token.high);
  lanes::for_each_block(x, 0.0f, [&](const float* block, std::size_t valid) {
    float values[lanes::width];
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const Floats scaled = Floats::load_unaligned(block + v * Floats::size) * inverse;
      const lanes::Ints code = xsimd::nearbyint_as_int(xsimd::min(xsimd::max(scaled, low), high));
      (scale * xsimd::to_float(code)).store_unaligned(values + v * Floats::size);
    }
    std::memcpy(out, values, valid * sizeof(float));
    out += valid;
  });
}

/// Fake-quantizes every row (token) of x into `out`, same shape, which may be x; ranges are those of the values times
/// `clip`. Errc::bad_shape, Errc::unsupported (grid), Errc::not_finite naming the token; what lies before the bad value
/// is then already written.
[[nodiscard]] inline Status fake_quantize_activations(const MatrixView<const float>& x, const Grid& grid,
                                                      const MatrixView<float>& out, float clip = 1.0f) noexcept {
  if (const Status valid = check_activation_grid(grid); !valid) return valid;
  if (out.rows != x.rows || out.columns != x.columns || out.stride < out.columns || x.stride < x.columns) {
    return Error{Errc::bad_shape, "the result does not have the shape of the activations", "out",
                 ErrorText(out.rows) << " x " << out.columns, ErrorText(x.rows) << " x " << x.columns};
  }
  const std::size_t group = group_length(grid, x.columns);
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t first = 0; first < x.columns; first += group) {
      const std::size_t count = x.columns - first < group ? x.columns - first : group;
      const std::span<const float> values(row(x, t) + first, count);
      const Interval range = min_max(values);
      if (!is_finite(range.low) || !is_finite(range.high)) {
        return Error{Errc::not_finite, "an activation is NaN or infinite", ErrorText("token ") << t};
      }
      const Interval clipped = {(range.low < 0.0f ? range.low : 0.0f) * clip,
                                (range.high > 0.0f ? range.high : 0.0f) * clip};
      fake_quantize_token(values, fit_token(clipped, grid), row(out, t) + first);
    }
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
