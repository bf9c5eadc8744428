// SPDX-License-Identifier: Apache-2.0
#pragma once

// Outlier detectors: which of a set of magnitudes are too large to share a quantization step with the rest. A detector
// reads the values sorted and returns a Cut; it allocates nothing. find_outliers() sorts for callers that have values
// in any order. Detectors: Iqr and Percentile; InterIntra refines the cut of another one through CoarseToFine.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/result.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {

/// The outliers of a set of values: the `count` largest, which are all those above `threshold`.
struct Cut {
  double threshold = std::numeric_limits<double>::infinity();
  std::size_t count = 0;
};

inline namespace CBQ_ABI {

/// `detect(ascending)`: the outliers of finite values sorted in ascending order. Never fails.
template <class D, class T = float>
concept OutlierDetector = std::floating_point<T> && requires(const D& detector, std::span<const T> ascending) {
  { detector.detect(ascending) } noexcept -> std::same_as<Cut>;
};

/// `refine(candidates, threshold)`: which of the candidates, the two or more values above `threshold` in ascending
/// order, are outliers. Never fails.
template <class R, class T = float>
concept OutlierRefiner =
    std::floating_point<T> && requires(const R& refiner, std::span<const T> candidates, double threshold) {
      { refiner.refine(candidates, threshold) } noexcept -> std::same_as<Cut>;
    };

namespace outlier {

/// Cut at `threshold`: counts the values above it.
template <std::floating_point T>
[[nodiscard]] Cut cut_at(std::span<const T> ascending, double threshold) noexcept {
  const auto above = std::partition_point(ascending.begin(), ascending.end(),
                                          [threshold](T value) { return !(static_cast<double>(value) > threshold); });
  return {threshold, static_cast<std::size_t>(ascending.end() - above)};
}

}  // namespace outlier

/// The value below which the fraction `level` of the values lies: linear interpolation at position level (n - 1) of the
/// ascending values, as NumPy does by default. `level` is cut to [0, 1]; 0 for no values.
template <std::floating_point T>
[[nodiscard]] double quantile(std::span<const T> ascending, double level) noexcept {
  if (ascending.empty()) return 0;
  const double bounded = level > 0 ? (level < 1 ? level : 1.0) : 0.0;
  const double position = bounded * static_cast<double>(ascending.size() - 1);
  const auto index = static_cast<std::size_t>(position);
  const auto low = static_cast<double>(ascending[index]);
  if (index + 1 == ascending.size()) return low;
  return low + (position - static_cast<double>(index)) * (static_cast<double>(ascending[index + 1]) - low);
}

/// How far the outliers stand off: smallest outlier / largest other value, the cut's threshold standing for the latter.
/// 0 without outliers, and where the threshold is not positive: a ratio then says nothing.
template <std::floating_point T>
[[nodiscard]] double relative_gap(std::span<const T> ascending, const Cut& cut) noexcept {
  if (cut.count == 0 || !(cut.threshold > 0)) return 0;
  return static_cast<double>(ascending[ascending.size() - cut.count]) / cut.threshold;
}

/// Outliers among the magnitudes of `values`, in any order; costs a sorted copy. Errc::not_finite naming the first such
/// value, Errc::out_of_memory.
template <std::floating_point T, OutlierDetector<T> Detector>
[[nodiscard]] Result<Cut> find_outliers(std::span<const T> values, const Detector& detector) noexcept {
  Result<AlignedBuffer<T>> sorted = AlignedBuffer<T>::allocate(values.size());
  if (!sorted) return sorted.error();
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!is_finite(values[i])) {
      return Error{Errc::not_finite, "outliers are sought among finite values", ErrorText("value ") << i};
    }
    (*sorted)[i] = values[i] < 0 ? -values[i] : values[i];
  }
  std::sort(sorted->begin(), sorted->end());
  return detector.detect(std::span<const T>(sorted->data(), sorted->size()));
}

}  // namespace CBQ_ABI
}  // namespace cbq
