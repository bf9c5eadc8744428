// SPDX-License-Identifier: Apache-2.0
#pragma once

// Clipping for the least squared error (OMSE; Choukroun et al., 2019), a baseline for truncation and for initial steps:
// for each row, or each group of it, the ratio c of
//
//   c = argmin sum_j E[x_j^2] (w_j - Q_c(w_j))^2,    w <- clamp(w, c min(w), c max(w))     symmetric: +-c max |w|
//
// is sought from 1 downwards; Q_c is the min-max grid of the clamped weights. Unlike MseRange, which chooses a step, it
// rewrites the weights, so that any later range finder starts from the clipped range. Cost: one pass per ratio.

#include <cmath>
#include <cstddef>
#include <span>

#include <cbq/outlier/row_error.hpp>

namespace cbq {

struct OmseOptions {
  double smallest_ratio = 0.5;
  double step = 0.02;  ///< between ratios
};

inline namespace CBQ_ABI {
namespace omse {

/// The limits of ratio `ratio` for values of which `low` is the smallest and `high` the largest.
[[nodiscard]] inline truncation::Limits limits(const truncation::Limits& range, Zero zero, double ratio) noexcept {
  if (zero == Zero::affine) {
    return {ratio * (range.low < 0 ? range.low : 0.0), ratio * (range.high > 0 ? range.high : 0.0)};
  }
  const double size = range.high > -range.low ? range.high : -range.low;
  return {-ratio * size, ratio * size};
}

template <std::floating_point T>
void clip_segment(std::span<T> weights, const TruncationTarget<T>& target, std::size_t first,
                  const OmseOptions& options, Truncation& done) noexcept {
  truncation::Limits range;
  for (const T weight : weights) {
    const auto value = static_cast<double>(weight);
    range.low = value < range.low ? value : range.low;
    range.high = value > range.high ? value : range.high;
  }
  const auto error_at = [&](double ratio) {
    return truncation::segment_error(std::span<const T>(weights), target, first,
                                     limits(range, target.grid.zero, ratio));
  };
  const double before = error_at(1);
  double best = before, best_ratio = 1;
  // A count, because repeated subtraction would miss the last ratio.
  const auto steps = static_cast<int>((1 - options.smallest_ratio) / options.step + 1e-9);
  for (int i = 1; i <= steps; ++i) {
    const double ratio = 1 - i * options.step;
    const double error = error_at(ratio);
    if (!(error < best)) continue;
    best = error;
    best_ratio = ratio;
  }
  if (best_ratio == 1) return;
  const truncation::Limits kept = limits(range, target.grid.zero, best_ratio);
  std::size_t changed = 0;
  for (T& weight : weights) {
    const auto clamped = static_cast<T>(truncation::clamp(static_cast<double>(weight), kept));
    changed += clamped != weight ? 1 : 0;
    weight = clamped;
  }
  done.elements += changed;
  done.error_before += before;
  done.error_after += best;
}

}  // namespace omse

/// Clips target.weights in place. Errc::bad_argument (grid, 0 < smallest_ratio <= 1, step > 0), Errc::bad_shape,
/// Errc::not_finite naming row and column, and Errc::out_of_memory, upon which some rows may have been clipped.
template <std::floating_point T, Executor E = SerialExecutor>
[[nodiscard]] Result<Truncation> clip_weights(const TruncationTarget<T>& target, const OmseOptions& options = {},
                                              const E& executor = {}) noexcept {
  if (const Status valid = truncation::check(target); !valid) return valid.error();
  if (!(options.smallest_ratio > 0 && options.smallest_ratio <= 1 && options.step >= 1e-4)) {
    return Error{Errc::bad_argument, "clip ratios lie in (0, 1] and at least 0.0001 apart", "omse"};
  }
  const std::size_t length = group_length(target.grid, target.weights.columns);
  return truncation::for_each_row(target.weights, executor, [&](std::size_t r, std::span<T>, Truncation& done) {
    const std::size_t before = done.elements;
    const std::span<T> weights(row(target.weights, r), target.weights.columns);
    for (std::size_t first = 0; first < weights.size(); first += length) {
      const std::size_t size = std::min(length, weights.size() - first);
      omse::clip_segment(weights.subspan(first, size), target, first, options, done);
    }
    done.rows += done.elements != before ? 1 : 0;
  });
}

}  // namespace CBQ_ABI
}  // namespace cbq
