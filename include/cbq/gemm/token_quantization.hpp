// SPDX-License-Identifier: Apache-2.0
#pragma once

// The scale of one token, or of one group of it, and the limits of its codes: from its range, or from the grid that the
// layer's rules fixed for all tokens. A handful of float operations per token; the formulas are those of
// <cbq/gemm/activations.hpp>.

#include <cstddef>
#include <optional>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/scheme.hpp>
#include <cbq/scheme/activation_rules.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// How one row, or one group of it, is quantized: stored code = clamp(round(x * inverse_scale), lowest, highest).
struct TokenQuantization {
  float scale = 0.0f;
  float inverse_scale = 0.0f;
  float lowest = 0.0f;
  float highest = 0.0f;
};

/// The quantization of a row or group with the given range (zero included).
[[nodiscard]] inline TokenQuantization token_quantization(const Grid& grid, const RowRange& range) noexcept {
  constexpr float smallest = 0x1p-100f;  // below it 1 / scale could overflow
  TokenQuantization token;
  if (grid.zero == Zero::symmetric) {
    const float levels = static_cast<float>(symmetric_levels(grid));
    const float largest = -range.lowest > range.highest ? -range.lowest : range.highest;
    if (largest < smallest) return token;
    token = {.scale = largest / levels, .inverse_scale = levels / largest, .lowest = -levels, .highest = levels};
  } else {
    constexpr float levels = 15.0f;
    // Halved, so that the width of a row that spans all of float's range stays finite.
    const float half_width = range.highest * 0.5f - range.lowest * 0.5f;
    if (half_width < smallest) return token;
    token.scale = half_width / (levels * 0.5f);
    token.inverse_scale = (levels * 0.5f) / half_width;
    const float product = -range.lowest * token.inverse_scale;
    const float zero = __builtin_nearbyintf(product);  // no addition that a compiler could fuse the product with
    token.lowest = -zero;
    token.highest = levels - zero;
  }
  return token;
}

/// The quantization of every row under a static grid of the kind and bits of `grid`.
[[nodiscard]] inline TokenQuantization token_quantization(const Grid& grid, const StaticGrid& fixed) noexcept {
  if (fixed.scale == 0.0f) return {};
  const CodeLimits limits = code_limits(grid, fixed);
  return {.scale = fixed.scale,
          .inverse_scale = 1.0f / fixed.scale,
          .lowest = static_cast<float>(limits.lowest),
          .highest = static_cast<float>(limits.highest)};
}

namespace driver {

/// What decides the quantization of one token, beside its range.
struct TokenRule {
  Grid grid = {};
  float clip = 1.0f;
  std::optional<StaticGrid> fixed = {};  ///< clipped already
};

/// The rule of one token of a layer whose rules were checked.
[[nodiscard]] inline TokenRule token_rule(const Grid& grid, const ActivationRules& rules, std::size_t token) noexcept {
  TokenRule rule = {.grid = token_grid(grid, rules, token), .clip = rules.clip};
  if (rules.fixed) rule.fixed = fixed_token_grid(rules, grid, rule.grid);
  return rule;
}

/// The quantization of a row or group with a finite range.
[[nodiscard]] inline TokenQuantization token_quantization(const TokenRule& rule, const RowRange& range) noexcept {
  if (rule.fixed) return cbq::token_quantization(rule.grid, *rule.fixed);
  return cbq::token_quantization(rule.grid,
                                 RowRange{.lowest = range.lowest * rule.clip, .highest = range.highest * rule.clip});
}

/// Extends a range by another one that is finite.
inline void join(RowRange& range, const RowRange& other) noexcept {
  if (!other.finite) return;
  range.lowest = other.lowest < range.lowest ? other.lowest : range.lowest;
  range.highest = other.highest > range.highest ? other.highest : range.highest;
}

}  // namespace driver
}  // namespace CBQ_ABI
}  // namespace cbq
