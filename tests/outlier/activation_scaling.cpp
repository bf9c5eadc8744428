// SPDX-License-Identifier: Apache-2.0
#include <cbq/outlier/activation_scaling.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <string>
#include <vector>

using cbq::Errc;
using cbq::ScalingOptions;

namespace {

template <class T>
std::vector<T> worked_example() {
  return {T{1},   T(1.1), T(0.9), T(1.2), T(1.05), T(0.95), T(1.15), T{1},
          T(1.3), T(0.8), T(1.1), T{1},   T{3},    T(3.2),  T{12},   T{30}};
}

template <class T>
std::vector<T> factors_of(const std::vector<T>& sizes, const ScalingOptions& options = {}) {
  std::vector<T> factors(sizes.size(), T{-1});
  REQUIRE(cbq::find_scaling_factors(std::span<const T>(sizes), std::span<T>(factors), cbq::CoarseToFine<>{}, options));
  return factors;
}

template <class T>
std::vector<T> two_sided(const std::vector<T>& minima, const std::vector<T>& maxima) {
  std::vector<T> factors(maxima.size());
  REQUIRE(cbq::find_two_sided_scaling_factors(cbq::ChannelExtremes<T>{minima, maxima}, std::span<T>(factors)));
  return factors;
}

}  // namespace

TEMPLATE_TEST_CASE("the worked example of scaling", "", float, double) {
  const std::vector<TestType> factors = factors_of(worked_example<TestType>());
  for (std::size_t i = 0; i < 14; ++i) CHECK(factors[i] == 1);
  CHECK(static_cast<double>(factors[14]) == Catch::Approx(1.936492).margin(1e-6));
  CHECK(static_cast<double>(factors[15]) == Catch::Approx(3.061862).margin(1e-6));
  const std::vector<TestType> steeper = factors_of(worked_example<TestType>(), {.exponent = 0.7});
  CHECK(static_cast<double>(steeper[15]) == Catch::Approx(std::pow(30 / 3.2, 0.7)));
  for (const TestType f : factors_of(worked_example<TestType>(), {.exponent = 0})) CHECK(f == 1);
}

TEST_CASE("scaled outliers end between the threshold and where they were") {
  const auto sizes = worked_example<double>();
  const auto factors = factors_of(sizes);
  for (const std::size_t i : {14u, 15u}) {
    CHECK(sizes[i] / factors[i] == Catch::Approx(std::sqrt(sizes[i] * 3.2)));
    CHECK(sizes[i] / factors[i] > 3.2);
    CHECK(sizes[i] / factors[i] < sizes[i]);
  }
}

TEST_CASE("nothing is scaled without a gap, without outliers, or where there is nothing to compare with") {
  std::vector<float> sizes(40, 1.0f);
  const std::vector<float> ones(40, 1.0f);
  CHECK(factors_of(sizes) == ones);
  CHECK(factors_of(std::vector<float>(40, 0.0f)) == ones);
  sizes[5] = 1.19f;
  CHECK(factors_of(sizes) == ones);
  CHECK(factors_of(sizes, {.smallest_gap = 1})[5] == Catch::Approx(std::sqrt(1.19f)));
  sizes[5] = 1.21f;
  CHECK(factors_of(sizes)[5] > 1);
  std::vector<float> dead(40, 0.0f);
  dead[7] = 5;
  CHECK(factors_of(dead) == ones);  // the threshold is 0: a ratio to it would be infinite
  CHECK(factors_of(std::vector<float>{1, 2, 3, 100}) == std::vector<float>(4, 1.0f));  // too few channels
}

TEST_CASE("factors are cut") {
  std::vector<float> sizes(40, 1e-20f);
  sizes[3] = 1e20f;
  CHECK(factors_of(sizes)[3] == 1e4f);
  CHECK(factors_of(sizes, {.largest_factor = 2})[3] == 2);
}

TEST_CASE("two sides are judged by themselves and the larger factor counts") {
  const std::vector<double> sizes = worked_example<double>();
  const std::vector<double> one_sided = factors_of(sizes);
  std::vector<double> mirrored;
  for (const double v : sizes) mirrored.push_back(-v);
  const std::vector<double> small(16, 0.5), small_minima(16, -0.5), zeros(16, 0.0);
  CHECK(two_sided(small_minima, sizes) == one_sided);
  CHECK(two_sided(mirrored, small) == one_sided);
  CHECK(two_sided(zeros, sizes) == one_sided);  // after ReLU nothing is negative
  CHECK(two_sided(mirrored, sizes) == one_sided);
  // A channel that is an outlier on both sides gets the larger of two factors.
  std::vector<double> lower = small_minima;
  lower[15] = -300 * 0.5;
  CHECK(two_sided(lower, sizes)[15] == Catch::Approx(std::sqrt(300.0)));
  CHECK(two_sided(lower, sizes)[14] == one_sided[14]);
  // Channels that are all negative have no upper outliers, whatever their maxima are.
  std::vector<double> negative(16, -3.0);
  negative[4] = -0.1;
  CHECK(two_sided(negative, negative) == std::vector<double>(16, 1.0));
}

TEST_CASE("bad arguments of scaling are named") {
  std::vector<float> sizes(20, 1.0f), factors(20);
  const auto find = [&](const ScalingOptions& options) {
    return cbq::find_scaling_factors(std::span<const float>(sizes), std::span<float>(factors), cbq::CoarseToFine<>{},
                                     options);
  };
  CHECK(find({.exponent = -0.1}).error().code == Errc::bad_argument);
  CHECK(find({.exponent = std::nan("")}).error().code == Errc::bad_argument);
  CHECK(find({.largest_factor = 0.5}).error().code == Errc::bad_argument);
  sizes[11] = std::nanf("");
  const auto failed = find({});
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
  CHECK(std::string(failed.error().where.c_str()) == "channel 11");
  sizes.pop_back();
  CHECK(find({}).error().code == Errc::bad_shape);
  CHECK(cbq::find_two_sided_scaling_factors(cbq::ChannelExtremes<float>{sizes, factors}, std::span<float>(factors))
            .error()
            .code == Errc::bad_shape);
}
