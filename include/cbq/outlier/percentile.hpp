// SPDX-License-Identifier: Apache-2.0
#pragma once

// Percentile: everything above a quantile is an outlier. A baseline: it finds as many outliers where there are none as
// where there are some.

#include <span>

#include <cbq/outlier/detector.hpp>

namespace cbq {
inline namespace CBQ_ABI {

struct Percentile {
  double level = 0.999;  ///< the fraction of the values that is kept

  template <std::floating_point T>
  [[nodiscard]] Cut detect(std::span<const T> ascending) const noexcept {
    if (ascending.empty()) return {};
    return outlier::cut_at(ascending, quantile(ascending, level));
  }
};

static_assert(OutlierDetector<Percentile, float> && OutlierDetector<Percentile, double>);

}  // namespace CBQ_ABI
}  // namespace cbq
