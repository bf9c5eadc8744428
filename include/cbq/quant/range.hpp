// SPDX-License-Identifier: Apache-2.0
#pragma once

// Range finders: which scale and zero point a group of weights (or any row segment) gets. One concept, three policies.
//
//   MinMaxRange    nothing is clipped: s = max|x| / (2^(b-1) - 1), affine s = (max - min) / (2^b - 1). One pass.
//   ClippedRange   the same after cutting a fraction of the largest magnitudes. 32 passes (64 affine).
//   MseRange       the scale (and zero point) with the least squared error found by search; the default for weights.
//                  20 to 40 passes with 4 bits, up to 110 with others (affine 35 to 75, 150), each over one group
//                  that stays in the L1 cache.
//
// A symmetric grid has one code more below zero than above, s -2^(b-1) .. s (2^(b-1) - 1), so the sign of s decides
// which side of the values gets it. MseRange tries both signs; the other two are positive. Affine scales are positive.
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

/// The scale at the wanted precision and with its sign, 0 where too small.
[[nodiscard]] constexpr float stored(double scale, ScalePrecision precision) noexcept {
  const double largest = 0x1.ffcp127;  // 11 significant bits
  const auto value = static_cast<float>(scale < -largest ? -largest : scale > largest ? largest : scale);
  if (!(magnitude(value) >= smallest_scale)) return 0;
  return precision == ScalePrecision::half ? round_scale(value) : value;
}

/// Grid from an interval: symmetric around 0, or the affine one that contains 0.
[[nodiscard]] inline CodeGrid from_interval(Interval x, const Grid& grid, ScalePrecision precision) noexcept {
  const int top = max_code(grid);
  if (grid.zero == Zero::symmetric) {
    const int zero = symmetric_zero(grid);
    const double limit = x.high > -x.low ? static_cast<double>(x.high) : -static_cast<double>(x.low);
    return {stored(limit / (top - zero), precision), zero, top};
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

/// A lower bound on the squared error of `grid`, and of the same grid with a smaller scale and any zero point: what the
/// ends of the range lose to clipping.
[[nodiscard]] inline double clipping_error(const Interval& x, const CodeGrid& grid, Zero zero) noexcept {
  const auto positive = [](double v) { return v > 0 ? v : 0.0; };
  const double ends[2] = {static_cast<double>(grid.scale) * -grid.zero,
                          static_cast<double>(grid.scale) * (grid.max_code - grid.zero)};
  const double above = positive(static_cast<double>(x.high)), below = positive(-static_cast<double>(x.low));
  if (zero == Zero::affine) {
    const double lost = positive(above + below - (ends[1] - ends[0]));
    return lost * lost / 2;  // shared among the ends at best
  }
  const double lost_above = positive(above - (grid.scale < 0 ? ends[0] : ends[1]));
  const double lost_below = positive(below + (grid.scale < 0 ? ends[1] : ends[0]));
  return lost_above * lost_above + lost_below * lost_below;
}

/// The search of MseRange on one segment.
class MseSearch {
 public:
  MseSearch(std::span<const float> x, const Grid& grid, ScalePrecision precision) noexcept
      : x_(x), extremes_(min_max(x)), zero_(grid.zero), precision_(precision) {}

  [[nodiscard]] CodeGrid find(const CodeGrid& covering) noexcept {
    best_ = promising_ = evaluate(x_, covering);
    const double reach = zero_ == Zero::affine ? covering.max_code : covering.zero;
    smallest_ = std::sqrt(sum_of_squares(x_) / static_cast<double>(x_.size())) / reach;
    sweep(covering, 1);
    if (zero_ == Zero::symmetric) sweep(covering, -1);
    promising_ = descend(x_, promising_, zero_, precision_);
    return promising_.fit.squared_error < best_.fit.squared_error ? promising_.grid : best_.grid;
  }

 private:
  /// Considers the scales of one sign, largest first.
  void sweep(const CodeGrid& covering, int sign) noexcept {
    const double top = static_cast<double>(covering.scale);
    const double coarse = 1 - 1.0 / 24;
    const double fine = covering.max_code < 16 ? coarse : 1 - 2.0 / (3 * (covering.max_code + 1));
    CodeGrid at = covering;
    for (double scale = 1.1 * top; scale > smallest_; scale *= scale > 0.9 * top ? fine : coarse) {
      at.scale = stored(sign * scale, precision_);
      if (at.scale == 0 || clipping_error(extremes_, at, zero_) >= best_.fit.squared_error) return;
      Candidate here = consider(at);
      if (zero_ == Zero::symmetric) continue;
      const int step = 1 + at.max_code / 16;
      for (const int shift : {-step, step}) {
        const int zero = at.zero + shift;
        if (zero < 0 || zero > at.max_code) continue;
        const Candidate next = consider({at.scale, zero, at.max_code});
        if (next.fit.squared_error < here.fit.squared_error) here = next;
      }
      at = here.grid;
    }
  }

  Candidate consider(const CodeGrid& grid) noexcept {
    const Candidate next = evaluate(x_, grid);
    if (next.fit.squared_error < best_.fit.squared_error) best_ = next;
    // The error that this candidate's codes reach with their own best scale is |x|^2 - gain.
    if (gain(next) > gain(promising_)) promising_ = next;
    return next;
  }

  [[nodiscard]] static double gain(const Candidate& c) noexcept {
    return c.fit.d_dot_d > 0 ? c.fit.x_dot_d * c.fit.x_dot_d / c.fit.d_dot_d : 0.0;
  }

  std::span<const float> x_;
  Interval extremes_;
  Zero zero_;
  ScalePrecision precision_;
  double smallest_ = 0;
  Candidate best_;
  Candidate promising_;
};

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

/// Least squared error. For each sign (affine: with the zero point following) scales from 1.1 times the min-max one
/// downwards in steps of 1/24, near the top in ones that move the largest element by a third of a code if that is less,
/// until clipping at the ends alone costs more than the best grid so far or the range would end at the root mean
/// square; then descent from the scale whose codes promise most. Never worse than MinMaxRange. Where the squares leave
/// the range of float, elements of about 2^64 and more, it is MinMaxRange.
struct MseRange {
  [[nodiscard]] CodeGrid find(std::span<const float> x, const Grid& grid, ScalePrecision precision) const noexcept {
    const CodeGrid start = MinMaxRange{}.find(x, grid, precision);
    if (start.scale == 0) return start;
    return ranges::MseSearch(x, grid, precision).find(start);
  }
};

static_assert(RangeFinder<MinMaxRange> && RangeFinder<ClippedRange> && RangeFinder<MseRange>);

}  // namespace CBQ_ABI
}  // namespace cbq
