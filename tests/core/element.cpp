// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/element.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "oracle/quant.hpp"

namespace {

// The two 16-bit types under one name each.
struct Half {
  using Type = cbq::half;
  static constexpr std::uint16_t infinity = 0x7c00;
  static double value(std::uint16_t bits) { return oracle::half_value(bits); }
  static std::uint16_t encode(float v) { return cbq::to_half(v).bits; }
};
struct Bfloat16 {
  using Type = cbq::bfloat16;
  static constexpr std::uint16_t infinity = 0x7f80;
  static double value(std::uint16_t bits) { return oracle::bfloat16_value(bits); }
  static std::uint16_t encode(float v) { return cbq::to_bfloat16(v).bits; }
};

}  // namespace

TEMPLATE_TEST_CASE("all 65536 codes convert exactly and back", "", Half, Bfloat16) {
  using T = typename TestType::Type;
  int wrong_value = 0, wrong_code = 0, wrong_nan = 0;
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const auto bits = static_cast<std::uint16_t>(code);
    const float value = cbq::to_float(T{bits});
    if ((bits & 0x7fffu) > TestType::infinity) {
      const bool sign_kept = (std::bit_cast<std::uint32_t>(value) >> 31) == (code >> 15);
      const std::uint16_t back = TestType::encode(value);
      const bool still_nan = (back & 0x7fffu) > TestType::infinity && (back >> 15) == (code >> 15);
      wrong_nan += (std::isnan(value) && sign_kept && still_nan) ? 0 : 1;
      continue;
    }
    // Equality of the bits: the sign of zero counts.
    wrong_value +=
        std::bit_cast<std::uint32_t>(value) == std::bit_cast<std::uint32_t>(static_cast<float>(TestType::value(bits)))
            ? 0
            : 1;
    wrong_code += TestType::encode(value) == bits ? 0 : 1;
  }
  CHECK(wrong_value == 0);
  CHECK(wrong_code == 0);
  CHECK(wrong_nan == 0);
}

TEMPLATE_TEST_CASE("floats round to the nearest code, ties to even", "", Half, Bfloat16) {
  int wrong = 0;
  for (std::uint32_t code = 0; code + 1 < TestType::infinity; ++code) {
    const auto low = static_cast<std::uint16_t>(code), high = static_cast<std::uint16_t>(code + 1);
    const double middle = (TestType::value(low) + TestType::value(high)) / 2;
    const auto tie = static_cast<float>(middle);  // exact: one bit more than the type has
    const std::uint16_t even = (code & 1u) == 0 ? low : high;
    const float below = std::nextafter(tie, 0.0f);
    const float above = std::nextafter(tie, std::numeric_limits<float>::infinity());
    for (const std::uint16_t sign : {std::uint16_t{0}, std::uint16_t{0x8000}}) {
      const float s = sign != 0 ? -1.0f : 1.0f;
      const auto signed_code = [sign](std::uint16_t c) { return static_cast<std::uint16_t>(c | sign); };
      wrong += TestType::encode(s * tie) == signed_code(even) ? 0 : 1;
      wrong += TestType::encode(s * below) == signed_code(low) ? 0 : 1;
      wrong += TestType::encode(s * above) == signed_code(high) ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("magnitudes beyond the largest code become infinity") {
  CHECK(cbq::to_half(65504.0f).bits == 0x7bff);
  CHECK(cbq::to_half(std::nextafter(65520.0f, 0.0f)).bits == 0x7bff);
  CHECK(cbq::to_half(65520.0f).bits == 0x7c00);
  CHECK(cbq::to_half(-1e30f).bits == 0xfc00);
  CHECK(cbq::to_bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(cbq::to_bfloat16(-std::numeric_limits<float>::infinity()).bits == 0xff80);
  CHECK(cbq::to_half(std::numeric_limits<float>::denorm_min()).bits == 0);
  CHECK(cbq::to_half(-std::numeric_limits<float>::denorm_min()).bits == 0x8000);
}

TEST_CASE("NaNs whose payload lies in the cut bits stay NaN") {
  const float low_payload = std::bit_cast<float>(0xff800001u);
  CHECK((cbq::to_half(low_payload).bits & 0xfe00u) == 0xfe00u);
  CHECK((cbq::to_bfloat16(low_payload).bits & 0xffc0u) == 0xffc0u);
}

TEST_CASE("from_float is the conversion to each element type, usable in constants") {
  STATIC_REQUIRE(cbq::from_float<float>(0.1f) == 0.1f);
  STATIC_REQUIRE(cbq::from_float<double>(0.5f) == 0.5);
  STATIC_REQUIRE(cbq::from_float<cbq::half>(1.0f) == cbq::half{0x3c00});
  STATIC_REQUIRE(cbq::from_float<cbq::bfloat16>(-2.0f) == cbq::bfloat16{0xc000});
  STATIC_REQUIRE(cbq::to_float(cbq::half{0x0001}) == 0x1p-24f);
  STATIC_REQUIRE(cbq::Element<cbq::half>);
  STATIC_REQUIRE(!cbq::Element<int>);
}
