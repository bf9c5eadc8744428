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
// row. Activations per tensor have one grid for all tokens, and a layer's rules may clip ranges, fix that grid or give
// single tokens fewer bits: <cbq/scheme/activation_rules.hpp>.

#include <cmath>
#include <cstddef>
#include <cstring>
#include <optional>
#include <span>

#include <cbq/quant/rows.hpp>
#include <cbq/scheme.hpp>
#include <cbq/scheme/activation_rules.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The grid of one token, or of one of its groups: x^ = scale * clamp(round(x * inverse), low, high).
struct TokenGrid {
  float scale = 0;
  float inverse = 0;
  float low = 0;
  float high = 0;
};

/// Whether activations can be quantized on `grid`: per token or tensor, 8 bits symmetric or 4 bits; per group, 8 bits
/// symmetric. Errc::unsupported.
[[nodiscard]] constexpr Status check_activation_grid(const Grid& grid) noexcept {
  const bool eight = grid.bits == 8 && grid.zero == Zero::symmetric;
  const bool whole = grid.granularity == Granularity::per_token || grid.granularity == Granularity::per_tensor;
  if (whole && (eight || grid.bits == 4)) return {};
  if (grid.granularity == Granularity::per_group && grid.group > 0 && eight) return {};
  return Error{Errc::unsupported,
               "activations are quantized per token or tensor, to 8 bits symmetric or 4 bits, or per group to 8 bits "
               "symmetric",
               "Grid", grid.bits};
}

/// Grid of one token (or group) of finite activations; `grid` as in check_activation_grid.
[[nodiscard]] inline TokenGrid fit_token(const Interval& range, const Grid& grid) noexcept {
  const float low = range.low < 0.0f ? range.low : 0.0f;
  const float high = range.high > 0.0f ? range.high : 0.0f;
  if (grid.zero == Zero::symmetric) {
    const float limit = static_cast<float>(symmetric_levels(grid));
    const float largest = -low > high ? -low : high;
    if (largest < smallest_scale) return {};
    return {largest / limit, limit / largest, -limit, limit};
  }
  const float half_width = high * 0.5f - low * 0.5f;
  if (half_width < smallest_scale) return {};
  const float inverse = 7.5f / half_width;
  const float zero = std::nearbyint(-low * inverse);
  return {half_width / 7.5f, inverse, -zero, 15.0f - zero};
}

/// Grid of every token under a static grid of the kind and bits of `grid`.
[[nodiscard]] inline TokenGrid fit_token(const StaticGrid& fixed, const Grid& grid) noexcept {
  if (fixed.scale == 0.0f) return {};
  const CodeLimits limits = code_limits(grid, fixed);
  return {fixed.scale, 1.0f / fixed.scale, static_cast<float>(limits.lowest), static_cast<float>(limits.highest)};
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

/// The grid of all finite tokens of x.
[[nodiscard]] inline StaticGrid tensor_grid(const MatrixView<const float>& x, const Grid& grid) noexcept {
  Interval range;
  for (std::size_t t = 0; t < x.rows; ++t) {
    const Interval token = min_max({row(x, t), x.columns});
    if (!is_finite(token.low) || !is_finite(token.high)) continue;
    range.low = token.low < range.low ? token.low : range.low;
    range.high = token.high > range.high ? token.high : range.high;
  }
  return static_grid(grid, range.low, range.high);
}

namespace activation {

/// The grid of a token, or of one group of it, whose own grid is `grid`; not finite where a value is not.
[[nodiscard]] inline Result<TokenGrid> fit(std::span<const float> x, const Grid& grid,
                                           const std::optional<StaticGrid>& fixed, float clip) noexcept {
  const Interval range = min_max(x);
  if (!is_finite(range.low) || !is_finite(range.high)) {
    return Error{Errc::not_finite, "an activation is NaN or infinite"};
  }
  if (fixed) return fit_token(*fixed, grid);
  return fit_token(
      Interval{(range.low < 0.0f ? range.low : 0.0f) * clip, (range.high > 0.0f ? range.high : 0.0f) * clip}, grid);
}

}  // namespace activation

/// Fake-quantizes every row (token) of x into `out`, same shape, which may be x, under the layer's rules.
/// Errc::bad_shape, Errc::unsupported (grid), Errc::not_finite naming the token, those of check_activation_rules();
/// what lies before a bad value is then already written.
[[nodiscard]] inline Status fake_quantize_activations(const MatrixView<const float>& x, const Grid& grid,
                                                      const MatrixView<float>& out,
                                                      const ActivationRules& rules = {}) noexcept {
  if (const Status valid = check_activation_grid(grid); !valid) return valid;
  if (const Status valid = check_activation_rules(rules, grid, x.rows); !valid) return valid;
  if (out.rows != x.rows || out.columns != x.columns || out.stride < out.columns || x.stride < x.columns) {
    return Error{Errc::bad_shape, "the result does not have the shape of the activations", "out",
                 ErrorText(out.rows) << " x " << out.columns, ErrorText(x.rows) << " x " << x.columns};
  }
  ActivationRules resolved = rules;
  if (grid.granularity == Granularity::per_tensor && !rules.fixed) resolved.fixed = tensor_grid(x, grid);
  const std::size_t group = group_length(grid, x.columns);
  for (std::size_t t = 0; t < x.rows; ++t) {
    const Grid own = token_grid(grid, resolved, t);
    std::optional<StaticGrid> fixed;
    if (resolved.fixed) fixed = fixed_token_grid(resolved, grid, own);
    for (std::size_t first = 0; first < x.columns; first += group) {
      const std::size_t count = x.columns - first < group ? x.columns - first : group;
      const std::span<const float> values(row(x, t) + first, count);
      const Result<TokenGrid> token = activation::fit(values, own, fixed, rules.clip);
      if (!token) return Error{token.error().code, token.error().what, ErrorText("token ") << t};
      fake_quantize_token(values, *token, row(out, t) + first);
    }
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
