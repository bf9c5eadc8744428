// SPDX-License-Identifier: Apache-2.0
#pragma once

// Outlier detection straight from the definitions, by trying every split; shares nothing with include/cbq.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace oracle {

/// Threshold of Tukey's fence, quartiles by linear interpolation.
inline double fence(std::vector<double> v, double lambda1) {
  std::sort(v.begin(), v.end());
  const auto at = [&](double level) {
    const double position = level * static_cast<double>(v.size() - 1);
    const auto i = static_cast<std::size_t>(std::floor(position));
    const auto j = static_cast<std::size_t>(std::ceil(position));
    return v[i] * (1 - (position - std::floor(position))) + v[j] * (position - std::floor(position));
  };
  return at(0.75) + lambda1 * (at(0.75) - at(0.25));
}

inline double variance(const std::vector<double>& v) {
  if (v.size() < 2) return 0;
  double mean = 0, squares = 0;
  for (const double x : v) mean += x / static_cast<double>(v.size());
  for (const double x : v) squares += (x - mean) * (x - mean);
  return squares / static_cast<double>(v.size() - 1);
}

/// The largest reserved value of the best split of the values above `threshold`; the threshold with fewer than two.
inline double fine_threshold(const std::vector<double>& v, double threshold, double lambda2, double power,
                             double unit) {
  std::vector<double> candidates;
  for (const double x : v) {
    if (x > threshold) candidates.push_back(x / unit);
  }
  if (candidates.size() < 2) return threshold;
  std::sort(candidates.begin(), candidates.end(), [](double a, double b) { return a > b; });
  double best = -INFINITY, cut = 0;
  for (std::size_t outliers = 1; outliers < candidates.size(); ++outliers) {
    const std::vector<double> reserved(candidates.begin() + static_cast<std::ptrdiff_t>(outliers), candidates.end());
    const double metric =
        std::pow(std::fabs(candidates[outliers - 1] - reserved.front()), power) - lambda2 * variance(reserved);
    if (metric > best) {
      best = metric;
      cut = reserved.front() * unit;
    }
  }
  return cut;
}

}  // namespace oracle
