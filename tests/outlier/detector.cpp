// SPDX-License-Identifier: Apache-2.0
#include <cbq/outlier/detector.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <string>
#include <vector>

#include <cbq/outlier/iqr.hpp>
#include <cbq/outlier/percentile.hpp>

namespace {

template <class T>
double quantile_of(const std::vector<T>& ascending, double level) {
  return cbq::quantile(std::span<const T>(ascending), level);
}

}  // namespace

TEMPLATE_TEST_CASE("quantiles interpolate linearly between ranks", "", float, double) {
  const std::vector<TestType> v = {1, 2, 3, 100};
  CHECK(quantile_of(v, 0.25) == 1.75);
  CHECK(quantile_of(v, 0.75) == 27.25);
  CHECK(quantile_of(v, 0) == 1);
  CHECK(quantile_of(v, 1) == 100);
  CHECK(quantile_of(v, -3) == 1);
  CHECK(quantile_of(v, 7) == 100);
  CHECK(quantile_of(v, NAN) == 1);
  CHECK(quantile_of(std::vector<TestType>{5}, 0.3) == 5);
  CHECK(quantile_of(std::vector<TestType>{}, 0.3) == 0);
}

TEST_CASE("outliers are found in any order, by magnitude") {
  std::vector<float> values(20, 1.0f);
  values[3] = -30.0f;
  values[11] = 12.0f;
  const auto cut = cbq::find_outliers(std::span<const float>(values), cbq::Iqr{});
  REQUIRE(cut);
  CHECK(cut->count == 2);
  CHECK(cut->threshold == 1.0);
}

TEMPLATE_TEST_CASE("a value that is not finite is an error that names it", "", float, double) {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    std::vector<TestType> values(20, TestType{1});
    values[7] = static_cast<TestType>(bad);
    const auto cut = cbq::find_outliers(std::span<const TestType>(values), cbq::Iqr{});
    REQUIRE_FALSE(cut);
    CHECK(cut.error().code == cbq::Errc::not_finite);
    CHECK(std::string(cut.error().where.c_str()) == "value 7");
  }
}

TEST_CASE("the relative gap is that of the smallest outlier to the threshold") {
  const std::vector<double> ascending = {1, 2, 4, 10, 11};
  const std::span<const double> span(ascending);
  CHECK(cbq::relative_gap(span, {4, 2}) == 2.5);
  CHECK(cbq::relative_gap(span, {11, 0}) == 0);
  CHECK(cbq::relative_gap(span, {0, 5}) == 0);
  CHECK(cbq::relative_gap(span, cbq::Cut{}) == 0);
}

TEST_CASE("a percentile flags what lies above it, equal values never") {
  std::vector<float> ascending(1001);
  for (std::size_t i = 0; i < ascending.size(); ++i) ascending[i] = static_cast<float>(i);
  CHECK(cbq::Percentile{0.99}.detect(std::span<const float>(ascending)).count == 10);
  CHECK(cbq::Percentile{1.0}.detect(std::span<const float>(ascending)).count == 0);
  const std::vector<float> equal(100, 3.0f);
  CHECK(cbq::Percentile{0.5}.detect(std::span<const float>(equal)).count == 0);
  CHECK(cbq::Percentile{}.detect(std::span<const float>{}).count == 0);
}
