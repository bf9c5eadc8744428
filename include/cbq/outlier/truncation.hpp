// SPDX-License-Identifier: Apache-2.0
#pragma once

// Truncation of weight outliers, the weight half of CBQ's pre-processing (CFP; arXiv 2312.07950): row by row, because
// rows are quantized by themselves,
//
//   w <- clamp(w, -T*, T*)
//
// with T* the largest magnitude that the detector leaves in place. A detector finds something in every row, also in
// rows of normally distributed weights that truncation would only harm. So a row is left alone unless
//   (a) truncation lowers the error of quantizing it (row_error.hpp),
//   (b) the outliers are at most `largest_share` of the row, at least one being allowed,
//   (c) they stand off: smallest outlier / T* >= `smallest_gap`.
// ErrorGuard::none with {.largest_share = 1, .smallest_gap = 1} truncates as the paper writes it. Cost: sorting each
// row.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include <cbq/outlier/coarse_to_fine.hpp>
#include <cbq/outlier/row_error.hpp>

namespace cbq {

enum class ErrorGuard : unsigned char {
  error_must_fall,  ///< guard (a)
  none,
};

struct TruncationOptions {
  double largest_share = 0.001;  ///< guard (b)
  double smallest_gap = 1.2;     ///< guard (c)
  ErrorGuard error_guard = ErrorGuard::error_must_fall;
};

inline namespace CBQ_ABI {
namespace truncation {

/// T* of one row if the guards let it be truncated, else infinity. `sorted` is memory for a row.
template <std::floating_point T, OutlierDetector<T> Detector>
[[nodiscard]] Cut find_cut(std::span<const T> weights, std::span<T> sorted, const Detector& detector,
                           const TruncationOptions& options) noexcept {
  for (std::size_t j = 0; j < weights.size(); ++j) sorted[j] = weights[j] < 0 ? -weights[j] : weights[j];
  std::sort(sorted.begin(), sorted.end());
  const std::span<const T> ascending(sorted);
  const Cut cut = detector.detect(ascending);
  const auto most = std::max(1.0, std::floor(options.largest_share * static_cast<double>(weights.size())));
  if (cut.count == 0 || !(cut.threshold > 0) || static_cast<double>(cut.count) > most) return {};
  return relative_gap(ascending, cut) >= options.smallest_gap ? cut : Cut{};
}

/// Truncates one row if the guards allow it.
template <std::floating_point T, OutlierDetector<T> Detector>
void truncate_row(const TruncationTarget<T>& target, std::size_t index, std::span<T> sorted, const Detector& detector,
                  const TruncationOptions& options, Truncation& done) noexcept {
  const std::span<T> weights(row(target.weights, index), target.weights.columns);
  const Cut cut = find_cut(std::span<const T>(weights), sorted, detector, options);
  if (cut.count == 0) return;
  const double none = std::numeric_limits<double>::infinity();
  const double before = row_error(std::span<const T>(weights), target, {-none, none});
  const double after = row_error(std::span<const T>(weights), target, {-cut.threshold, cut.threshold});
  if (options.error_guard == ErrorGuard::error_must_fall && !(after < before)) return;
  const auto limit = static_cast<T>(cut.threshold);
  for (T& weight : weights) weight = std::clamp(weight, static_cast<T>(-limit), limit);
  done.rows += 1;
  done.elements += cut.count;
  done.error_before += before;
  done.error_after += after;
}

}  // namespace truncation

/// Truncates the rows of target.weights in place under the guards. Errc::bad_argument (grid), Errc::bad_shape,
/// Errc::not_finite naming row and column, and Errc::out_of_memory, upon
/// which some rows may have been truncated.
template <std::floating_point T, OutlierDetector<T> Detector = CoarseToFine<>, Executor E = SerialExecutor>
[[nodiscard]] Result<Truncation> truncate_weights(const TruncationTarget<T>& target, const Detector& detector = {},
                                                  const TruncationOptions& options = {},
                                                  const E& executor = {}) noexcept {
  if (const Status valid = truncation::check(target); !valid) return valid.error();
  return truncation::for_each_row(target.weights, executor, [&](std::size_t r, std::span<T> sorted, Truncation& done) {
    truncation::truncate_row(target, r, sorted, detector, options, done);
  });
}

}  // namespace CBQ_ABI
}  // namespace cbq
