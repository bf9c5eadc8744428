// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/scale.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cfloat>
#include <cmath>
#include <vector>

#include "oracle/quant.hpp"

namespace {

// Nearest multiple of `unit`, ties to even.
double to_multiple(double x, double unit) {
  return oracle::round_half_even(x / unit) * unit;
}

}  // namespace

TEST_CASE("round_scale keeps 11 significant bits, ties to even") {
  for (const float scale : oracle::random_weights(2000, 1, 1e-3)) {
    const double x = std::fabs(static_cast<double>(scale));
    const double unit = std::ldexp(1.0, std::ilogb(x) - 10);
    CHECK(static_cast<double>(cbq::round_scale(static_cast<float>(x))) == to_multiple(x, unit));
    CHECK(cbq::round_scale(-static_cast<float>(x)) == -cbq::round_scale(static_cast<float>(x)));
  }
  CHECK(cbq::round_scale(1.0f + 0x1p-11f) == 1.0f);
  CHECK(cbq::round_scale(1.0f + 0x1p-10f + 0x1p-11f) == 1.0f + 0x1p-9f);
  CHECK(cbq::round_scale(0.0f) == 0.0f);
  CHECK(cbq::round_scale(FLT_MAX) == 0x1.ffcp127f);
  CHECK(cbq::round_scale(-FLT_MAX) == -0x1.ffcp127f);
  CHECK(std::signbit(cbq::round_scale(-0.0f)));
}

TEST_CASE("a rounded scale in the normal range of half is a half") {
  for (int exponent = -14; exponent <= 15; ++exponent) {
    const float scale = cbq::round_scale(std::ldexp(1.2345678f, exponent));
    CHECK(cbq::to_float(cbq::to_half(scale)) == scale);
  }
}

TEST_CASE("the exponent brings the largest scale into the top of half's range") {
  for (int e = -100; e <= 127; ++e) {
    CAPTURE(e);
    for (const float mantissa : {1.0f, 1.9990234375f}) {
      const float largest = std::ldexp(mantissa, e);
      const double normalized = std::ldexp(static_cast<double>(largest), cbq::scale_exponent(largest));
      CHECK(normalized >= 16384);
      CHECK(normalized < 32768);
    }
  }
  CHECK(cbq::scale_exponent(0.0f) == 0);
  CHECK(cbq::power_of_two(-126) == 0x1p-126f);
  CHECK(cbq::power_of_two(127) == 0x1p127f);
}

TEST_CASE("storable scales are halves times the power of two of the matrix") {
  for (const int e : {-100, -60, -3, 0, 40, 126}) {
    const float largest = std::ldexp(1.5f, e);
    const int exponent = cbq::scale_exponent(largest);
    for (int below = 0; below < 60; ++below) {
      CAPTURE(e, below);
      const float scale = cbq::round_scale(std::ldexp(1.3334f, e - below));
      const float stored = cbq::storable_scale(scale, exponent);
      REQUIRE(stored > 0);
      // The packer's arithmetic holds it exactly.
      const auto normalized = static_cast<float>(std::ldexp(static_cast<double>(stored), exponent));
      CHECK(static_cast<double>(cbq::to_float(cbq::to_half(normalized))) ==
            std::ldexp(static_cast<double>(stored), exponent));
      CHECK(cbq::storable_scale(stored, exponent) == stored);
      CHECK(cbq::storable_scale(-scale, exponent) == -stored);
      if (below <= 28 && scale >= 0x1p-120f) {
        CHECK(stored == scale);
      } else {
        const double unit = std::ldexp(1.0, -24 - exponent);
        const double nearest = to_multiple(static_cast<double>(scale), unit);
        CHECK(static_cast<double>(stored) == std::max({nearest, unit, 0x1p-120}));
      }
    }
    CHECK(cbq::storable_scale(0.0f, exponent) > 0);
  }
}

TEST_CASE("make_storable leaves good scales alone and lifts zeros and tiny ones") {
  std::vector<float> scales = {0.5f, 0.0f, 99.0f, 0.25f, 0x1p-60f, 99.0f};  // 2 x 2 with stride 3
  cbq::make_storable({scales.data(), 2, 2, 3});
  CHECK(scales[0] == 0.5f);
  CHECK(scales[1] == 0x1p-39f);  // 2^-24 where 0.5 becomes 2^14
  CHECK(scales[3] == 0.25f);
  CHECK(scales[4] == 0x1p-39f);
  CHECK(scales[2] == 99.0f);
  CHECK(scales[5] == 99.0f);
  // The largest magnitude counts, and signs stay.
  std::vector<float> with_signs = {-0.5f, 0.0f, 0.25f, -0x1p-60f};
  cbq::make_storable(cbq::matrix_view(with_signs.data(), 2, 2));
  CHECK(with_signs == std::vector<float>{-0.5f, 0x1p-39f, 0.25f, -0x1p-39f});
  const float ranked[] = {0.5f, -3.0f, -INFINITY, NAN, 2.0f};
  CHECK(cbq::largest_scale(cbq::matrix_view(static_cast<const float*>(ranked), 1, 5)) == 3.0f);
  std::vector<float> zeros(4, 0.0f);
  cbq::make_storable(cbq::matrix_view(zeros.data(), 2, 2));
  CHECK(zeros == std::vector<float>(4, 1.0f));
  cbq::make_storable(cbq::matrix_view(zeros.data(), 0, 2));
}

TEST_CASE("is_finite sees what it says") {
  CHECK(cbq::is_finite(0.0f));
  CHECK(cbq::is_finite(-FLT_MAX));
  CHECK(cbq::is_finite(FLT_TRUE_MIN));
  CHECK(!cbq::is_finite(INFINITY));
  CHECK(!cbq::is_finite(-INFINITY));
  CHECK(!cbq::is_finite(NAN));
}
