// SPDX-License-Identifier: Apache-2.0
#include <cbq/outlier/coarse_to_fine.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "oracle/outlier.hpp"

using cbq::CandidateUnit;
using cbq::CoarseToFine;
using cbq::Cut;
using cbq::InterIntra;
using cbq::Iqr;

namespace {

template <class T, class Detector>
Cut detect(std::vector<T> values, const Detector& detector) {
  std::sort(values.begin(), values.end());
  return detector.detect(std::span<const T>(values));
}

// The per-channel maxima of docs/outliers.md.
template <class T>
std::vector<T> worked_example() {
  return {T{1},   T(1.1), T(0.9), T(1.2), T(1.05), T(0.95), T(1.15), T{1},
          T(1.3), T(0.8), T(1.1), T{1},   T{3},    T(3.2),  T{12},   T{30}};
}

// Magnitudes of a normal distribution at evenly spaced quantiles, and some planted values.
std::vector<double> half_normal(std::size_t count, const std::vector<double>& planted) {
  std::vector<double> values;
  for (std::size_t i = 0; i < count; ++i) {
    const double level = (static_cast<double>(i) + 0.5) / static_cast<double>(count);
    double low = 0, high = 10;
    while (high - low > 1e-12) {
      const double middle = (low + high) / 2;
      (std::erf(middle / std::sqrt(2.0)) < level ? low : high) = middle;
    }
    values.push_back(low);
  }
  values.insert(values.end(), planted.begin(), planted.end());
  return values;
}

}  // namespace

TEMPLATE_TEST_CASE("the worked example of the coarse fence", "", float, double) {
  const std::vector<TestType> v = worked_example<TestType>();
  const Cut cut = detect(v, Iqr{});
  CHECK(cut.threshold == Catch::Approx(2.8125).epsilon(1e-6));
  CHECK(cut.count == 4);
  const std::vector<TestType> few = {1, 2, 3, 100};
  CHECK(detect(few, Iqr{.smallest_size = 0}).threshold == 65.5);
  CHECK(detect(few, Iqr{.smallest_size = 0}).count == 1);
  CHECK(detect(few, Iqr{}).count == 0);  // four values have no quartiles worth the name
}

TEST_CASE("quantile levels and lambda1 are parameters of the fence") {
  std::vector<double> v(101);
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<double>(i);
  CHECK(detect(v, Iqr{}).threshold == 75 + 1.5 * 50);
  CHECK(detect(v, Iqr{.lower_level = 0.2, .upper_level = 0.8, .lambda1 = 0.25}).threshold == Catch::Approx(95));
  CHECK(detect(v, Iqr{.lower_level = 0.2, .upper_level = 0.8, .lambda1 = 0.25}).count == 5);
  CHECK(detect(v, Iqr{.smallest_size = 101}).threshold == 150);
  CHECK(std::isinf(detect(v, Iqr{.smallest_size = 102}).threshold));
}

TEMPLATE_TEST_CASE("the worked example of the fine split", "", float, double) {
  const std::vector<TestType> v = worked_example<TestType>();
  const Cut cut = detect(v, CoarseToFine<Iqr, InterIntra>{});
  CHECK(cut.threshold == Catch::Approx(3.2));
  CHECK(cut.count == 2);
  const Cut squared = detect(v, CoarseToFine<>{.fine = {.inter_power = 2}});
  CHECK(squared.threshold == 12);
  CHECK(squared.count == 1);
}

TEST_CASE("a graded cluster is found whole, and by its squared form only in part") {
  const auto values = half_normal(4096, {20, 22, 25, 30, 40, 60});
  CHECK(detect(values, Iqr{}).count > 50);
  CHECK(detect(values, CoarseToFine<>{}).count == 6);
  CHECK(detect(values, CoarseToFine<>{.fine = {.unit = CandidateUnit::as_given}}).count == 6);
  CHECK(detect(values, CoarseToFine<>{.fine = {.inter_power = 2}}).count == 1);
  CHECK(detect(half_normal(4096, {8}), CoarseToFine<>{}).count == 1);
  CHECK(detect(half_normal(4096, {5, 6, 6, 7, 8, 900, 1200}), CoarseToFine<>{}).count == 2);
}

TEST_CASE("the split depends on the unit of the values only where asked to") {
  const auto values = half_normal(4096, {4.5, 5});
  const auto in_unit = [&](double unit) {
    std::vector<double> scaled = values;
    for (double& v : scaled) v *= unit;
    return scaled;
  };
  const CoarseToFine<> raw{.fine = {.unit = CandidateUnit::as_given}};
  const std::size_t count = detect(values, CoarseToFine<>{}).count;
  for (const double unit : {1e-30, 0.01, 100.0, 1e30}) {
    CHECK(detect(in_unit(unit), CoarseToFine<>{}).count == count);
  }
  CHECK(detect(in_unit(100), raw).count != detect(values, raw).count);
}

TEST_CASE("detection equals trying every split") {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> size(16, 300);
  for (int round = 0; round < 200; ++round) {
    std::vector<double> v(static_cast<std::size_t>(size(random)));
    for (double& x : v) x = std::exp(1.5 * normal(random));
    const double coarse = oracle::fence(v, 1.5);
    CHECK(detect(v, Iqr{}).threshold == Catch::Approx(coarse));
    for (const int power : {1, 2}) {
      for (const auto unit : {CandidateUnit::threshold, CandidateUnit::as_given}) {
        for (const double lambda2 : {0.0, 0.3, 1.0, 2.0}) {
          CAPTURE(round, power, lambda2);
          const InterIntra fine{.lambda2 = lambda2, .inter_power = power, .unit = unit};
          const double wanted =
              oracle::fine_threshold(v, coarse, lambda2, power, unit == CandidateUnit::threshold ? coarse : 1.0);
          const Cut cut = detect(v, CoarseToFine<>{.fine = fine});
          CHECK(cut.threshold == Catch::Approx(wanted));
          CHECK(cut.count == static_cast<std::size_t>(
                                 std::count_if(v.begin(), v.end(), [&](double x) { return x > cut.threshold; })));
        }
      }
    }
  }
}

TEST_CASE("constants, zeros, equal candidates and no values have no outliers") {
  const CoarseToFine<> detector;
  CHECK(detect(std::vector<float>(40, 2.5f), detector).count == 0);
  CHECK(detect(std::vector<float>(40, 0.0f), detector).count == 0);
  CHECK(detect(std::vector<float>{}, detector).count == 0);
  std::vector<float> equal(40, 1.0f);
  std::fill(equal.end() - 4, equal.end(), 9.0f);
  CHECK(detect(equal, Iqr{}).count == 4);
  CHECK(detect(equal, detector).count == 0);
  CHECK(detect(equal, detector).threshold == 9);
}

TEST_CASE("a single candidate is an outlier of the coarse threshold") {
  std::vector<double> v(40, 1.0);
  for (std::size_t i = 0; i < 20; ++i) v[i] = 1.5;
  v.push_back(100);
  CHECK(detect(v, CoarseToFine<>{}).threshold == detect(v, Iqr{}).threshold);
  CHECK(detect(v, CoarseToFine<>{}).count == 1);
}

TEST_CASE("candidates of the ends of the range of their type are measured without overflow") {
  std::vector<double> v(40, 0.0);
  v[3] = 1e300;
  v[4] = 1e308;
  v[5] = 1e-300;
  CHECK(detect(v, CoarseToFine<>{}).count == 1);
  CHECK(detect(v, CoarseToFine<>{}).threshold == 1e300);
}
