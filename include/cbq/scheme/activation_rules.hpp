// SPDX-License-Identifier: Apache-2.0
#pragma once

// What decides, beside the scheme, how the tokens of one linear layer are quantized: a clip multiplier that was
// learned, a grid that calibration fixed (static activations), bits of single tokens. Plain values, read alike by the
// packed path (<cbq/gemm/activations.hpp>) and by fake quantization (<cbq/quant/activation.hpp>), so that both see the
// same bits. Where a scheme's activations are per tensor and no grid is fixed, the range is that of all tokens of a
// call.
//
//   symmetric   s = max|x| / q, z = 0, q = 2^(b-1) - 1           code = clamp(round(x (1 / s)), -q, q)
//   affine      s = (max(x, 0) - min(x, 0)) / (2^b - 1), z = round(-min(x, 0) / s)
//                                                                code = clamp(round(x (1 / s)), -z, 2^b - 1 - z)
//   x^ = s code in both: what is stored is the difference to the zero point. Values outside go to the nearest end.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <cbq/core/result.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {  // also of the data: their constructors move floats, as each file's flags have it

/// One grid for all tokens. `zero` is 0 on symmetric grids; scale 0 makes everything zero.
struct StaticGrid {
  float scale = 0.0f;
  int zero = 0;
  friend constexpr bool operator==(const StaticGrid&, const StaticGrid&) = default;
};

/// Bits of single tokens, 8 or 4 each; empty: all have those of the scheme, which no token exceeds. A token of 4 bits
/// in a scheme of 8 gets a grid of kind `zero` of its own range, or the symmetric one of the same range where a grid is
/// fixed.
struct TokenBits {
  std::span<const std::uint8_t> bits = {};
  Zero zero = Zero::symmetric;
};

/// How the input of one linear layer is quantized, beside its scheme.
struct ActivationRules {
  float clip = 1.0f;  ///< multiplier of all ranges, in (0, 1]
  std::optional<StaticGrid> fixed = {};
  TokenBits tokens = {};
};

/// Largest symmetric code that is used, 2^(bits-1) - 1.
[[nodiscard]] constexpr int symmetric_levels(const Grid& grid) noexcept {
  return (1 << (grid.bits - 1)) - 1;
}

/// The static grid of finite values in [lowest, highest], zero included; scale 0 where all lie below 2^-100 in
/// magnitude.
[[nodiscard]] inline StaticGrid static_grid(const Grid& grid, float lowest, float highest) noexcept {
  constexpr float smallest = 0x1p-100f;  // below it 1 / scale could overflow
  const float low = lowest < 0.0f ? lowest : 0.0f;
  const float high = highest > 0.0f ? highest : 0.0f;
  if (grid.zero == Zero::symmetric) {
    const float largest = -low > high ? -low : high;
    if (largest < smallest) return {};
    return {.scale = largest / static_cast<float>(symmetric_levels(grid))};
  }
  const auto levels = static_cast<float>(max_code(grid));
  // Halved, so that the width of a range that spans all of float's stays finite.
  const float half_width = high * 0.5f - low * 0.5f;
  if (half_width < smallest) return {};
  const float scale = half_width / (levels * 0.5f);
  const float zero = __builtin_nearbyintf(-low / scale);
  return {.scale = scale, .zero = static_cast<int>(zero < levels ? zero : levels)};
}

/// Codes of a static grid lie in [lowest, highest], as they are stored: less the zero point.
struct CodeLimits {
  int lowest = 0;
  int highest = 0;
};
[[nodiscard]] constexpr CodeLimits code_limits(const Grid& grid, const StaticGrid& fixed) noexcept {
  if (grid.zero == Zero::symmetric) return {-symmetric_levels(grid), symmetric_levels(grid)};
  return {-fixed.zero, max_code(grid) - fixed.zero};
}

/// Whether `fixed` is a grid of the kind and bits of `grid`: a scale that is 0 or a positive normal number, a zero
/// point in 0 .. 2^bits - 1, which is 0 on symmetric grids. Errc::bad_argument.
[[nodiscard]] constexpr Status check_static_grid(const StaticGrid& fixed, const Grid& grid) noexcept {
  const bool normal = fixed.scale >= 0x1p-126f && fixed.scale <= 0x1.fffffep127f;
  if (!normal && fixed.scale != 0.0f) {
    return Error{Errc::bad_argument, "a static scale is zero or a positive normal number", "scale"};
  }
  const int largest = grid.zero == Zero::affine ? max_code(grid) : 0;
  if (fixed.zero < 0 || fixed.zero > largest) {
    return Error{Errc::bad_argument, "a zero point lies outside the grid", "zero", fixed.zero,
                 ErrorText("0 .. ") << largest};
  }
  return {};
}

/// Whether a clip multiplier of activations is one: Errc::bad_argument unless it lies in (0, 1].
[[nodiscard]] constexpr Status check_clip(float clip) noexcept {
  if (clip > 0.0f && clip <= 1.0f) return {};
  return Error{Errc::bad_argument, "a clip multiplier lies above 0 and at most at 1", "clip"};
}

/// Whether `rules` can be applied to `rows` tokens on `grid`. Errc::unsupported: a fixed grid where activations are not
/// per tensor, bits per token where they are per group. Errc::bad_argument: another number of bits than tokens, or
/// bits other than 8 and 4; a clip as check_clip(), a fixed grid as check_static_grid().
[[nodiscard]] constexpr Status check_activation_rules(const ActivationRules& rules, const Grid& grid,
                                                      std::size_t rows) noexcept {
  if (const Status valid = check_clip(rules.clip); !valid) return valid;
  if (rules.fixed) {
    if (grid.granularity != Granularity::per_tensor) {
      return Error{Errc::unsupported, "only activations per tensor have a fixed grid", "Grid.granularity"};
    }
    if (const Status valid = check_static_grid(*rules.fixed, grid); !valid) return valid;
  }
  const std::span<const std::uint8_t> bits = rules.tokens.bits;
  if (bits.empty()) return {};
  if (grid.granularity == Granularity::per_group) {
    return Error{Errc::unsupported, "activations per group have no bits per token", "Grid.granularity"};
  }
  if (bits.size() != rows) {
    return Error{Errc::bad_argument, "there are bits for each token", "token bits", bits.size(), rows};
  }
  for (std::size_t t = 0; t < rows; ++t) {
    if (bits[t] != 8 && bits[t] != 4) {
      return Error{Errc::bad_argument, "a token has 8 or 4 bits", ErrorText("token ") << t, int{bits[t]}};
    }
  }
  return {};
}

/// The grid of one token: that of the scheme, or 4 bits where the token has fewer.
[[nodiscard]] constexpr Grid token_grid(const Grid& grid, const ActivationRules& rules, std::size_t token) noexcept {
  if (rules.tokens.bits.empty() || grid.bits <= rules.tokens.bits[token]) return grid;
  Grid low = grid;
  low.bits = 4;
  low.zero = rules.fixed ? Zero::symmetric : rules.tokens.zero;
  return low;
}

/// The fixed grid, clipped, of a token that is quantized to `low`, the token_grid() of `grid`.
[[nodiscard]] constexpr StaticGrid fixed_token_grid(const ActivationRules& rules, const Grid& grid,
                                                    const Grid& low) noexcept {
  StaticGrid fixed = *rules.fixed;
  fixed.scale *= rules.clip;
  if (low.bits != grid.bits) {
    fixed.scale *= static_cast<float>(symmetric_levels(grid)) / static_cast<float>(symmetric_levels(low));
    if (fixed.scale > 0x1.fffffep127f) fixed.scale = 0x1.fffffep127f;  // infinity times code 0 is NaN
  }
  if (fixed.scale < 0x1p-126f) fixed.scale = 0.0f;  // its inverse could overflow
  return fixed;
}

}  // namespace CBQ_ABI
}  // namespace cbq
