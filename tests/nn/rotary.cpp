// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/rotary.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "oracle/nn.hpp"
#include "support/nn.hpp"

using namespace cbq;

namespace {

std::vector<std::uint32_t> consecutive(std::size_t first, std::size_t count) {
  std::vector<std::uint32_t> positions(count);
  for (std::size_t i = 0; i < count; ++i) positions[i] = static_cast<std::uint32_t>(first + i);
  return positions;
}

}  // namespace

TEST_CASE("Rotation equals a complex product, for every head width") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const std::size_t width : {2u, 6u, 8u, 10u, 64u, 80u, 128u}) {
    CAPTURE(width);
    const auto table = RotaryTable::create({.base = 10000.0}, width, 600);
    REQUIRE(table);
    const std::size_t heads = 3, tokens = 40, first = 555;
    auto x = support::normal(tokens * heads * width, 1);
    const auto wanted =
        oracle::rotary(oracle::Matrix(tokens, heads * width, x), oracle::rotary_frequencies(10000.0, width), first);
    REQUIRE(table->rotate(support::view(x, heads * width), consecutive(first, tokens), context));
    CHECK(oracle::distance(x, wanted) < 3e-7);
  }
}

TEST_CASE("Positions need not be consecutive") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto table = RotaryTable::create({}, 16, 100);
  const auto x = support::normal(3 * 16, 2);
  auto some = x, each = x;
  const std::vector<std::uint32_t> positions = {99, 0, 42};
  REQUIRE(table->rotate(support::view(some, 16), positions, context));
  for (std::size_t t = 0; t < 3; ++t) {
    REQUIRE(table->rotate(matrix_view(each.data() + t * 16, 1, 16), {&positions[t], 1}, context));
  }
  CHECK(some == each);
  for (std::size_t i = 16; i < 32; ++i) CHECK(some[i] == x[i]);  // position 0
}

TEST_CASE("Rotating back undoes a rotation") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const std::size_t width : {2u, 10u, 64u}) {
    const auto table = RotaryTable::create({}, width, 700);
    REQUIRE(table);
    const auto x = support::normal(5 * width, 3);
    auto there = x;
    const std::vector<std::uint32_t> positions = {1, 699, 0, 64, 65};
    REQUIRE(table->rotate(support::view(there, width), positions, context));
    CHECK(oracle::distance(there, oracle::Matrix(5, width, x)) > 0.1);
    REQUIRE(table->rotate(support::view(there, width), positions, context, RotaryDirection::backward));
    CHECK(oracle::distance(there, oracle::Matrix(5, width, x)) < 3e-7);
  }
}

TEST_CASE("Scaled frequencies") {
  // Llama 3.2 1B: rope_theta 500000, head_dim 64, factor 32, low 1, high 4, original 8192. The values come from the
  // definition by wavelengths, worked out by hand for one pair of each kind.
  const RotaryConfig llama3{.base = 500000.0,
                            .scaling = RotaryScaling::llama3,
                            .factor = 32.0,
                            .low_frequency_factor = 1.0,
                            .high_frequency_factor = 4.0,
                            .original_positions = 8192.0};
  const auto frequencies = oracle::rotary_frequencies(500000.0, 64);
  const double two_pi = 2 * std::acos(-1.0);
  int kept = 0, divided = 0, blended = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    CAPTURE(i);
    const double wavelength = two_pi / frequencies[i];
    double wanted = frequencies[i];
    if (wavelength > 8192.0 / 1.0) {
      wanted = frequencies[i] / 32.0;
      ++divided;
    } else if (wavelength >= 8192.0 / 4.0) {
      const double smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
      wanted = (1 - smooth) * (frequencies[i] / 32.0) + smooth * frequencies[i];
      ++blended;
    } else {
      ++kept;
    }
    CHECK(rotary_frequency(llama3, 64, i) == Catch::Approx(wanted).epsilon(1e-12));
    CHECK(rotary_frequency({.base = 500000.0, .scaling = RotaryScaling::linear, .factor = 4.0}, 64, i) ==
          Catch::Approx(frequencies[i] / 4.0).epsilon(1e-12));
  }
  CHECK(kept == 15);  // wavelengths below 2048: 2 pi 500000^(i/32) < 2048 for i <= 14
  CHECK(blended == 3);
  CHECK(divided == 14);
}

TEST_CASE("A factor for each pair divides its frequency") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const std::size_t width : {2u, 10u, 64u}) {
    CAPTURE(width);
    RotaryConfig config{.base = 500.0, .scaling = RotaryScaling::per_pair};
    auto frequencies = oracle::rotary_frequencies(500.0, width);
    for (std::size_t i = 0; i < width / 2; ++i) {
      config.pair_factors.push_back(0.3f + 1.7f * static_cast<float>(i * i % 5));
      frequencies[i] /= static_cast<double>(config.pair_factors[i]);
      CHECK(rotary_factor(config, width, i) == static_cast<double>(config.pair_factors[i]));
    }
    const auto table = RotaryTable::create(config, width, 600);
    REQUIRE(table);
    auto x = support::normal(20 * 2 * width, 4);
    const auto wanted = oracle::rotary(oracle::Matrix(20, 2 * width, x), frequencies, 570);
    REQUIRE(table->rotate(support::view(x, 2 * width), consecutive(570, 20), context));
    CHECK(oracle::distance(x, wanted) < 3e-7);
  }
}

TEST_CASE("Factors of a rule say the same one by one") {
  for (const RotaryConfig& rule :
       {RotaryConfig{.base = 500000.0, .scaling = RotaryScaling::llama3, .factor = 8.0},
        RotaryConfig{.base = 500000.0, .scaling = RotaryScaling::linear, .factor = 4.0}, RotaryConfig{}}) {
    RotaryConfig factors{.base = rule.base, .scaling = RotaryScaling::per_pair};
    for (std::size_t i = 0; i < 64; ++i) {
      factors.pair_factors.push_back(static_cast<float>(rotary_factor(rule, 128, i)));
    }
    for (std::size_t i = 0; i < 64; ++i) {
      CHECK(rotary_frequency(factors, 128, i) == Catch::Approx(rotary_frequency(rule, 128, i)).epsilon(1e-7));
    }
    CHECK(factors.pair_factors.front() == (rule.scaling == RotaryScaling::linear ? 4.0f : 1.0f));
    CHECK(static_cast<double>(factors.pair_factors.back()) == rule.factor);
  }
}

TEST_CASE("Rotary tables refuse what does not fit") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  CHECK(RotaryTable::create({}, 0, 10).error().code == Errc::bad_shape);
  CHECK(RotaryTable::create({}, 7, 10).error().code == Errc::bad_shape);
  CHECK(RotaryTable::create({.base = 0.0}, 8, 10).error().code == Errc::bad_argument);
  CHECK(RotaryTable::create({.scaling = RotaryScaling::linear, .factor = -1.0}, 8, 10).error().code ==
        Errc::bad_argument);
  CHECK(RotaryTable::create({.scaling = RotaryScaling::llama3, .low_frequency_factor = 4.0}, 8, 10).error().code ==
        Errc::bad_argument);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  CHECK(RotaryTable::create({.base = infinity}, 8, 10).error().code == Errc::bad_argument);
  CHECK(
      RotaryTable::create({.scaling = RotaryScaling::llama3, .high_frequency_factor = infinity}, 8, 10).error().code ==
      Errc::bad_argument);
  const auto with_factors = [](std::vector<float> factors) {
    return RotaryTable::create({.scaling = RotaryScaling::per_pair, .pair_factors = std::move(factors)}, 8, 10);
  };
  CHECK(with_factors({1, 2, 3, 4}));
  CHECK(with_factors({}).error().code == Errc::bad_shape);
  CHECK(with_factors({1, 2, 3}).error().code == Errc::bad_shape);
  CHECK(with_factors({1, 2, 3, 4, 5}).error().code == Errc::bad_shape);
  for (const float bad : {0.0f, -1.0f, static_cast<float>(infinity), std::numeric_limits<float>::quiet_NaN()}) {
    const auto refused = with_factors({1, 2, bad, 4});
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::bad_argument);
    CHECK(std::string(refused.error().where.c_str()) == "pair_factors[2]");
  }
  const auto table = RotaryTable::create({}, 8, 10);
  std::vector<float> x(16);
  const std::vector<std::uint32_t> beyond = {3, 10};
  CHECK(table->rotate(support::view(x, 8), beyond, context).error().code == Errc::bad_argument);
  CHECK(table->rotate(support::view(x, 16), beyond, context).error().code == Errc::bad_shape);
  CHECK(table->rotate(matrix_view(x.data(), 2, 7), beyond, context).error().code == Errc::bad_shape);
}
