// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/trip.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "oracle/quant.hpp"

using namespace cbq;

namespace {

Grid tensor_grid_of(int bits, Zero zero) {
  return {.bits = bits, .granularity = Granularity::per_tensor, .zero = zero};
}

MatrixView<const float> rows_of(const std::vector<float>& x, std::size_t channels) {
  return matrix_view(x.data(), x.size() / channels, channels);
}

Interval range_of(const std::vector<float>& x) {
  return {*std::min_element(x.begin(), x.end()), *std::max_element(x.begin(), x.end())};
}

/// Squared error of one channel under the step s_1 2^exponent, by the definition and in double.
double error_of(const std::vector<float>& x, std::size_t channels, std::size_t channel, const TripFactors& factors,
                const TripOptions& options, int exponent) {
  const double step = static_cast<double>(factors.grid().scale) * std::exp2(exponent);
  const double top = options.grid.zero == Zero::affine ? (1 << options.grid.bits) - 1 - factors.grid().zero
                                                       : (1 << (options.grid.bits - 1)) - 1;
  const double bottom = options.grid.zero == Zero::affine ? -factors.grid().zero : -top;
  double sum = 0;
  for (std::size_t i = channel; i < x.size(); i += channels) {
    const double value = static_cast<double>(x[i]);
    const double code = std::clamp(std::nearbyint(value / step), bottom, top);
    sum += (value - step * code) * (value - step * code);
  }
  return sum;
}

}  // namespace

TEST_CASE("The published construction on three channels") {
  const std::vector<float> x = {0.1f, -0.2f, 8.0f, 0.3f, 0.15f, -6.0f, -0.25f, 0.4f, 7.0f, 0.2f, -0.1f, -7.5f};
  const auto factors = find_trip_factors(rows_of(x, 3), range_of(x), {tensor_grid_of(8, Zero::affine), 3});
  REQUIRE(factors);
  CHECK(factors->grid().scale == Catch::Approx(0.0607843 / 8).epsilon(1e-6));
  CHECK(factors->grid().zero == 123);
  CHECK(std::vector<int>(factors->exponents().begin(), factors->exponents().end()) == std::vector<int>{0, 0, 3});
}

TEST_CASE("Each channel gets the exponent of the least squared error") {
  const std::size_t channels = 37, tokens = 130;
  std::vector<float> x = oracle::random_weights(tokens * channels, 7);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= std::exp2(static_cast<float>(i % channels % 6)) + 0.3f;
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    for (const int bits : {4, 8}) {
      for (const int largest : {0, 1, 3, 20}) {
        const TripOptions options = {tensor_grid_of(bits, zero), largest};
        const auto factors = find_trip_factors(rows_of(x, channels), range_of(x), options);
        REQUIRE(factors);
        REQUIRE(factors->exponents().size() == channels);
        const StaticGrid whole = static_grid(options.grid, range_of(x).low, range_of(x).high);
        CHECK(factors->grid().scale == std::ldexp(whole.scale, -largest));
        CHECK(factors->grid().zero == whole.zero);
        int worse = 0, wide = 0;
        for (std::size_t c = 0; c < channels; ++c) {
          const int found = factors->exponents()[c];
          REQUIRE(found <= largest);
          wide += found == largest ? 1 : 0;
          double best = error_of(x, channels, c, *factors, options, 0);
          for (int a = 1; a <= largest; ++a) best = std::min(best, error_of(x, channels, c, *factors, options, a));
          worse += error_of(x, channels, c, *factors, options, found) <= best * (1 + 1e-5) ? 0 : 1;
        }
        CAPTURE(bits, largest);
        CHECK(worse == 0);
        if (largest == 3) CHECK((wide > 0 && wide < static_cast<int>(channels)));
      }
    }
  }
}

TEST_CASE("Equal errors take the smallest exponent, and zeros a scale of zero") {
  // Only multiples of 8 s_1 that all steps hold, and a channel of zeros.
  const std::vector<float> x = {56.0f, 8.0f, 0.0f, -56.0f, -8.0f, 0.0f};
  const auto factors = find_trip_factors(rows_of(x, 3), {-56.0f, 56.0f}, {tensor_grid_of(4, Zero::symmetric), 3});
  REQUIRE(factors);
  CHECK(factors->grid() == StaticGrid{1.0f, 0});
  CHECK(factors->exponents()[0] == 3);  // 56 needs it
  CHECK(factors->exponents()[1] == 1);  // 8 = 4 * 2
  CHECK(factors->exponents()[2] == 0);
  const std::vector<float> zeros(6);
  const auto none = find_trip_factors(rows_of(zeros, 3), {}, {});
  REQUIRE(none);
  CHECK(none->grid() == StaticGrid{});
  CHECK(none->exponents()[0] == 0);
}

TEST_CASE("Multipliers are powers of two") {
  const std::vector<std::uint8_t> exponents = {0, 1, 3, 20};
  std::vector<float> factors(4);
  REQUIRE(trip_multipliers(exponents, factors));
  CHECK(factors == std::vector<float>{1.0f, 2.0f, 8.0f, 1048576.0f});
  CHECK(trip_multipliers(exponents, std::span(factors).first(3)).error().code == Errc::bad_shape);
  const std::vector<std::uint8_t> wrong = {0, 1, 21, 0};
  CHECK(trip_multipliers(wrong, factors).error().code == Errc::bad_argument);
}

TEST_CASE("Classes of channels that could overflow their sum are refused at the stated bound") {
  const Scheme scheme = with_tensor_activations(schemes::w4a4);
  const auto affine = with_tensor_activations(make_scheme(8, 4, 0, Zero::affine));
  // 15 * 7 * channels and 255 * 15 * channels, at most 2^31 - 1.
  for (const auto& [one, most] : {std::pair{scheme, 20452225u}, std::pair{affine, 561433u}}) {
    std::vector<std::uint8_t> exponents(most, 20);
    exponents.push_back(3);  // another class
    CHECK(check_trip_sums(one, exponents));
    exponents.push_back(20);
    const Status refused = check_trip_sums(one, exponents);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::bad_argument);
    CHECK(std::string(refused.error().where.c_str()) == "channel " + std::to_string(exponents.size() - 1));
  }
  CHECK(check_trip_sums(scheme, std::vector<std::uint8_t>{21}).error().code == Errc::bad_argument);
}

TEST_CASE("Bad options and activations are refused") {
  std::vector<float> x(6, 1.0f);
  const auto code = [&](const TripOptions& options, Interval range = {-1, 1}) {
    const auto factors = find_trip_factors(rows_of(x, 3), range, options);
    REQUIRE_FALSE(factors);
    return factors.error().code;
  };
  CHECK(code({tensor_grid_of(4, Zero::symmetric), -1}) == Errc::bad_argument);
  CHECK(code({tensor_grid_of(4, Zero::symmetric), 21}) == Errc::bad_argument);
  CHECK(code({tensor_grid_of(1, Zero::symmetric), 3}) == Errc::bad_argument);
  CHECK(code({tensor_grid_of(9, Zero::symmetric), 3}) == Errc::bad_argument);
  CHECK(code({}, {0, INFINITY}) == Errc::not_finite);
  CHECK(code({tensor_grid_of(8, Zero::symmetric), 20}, {0, 0x1p-100f}) == Errc::bad_argument);  // s_1 is subnormal
  x[4] = NAN;
  CHECK(code({}) == Errc::not_finite);
}
