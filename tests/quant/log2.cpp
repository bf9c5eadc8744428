// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/log2.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <limits>
#include <vector>

using namespace cbq;

namespace {

// The definition, in double.
int wanted_code(float p, int bits) {
  if (p == 0.0f) return 1 << bits;
  const double rounded = std::nearbyint(-std::log2(static_cast<double>(p)));
  return static_cast<int>(std::fmin(std::fmax(rounded, 0.0), 1 << bits));
}

std::vector<float> probabilities() {
  std::vector<float> all = {0.0f, 1.0f, std::nextafter(1.0f, 2.0f), 1e-45f, 0x1p-126f, 0x1p-63f, 1.4f};
  for (int e = 0; e >= -70; --e) {
    const float power = std::ldexp(1.0f, e);
    const float middle = std::ldexp(0x1.6a09e6p-1f, e);  // sqrt(1/2), just below
    for (const float p : {power, middle}) {
      for (const float q : {p, std::nextafter(p, 0.0f), std::nextafter(p, 2.0f)}) all.push_back(q);
    }
    for (int i = 1; i < 40; ++i) all.push_back(power * (0.5f + static_cast<float>(i) / 80.0f));
  }
  return all;
}

}  // namespace

TEST_CASE("Log2 codes are round(-log2 p), beside every power and every middle between two") {
  const std::vector<float> all = probabilities();
  for (const int bits : {1, 4, 6}) {
    const auto quantizer = Log2Quantizer::create(bits);
    REQUIRE(quantizer);
    std::vector<std::uint8_t> codes(all.size());
    std::vector<float> values(all.size());
    const auto x = matrix_view<const float>(all.data(), 1, all.size());
    const auto code_view = matrix_view(codes.data(), 1, codes.size());
    REQUIRE(quantizer->fit(x));
    REQUIRE(quantizer->quantize(x, {}, code_view));
    REQUIRE(quantizer->dequantize(as_const(code_view), {}, matrix_view(values.data(), 1, values.size())));
    int wrong = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const int code = wanted_code(all[i], bits);
      wrong += codes[i] != code;
      wrong += values[i] != (code == 1 << bits ? 0.0f : std::ldexp(1.0f, -code));
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("The worked vector of 4 bits") {
  const float p[] = {0.9f, 0.72f, 0.7f, 0.25f, 0.1f, 0.0001f, 0x1p-15f, 0x1.6ap-16f, 0x1.6bp-16f, 0.0f};
  const int codes[] = {0, 0, 1, 2, 3, 13, 15, 16, 15, 16};
  for (std::size_t i = 0; i < std::size(p); ++i) {
    CAPTURE(p[i]);
    CHECK(log2_code(p[i], 4) == codes[i]);
  }
  CHECK(log2_value(15, 4) == 0x1p-15f);
  CHECK(log2_value(16, 4) == 0.0f);
  CHECK(log2_value(255, 4) == 0.0f);
  CHECK(nearest_power_of_two(0.0f) == 0.0f);
}

TEST_CASE("Log2Quantizer refuses widths, shapes, and what is no probability") {
  CHECK(Log2Quantizer::create(0).error().code == Errc::unsupported);
  CHECK(Log2Quantizer::create(7).error().code == Errc::unsupported);
  const auto quantizer = Log2Quantizer::create(4);
  REQUIRE(quantizer);
  float p[6] = {0.5f, 0.5f, 0.0f, 1.0f, -0.0f, 0.0f};
  std::uint8_t codes[6];
  const auto x = matrix_view<const float>(p, 2, 3);
  CHECK(quantizer->quantize(x, {}, matrix_view(codes, 3, 2)).error().code == Errc::bad_shape);
  REQUIRE(quantizer->quantize(x, {}, matrix_view(codes, 2, 3)));
  CHECK(codes[4] == 16);
  p[4] = -1e-30f;
  const auto negative = quantizer->fit(x);
  REQUIRE_FALSE(negative);
  CHECK(negative.error().code == Errc::bad_argument);
  CHECK(std::string(negative.error().where.c_str()) == "row 1, column 1");
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    p[4] = bad;
    CHECK(quantizer->fit(x).error().code == Errc::not_finite);
  }
}
