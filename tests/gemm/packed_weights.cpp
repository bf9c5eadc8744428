// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/packed_weights.hpp>

#include <cmath>
#include <limits>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "oracle/gemm.hpp"

using namespace cbq;

namespace {

struct Shape {
  std::size_t outputs;
  std::size_t inputs;
};

template <Scheme S>
void check_round_trip(Shape shape) {
  CAPTURE(scheme_name(S).c_str(), shape.outputs, shape.inputs);
  std::mt19937 random(7);
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  REQUIRE(packed->bytes() == *packed_size<S>(shape.outputs, shape.inputs));
  std::size_t different = 0;
  for (std::size_t n = 0; n < shape.outputs; ++n) {
    for (std::size_t k = 0; k < shape.inputs; ++k) {
      const UnpackedWeight got = unpack(packed->view(), n, k);
      different += got.code != w.codes[n * shape.inputs + k] || got.scale != w.scale(n, k) || got.zero != w.zero(n, k);
    }
  }
  CHECK(different == 0);
}

}  // namespace

TEST_CASE("Packing keeps every code, scale and zero point") {
  const Shape shape = GENERATE(Shape{1, 1}, Shape{16, 32}, Shape{15, 31}, Shape{17, 33}, Shape{33, 257}, Shape{5, 576});
  check_round_trip<make_scheme(2, 8, 64, Zero::affine)>(shape);
  check_round_trip<make_scheme(3, 8, 32, Zero::symmetric)>(shape);
  check_round_trip<make_scheme(3, 16, 128, Zero::affine)>(shape);
  check_round_trip<schemes::w4a8_g128>(shape);
  check_round_trip<make_scheme(4, 4, 0, Zero::affine)>(shape);
  check_round_trip<make_scheme(8, 8, 96, Zero::affine)>(shape);
}

TEST_CASE("Scales of 11 bits survive whatever their common size") {
  const int exponent = GENERATE(-100, -40, -14, 0, 15, 60, 110);
  CAPTURE(exponent);
  std::mt19937 random(3);
  oracle::Weights w = oracle::weights(schemes::w4a8_g32.weight, 4, 128, oracle::Codes::random, random);
  for (float& scale : w.scales) {
    const float mantissa = static_cast<float>(1024 + random() % 1024) * (random() % 2 == 0 ? 1.0f : -1.0f);
    scale = std::ldexp(mantissa, exponent - 10 - static_cast<int>(random() % 18));
  }
  w.scales.front() = std::ldexp(-2047.0f, exponent - 10);  // the largest magnitude
  const auto packed = PackedWeights<schemes::w4a8_g32>::from_codes(w.view());
  REQUIRE(packed);
  for (std::size_t n = 0; n < 4; ++n) {
    for (std::size_t k = 0; k < 128; k += 32) REQUIRE(unpack(packed->view(), n, k).scale == w.scale(n, k));
  }
}

TEST_CASE("Matrices of zeros and empty matrices pack") {
  std::mt19937 random(3);
  oracle::Weights w = oracle::weights(schemes::w4a8_g32.weight, 3, 40, oracle::Codes::random, random);
  for (float& scale : w.scales) scale = 0.0f;
  const auto packed = PackedWeights<schemes::w4a8_g32>::from_codes(w.view());
  REQUIRE(packed);
  CHECK(unpack(packed->view(), 2, 39).scale == 0.0f);
  CHECK(PackedWeights<schemes::w4a8_g32>::from_codes(
      oracle::weights(schemes::w4a8_g32.weight, 0, 0, oracle::Codes::random, random).view()));
}

TEST_CASE("Bad input to pack names what, where, got and wanted") {
  constexpr Scheme S = make_scheme(4, 8, 32, Zero::affine);
  std::mt19937 random(3);
  oracle::Weights w = oracle::weights(S.weight, 3, 64, oracle::Codes::random, random);
  const auto error_of = [&] {
    const auto packed = PackedWeights<S>::from_codes(w.view());
    REQUIRE_FALSE(packed);
    return packed.error();
  };
  SECTION("a code beyond the grid") {
    w.codes[2 * 64 + 5] = 16;
    CHECK(error_of().code == Errc::bad_argument);
    CHECK(std::string(error_of().where.c_str()) == "output 2, input 5");
    CHECK(std::string(error_of().got.c_str()) == "16");
  }
  SECTION("a zero point beyond the grid") {
    w.zeros[1 * 2 + 1] = 99;
    CHECK(std::string(error_of().where.c_str()) == "output 1, group 1");
  }
  SECTION("a scale that is no number") {
    const float bad = GENERATE(std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity());
    w.scales[3] = bad;
    CHECK(error_of().code == Errc::not_finite);
    CHECK(std::string(error_of().where.c_str()) == "output 1, group 1");
  }
  SECTION("scales of the wrong shape") {
    QuantizedMatrixView view = w.view();
    view.scales.columns = 1;
    CHECK(PackedWeights<S>::from_codes(view).error().code == Errc::bad_shape);
  }
  SECTION("no zeros where the scheme is affine, zeros where it is not") {
    QuantizedMatrixView view = w.view();
    CHECK(PackedWeights<schemes::w4a8_g32>::from_codes(view).error().code == Errc::bad_shape);
    view.zeros = {};
    CHECK(PackedWeights<S>::from_codes(view).error().code == Errc::bad_shape);
  }
  SECTION("memory that is too small") {
    auto memory = AlignedBuffer<std::byte>::allocate(*packed_size<S>(3, 64) + 64);
    REQUIRE(memory);
    const std::size_t size = *packed_size<S>(3, 64);
    CHECK(pack<S>(w.view(), {memory->data(), size - 1}).error().code == Errc::bad_shape);
    CHECK(pack<S>(w.view(), {memory->data() + 1, size}));
  }
}
