// SPDX-License-Identifier: Apache-2.0
#pragma once

// InterIntra: the fine step of CBQ's outlier detection. Splits the candidates v, sorted in ascending order, into
// reserved ones v[0 .. k) and outliers v[k .. n), at least one of each, so that the two sets lie far apart and the
// reserved ones close together: the k with the largest
//
//   M = |v[k] - v[k-1]|^p - lambda2 Var(v[0 .. k))         variance unbiased, 0 of one element
//
// and of several such the one with the fewest outliers. The cut is at v[k-1], the largest reserved value.
//
// With p = 1 the two terms have different units, and the split would depend on the unit of v; therefore candidates are
// divided by the coarse threshold first. p = 2 has no such problem and misses graded clusters: of 20, 22, 25, 30, 40,
// 60 it takes only the last. CBQ (arXiv 2312.07950) leaves p open; {.inter_power = 1, .unit = CandidateUnit::as_given}
// is what published code does. One pass, sums in double.

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>

#include <cbq/outlier/detector.hpp>

namespace cbq {

/// What the fine split measures candidates in.
enum class CandidateUnit : unsigned char {
  threshold,  ///< multiples of the coarse threshold: the result does not depend on the unit of the values
  as_given,   ///< the values as they are
};

inline namespace CBQ_ABI {

struct InterIntra {
  double lambda2 = 1.0;  ///< weight of the spread of the reserved candidates
  int inter_power = 1;   ///< p: 1, or 2 for everything else
  CandidateUnit unit = CandidateUnit::threshold;

  template <std::floating_point T>
  [[nodiscard]] Cut refine(std::span<const T> candidates, double threshold) const noexcept {
    if (candidates.size() < 2) return {threshold, candidates.size()};
    const double step = unit == CandidateUnit::as_given ? 1.0 : scale_of(candidates, threshold);
    const auto first = static_cast<double>(candidates.front()) / step;
    double sum = 0, squares = 0;  // of the reserved candidates less the smallest, so that no digits cancel
    double best = -std::numeric_limits<double>::infinity();
    std::size_t reserved = candidates.size() - 1;
    for (std::size_t k = 1; k < candidates.size(); ++k) {
      const double last = static_cast<double>(candidates[k - 1]) / step;
      sum += last - first;
      squares += (last - first) * (last - first);
      const auto count = static_cast<double>(k);
      const double variance = k < 2 ? 0.0 : std::max(0.0, (squares - sum * sum / count) / (count - 1));
      const double gap = static_cast<double>(candidates[k]) / step - last;
      const double metric = (inter_power == 1 ? gap : gap * gap) - lambda2 * variance;
      if (metric >= best) {
        best = metric;
        reserved = k;
      }
    }
    return outlier::cut_at(candidates, static_cast<double>(candidates[reserved - 1]));
  }

 private:
  /// The threshold; the largest candidate where the threshold is no measure of the candidates.
  template <std::floating_point T>
  [[nodiscard]] static double scale_of(std::span<const T> candidates, double threshold) noexcept {
    const auto largest = static_cast<double>(candidates.back());
    if (threshold > 0 && threshold > largest * 1e-60) return threshold;
    return largest > 0 ? largest : 1.0;
  }
};

static_assert(OutlierRefiner<InterIntra, float> && OutlierRefiner<InterIntra, double>);

}  // namespace CBQ_ABI
}  // namespace cbq
