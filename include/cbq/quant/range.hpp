// SPDX-License-Identifier: Apache-2.0
#pragma once

// Range finders: which scale and zero point a group of weights (or any row segment) gets. One concept, three policies.
//
//   MinMaxRange    nothing is clipped: s = max|x| / (2^(b-1) - 1), affine s = (max - min) / (2^b - 1). One pass.
//   ClippedRange   the same after cutting a fraction of the largest magnitudes. 32 passes (64 affine).
//   MseRange       the scale (and zero point) with the least squared error found by search; the default for weights.
//                  About 30 passes (100 affine), each over one group that stays in the L1 cache.
//
// Affine ranges always contain zero, so that zero is exact and its code fits in b bits: zero = round(-min / s). Errors
// are compared on the scale as it will be stored: with ScalePrecision::half every candidate has 11 significant bits.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/quant/rows.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// Significant bits of the scales that a finder returns: float's 24, or half's 11 (weights; see scale.hpp).
enum class ScalePrecision : unsigned char { full, half };

inline namespace CBQ_ABI {

/// `find(x, grid, precision)`: grid for the finite elements x. Scale 0 means that no scale is needed, every element
/// being zero or of no magnitude that smallest_scale can hold; the caller then chooses one. Never fails, allocates
/// nothing.
template <class F>
concept RangeFinder = requires(const F& finder, std::span<const float> x, const Grid& grid, ScalePrecision precision) {
  { finder.find(x, grid, precision) } noexcept -> std::same_as<CodeGrid>;
};

namespace ranges {

/// The scale at the wanted precision, 0 where too small.
[[nodiscard]] constexpr float stored(double scale, ScalePrecision precision) noexcept {
  const double largest = 0x1.ffcp127;  // 11 significant bits
  const auto value = static_cast<float>(scale < largest ? scale : largest);
  if (!(value >= smallest_scale)) return 0;
  return precision == ScalePrecision::half ? round_scale(value) : value;
}

/// Grid from an interval: symmetric around 0, or the affine one that contains 0.
[[nodiscard]] inline CodeGrid from_interval(Interval x, const Grid& grid, ScalePrecision precision) noexcept {
  const int top = max_code(grid);
  if (grid.zero == Zero::symmetric) {
    const int zero = symmetric_zero(grid);
    const double magnitude = x.high > -x.low ? static_cast<double>(x.high) : -static_cast<double>(x.low);
    return {stored(magnitude / (top - zero), precision), zero, top};
  }
  const double low = x.low < 0 ? static_cast<double>(x.low) : 0.0;
  const double high = x.high > 0 ? static_cast<double>(x.high) : 0.0;
  const float scale = stored((high - low) / top, precision);
  if (scale == 0) return {0, 0, top};
  const double zero = std::nearbyint(-low / static_cast<double>(scale));
  return {scale, zero < top ? static_cast<int>(zero) : top, top};
}

/// A candidate of the MSE search.
struct Candidate {
  CodeGrid grid = {};
  GridFit fit = {};
};

[[nodiscard]] inline Candidate evaluate(std::span<const float> x, const CodeGrid& grid) noexcept {
  return {grid, measure(x, grid)};
}

/// Alternates between the codes of a scale and the best scale of those codes while the error falls; with affine grids
/// the neighbouring zero points are tried too.
[[nodiscard]] inline Candidate descend(std::span<const float> x, Candidate best, Zero zero,
                                       ScalePrecision precision) noexcept {
  bool improved = true;
  const auto improve = [&](int shift) {
    CodeGrid grid = best.grid;
    grid.zero += shift;
    if (grid.zero < 0 || grid.zero > grid.max_code) return;
    const GridFit fit = shift == 0 ? best.fit : measure(x, grid);
    for (const float scale : {grid.scale, fit.d_dot_d > 0 ? stored(fit.x_dot_d / fit.d_dot_d, precision) : 0.0f}) {
      if (scale == 0 || (shift == 0 && scale == grid.scale)) continue;
      grid.scale = scale;
      const Candidate next = evaluate(x, grid);
      if (next.fit.squared_error < best.fit.squared_error) {
        best = next;
        improved = true;
      }
    }
  };
  for (int round = 0; improved && round < 8; ++round) {
    improved = false;
    improve(0);
    if (zero == Zero::affine) {
      improve(-1);
      improve(1);
    }
  }
  return best;
}

}  // namespace ranges

/// Covers every element.
struct MinMaxRange {
  [[nodiscard]] CodeGrid find(std::span<const float> x, const Grid& grid, ScalePrecision precision) const noexcept {
    return ranges::from_interval(min_max(x), grid, precision);
  }
};

/// Covers the fraction `keep` of the elements, the nearest rank of it rounded up: symmetric grids cut the largest
/// magnitudes, affine ones half of the rest at each end. Values of keep outside (0, 1] count as 1.
struct ClippedRange {
  double keep = 0.999;
  [[nodiscard]] CodeGrid find(std::span<const float> x, const Grid& grid, ScalePrecision precision) const noexcept {
    if (x.empty()) return ranges::from_interval({}, grid, precision);
    const double fraction = keep > 0 && keep < 1 ? keep : 1.0;
    const auto rank = [&](double part) {
      const auto wanted = static_cast<std::size_t>(std::ceil(part * static_cast<double>(x.size())));
      return wanted < 1 ? std::size_t{1} : wanted > x.size() ? x.size() : wanted;
    };
    if (grid.zero == Zero::symmetric) {
      const float limit = order_statistic(x, Compare::magnitudes, rank(fraction));
      return ranges::from_interval({-limit, limit}, grid, precision);
    }
    const std::size_t high = rank(1 - (1 - fraction) / 2);
    const Interval range = {order_statistic(x, Compare::values, x.size() + 1 - high),
                            order_statistic(x, Compare::values, high)};
    return ranges::from_interval(range, grid, precision);
  }
};

/// Least squared error: scales from the min-max one downwards in steps of 2^(1/16) until the range would clip at the
/// root mean square (affine: with the zero point following), then descent from the one whose codes promise most.
/// Never worse than MinMaxRange.
struct MseRange {
  [[nodiscard]] CodeGrid find(std::span<const float> x, const Grid& grid, ScalePrecision precision) const noexcept {
    const CodeGrid start = MinMaxRange{}.find(x, grid, precision);
    if (start.scale == 0) return start;
    ranges::Candidate best = ranges::evaluate(x, start);
    ranges::Candidate promising = best;
    const auto gain = [](const ranges::Candidate& c) {
      return c.fit.d_dot_d > 0 ? c.fit.x_dot_d * c.fit.x_dot_d / c.fit.d_dot_d : 0.0;
    };
    const auto consider = [&](const CodeGrid& candidate) {
      const ranges::Candidate next = ranges::evaluate(x, candidate);
      if (next.fit.squared_error < best.fit.squared_error) best = next;
      // The error that this candidate's codes reach with their own best scale is |x|^2 - gain.
      if (gain(next) > gain(promising)) promising = next;
      return next;
    };
    const double reach = grid.zero == Zero::affine ? start.max_code : symmetric_zero(grid);
    const double lowest = std::sqrt(sum_of_squares(x) / static_cast<double>(x.size())) / reach;
    ranges::Candidate at = best;
    for (double scale = 1.04427378242741384 * start.scale; scale > lowest; scale *= 0.957603280698573647) {
      CodeGrid candidate = at.grid;
      candidate.scale = ranges::stored(scale, precision);
      if (candidate.scale == 0) break;
      at = consider(candidate);
      if (grid.zero == Zero::symmetric) continue;
      const int step = 1 + start.max_code / 16;
      for (const int shift : {-step, step}) {
        const int zero = candidate.zero + shift;
        if (zero < 0 || zero > candidate.max_code) continue;
        const ranges::Candidate next = consider({candidate.scale, zero, candidate.max_code});
        if (next.fit.squared_error < at.fit.squared_error) at = next;
      }
    }
    promising = ranges::descend(x, promising, grid.zero, precision);
    return promising.fit.squared_error < best.fit.squared_error ? promising.grid : best.grid;
  }
};

static_assert(RangeFinder<MinMaxRange> && RangeFinder<ClippedRange> && RangeFinder<MseRange>);

}  // namespace CBQ_ABI
}  // namespace cbq
