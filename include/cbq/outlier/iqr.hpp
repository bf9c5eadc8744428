// SPDX-License-Identifier: Apache-2.0
#pragma once

// Iqr: Tukey's fence, the coarse step of CBQ's outlier detection. Values above
//
//   T = Q3 + lambda1 (Q3 - Q1)
//
// with Q1 and Q3 the lower and upper quartile are outliers (strictly above: equal values never are). About 1.6 % of the
// magnitudes of a normal distribution lie above it, so by itself it flags far too much; CoarseToFine refines it. CBQ
// (arXiv 2312.07950) names lambda1 = 1.5; published code that follows it uses levels of 0.2 and 0.8, or 0.35 and 0.65.

#include <cstddef>
#include <span>

#include <cbq/outlier/detector.hpp>

namespace cbq {
inline namespace CBQ_ABI {

struct Iqr {
  double lower_level = 0.25;       ///< of Q1
  double upper_level = 0.75;       ///< of Q3
  double lambda1 = 1.5;            ///< width of the fence in interquartile ranges
  std::size_t smallest_size = 16;  ///< quartiles of fewer values mean nothing: no outliers

  template <std::floating_point T>
  [[nodiscard]] Cut detect(std::span<const T> ascending) const noexcept {
    if (ascending.empty() || ascending.size() < smallest_size) return {};
    const double low = quantile(ascending, lower_level);
    const double high = quantile(ascending, upper_level);
    return outlier::cut_at(ascending, high + lambda1 * (high - low));
  }
};

static_assert(OutlierDetector<Iqr, float> && OutlierDetector<Iqr, double>);

}  // namespace CBQ_ABI
}  // namespace cbq
