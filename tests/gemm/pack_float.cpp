// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/pack_float.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cbq/rounding/nearest.hpp>

#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

struct BackwardExecutor {
  [[nodiscard]] static std::size_t concurrency() noexcept { return 3; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    while (count-- != 0) task(count);
  }
};

struct Shape {
  std::size_t outputs;
  std::size_t inputs;
};

template <Element T>
std::vector<T> normal_weights(Shape shape, float size = 0.02f) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<T> weights(shape.outputs * shape.inputs);
  for (T& w : weights) w = from_float<T>(normal(random));
  return weights;
}

/// Packing in one pass against rounding and packing one after another. `gap` elements lie between two rows.
template <Scheme S, Element T, RangeFinder Finder>
void check_same(const std::vector<T>& weights, Shape shape, const Finder& finder, std::size_t gap = 0) {
  CAPTURE(scheme_name(S).c_str(), shape.outputs, shape.inputs);
  const support::Guarded<T> guarded(std::span<const T>(weights), support::Edge::end);
  const MatrixView<const T> view{guarded.data(), shape.outputs, shape.inputs, shape.inputs + gap};
  const auto codes = round_nearest(view, S.weight, finder);
  REQUIRE(codes);
  const auto wanted = PackedWeights<S>::from_codes(codes->view());
  REQUIRE(wanted);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const support::Guarded<std::byte> memory(wanted->bytes(), support::Edge::end);
    if (wanted->bytes() != 0) std::memset(memory.data(), 0x5a, wanted->bytes());
    const auto got = pack_float<S>(view, memory.span(), finder, BackwardExecutor{}, isa);
    REQUIRE(got);
    CHECK(got->multiplier == wanted->view().multiplier);
    CHECK((wanted->bytes() == 0 || std::memcmp(memory.data(), wanted->view().data, wanted->bytes()) == 0));
  }
}

}  // namespace

TEST_CASE("Packing floats in one pass gives the bytes of rounding and packing") {
  const Shape shape = GENERATE(Shape{1, 1}, Shape{16, 32}, Shape{17, 100}, Shape{40, 576}, Shape{0, 5}, Shape{5, 0});
  check_same<schemes::w4a8_g32>(normal_weights<float>(shape), shape, MinMaxRange{});
  check_same<schemes::w8a8>(normal_weights<half>(shape), shape, MinMaxRange{});
  check_same<schemes::w2a8_g64_asym>(normal_weights<bfloat16>(shape), shape, MseRange{});
  check_same<schemes::w3a16_g128_asym>(normal_weights<double>(shape), shape, MinMaxRange{});
  check_same<schemes::w3a16_g128_asym>(normal_weights<float>(shape), shape, MinMaxRange{});
  check_same<make_scheme(3, 8, 32, Zero::symmetric)>(normal_weights<bfloat16>(shape), shape, MinMaxRange{});
  check_same<make_scheme(8, 8, 32, Zero::affine)>(normal_weights<half>(shape), shape, MinMaxRange{});
}

TEST_CASE("What lies between rows is not packed") {
  const Shape shape{37, 200};
  const std::size_t stride = shape.inputs + 3;
  std::vector<float> weights = normal_weights<float>({shape.outputs, stride});
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (i % stride >= shape.inputs) weights[i] = std::numeric_limits<float>::quiet_NaN();
  }
  weights.resize(weights.size() - 3);  // nothing behind the last row
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{}, 3);
}

TEST_CASE("Groups of zeros and scales that storing changes are quantized as they are stored") {
  const Shape shape{35, 128};
  std::vector<float> weights = normal_weights<float>(shape);
  for (std::size_t k = 0; k < 64; ++k) weights[3 * 128 + k] = 0.0f;
  // Scales 2^-31 times the largest keep 7 significant bits, and 2^-40 times the largest none.
  for (std::size_t k = 0; k < 32; ++k) weights[20 * 128 + k] *= 0x1p-31f;
  for (std::size_t k = 32; k < 64; ++k) weights[34 * 128 + k] *= 0x1p-40f;
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
  check_same<make_scheme(4, 8, 32, Zero::affine)>(weights, shape, MinMaxRange{});
  std::fill(weights.begin(), weights.end(), 0.0f);
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
  weights[7] = 0x1p-110f;  // below every scale
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
  check_same<schemes::w4a8_g32>(normal_weights<float>(shape, 0x1p100f), shape, MinMaxRange{});
}

TEST_CASE("Weights between two codes, and next to there, get the codes of division") {
  // Each group has one weight of the largest code, so that its scale is known: of 11 bits, or a power of two.
  const Shape shape{18, 160};
  std::vector<float> weights(shape.outputs * shape.inputs);
  const float scales[] = {0x1.59p-7f, 0x1.ffcp-3f, 0x1.002p+4f, 0x1p-5f, 0x1.554p-90f};
  const auto fill = [&](int reach) {
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const float scale = scales[i / 32 % 5];
      const int step = static_cast<int>(i * 7 % static_cast<std::size_t>(2 * reach));
      const float tie = (static_cast<float>(step - reach) + 0.5f) * scale;
      const float near = std::nextafterf(tie, i % 2 == 0 ? 0.0f : 2 * tie);
      weights[i] = i % 32 == 0 ? static_cast<float>(reach) * scale : i % 3 == 0 ? tie : near;
    }
  };
  fill(7);
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
  check_same<make_scheme(4, 8, 32, Zero::affine)>(weights, shape, MinMaxRange{});
  fill(127);
  check_same<make_scheme(8, 8, 32, Zero::symmetric)>(weights, shape, MinMaxRange{});
  std::vector<half> halves(weights.size());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const int step = static_cast<int>(i * 5 % 14);
    halves[i] = to_half(i % 32 == 0 ? 7 * 0x1.5p-4f : (static_cast<float>(step) - 6.5f) * 0x1.5p-4f);
  }
  check_same<schemes::w4a8_g32>(halves, shape, MinMaxRange{});
}

TEST_CASE("Weights of every size are packed as they are rounded") {
  const Shape shape{16, 96};
  std::vector<float> weights = normal_weights<float>(shape, 1.0f);
  // The ends of float's range, subnormal numbers, and scales whose inverse is subnormal.
  for (const int exponent : {-149, -127, -110, -100, 90, 118, 121, 125}) {
    std::vector<float> scaled = weights;
    for (float& w : scaled) w = std::ldexp(w, exponent);
    check_same<schemes::w4a8_g32>(scaled, shape, MinMaxRange{});
    check_same<make_scheme(4, 8, 32, Zero::affine)>(scaled, shape, MinMaxRange{});
  }
  weights[5] = std::numeric_limits<float>::max();
  weights[40] = -std::numeric_limits<float>::max();
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
  check_same<schemes::w2a8_g64_asym>(weights, shape, MinMaxRange{});
}

TEST_CASE("The largest scale may lie in the first panel or the last") {
  const Shape shape{80, 64};
  std::vector<float> weights = normal_weights<float>(shape);
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = std::ldexp(weights[i], static_cast<int>(i / 64 / 3));
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
  std::reverse(weights.begin(), weights.end());
  check_same<schemes::w4a8_g32>(weights, shape, MinMaxRange{});
}

TEST_CASE("Long rows are tasks of one panel each") {
  const Shape shape{50, 40000};
  check_same<schemes::w4a8_g128>(normal_weights<half>(shape), shape, MinMaxRange{});
}

TEST_CASE("Floats that cannot be packed are refused and named") {
  const Shape shape{20, 64};
  std::vector<float> weights = normal_weights<float>(shape);
  std::vector<std::byte> memory(*packed_size<schemes::w4a8_g32>(20, 64));
  const auto view = as_const(matrix_view(weights.data(), shape.outputs, shape.inputs));
  SECTION("the first of two that are no numbers") {
    weights[17 * 64 + 33] = std::numeric_limits<float>::quiet_NaN();
    weights[19 * 64] = std::numeric_limits<float>::infinity();
    for (const Isa isa : support::machine_isas()) {
      const auto packed = pack_float<schemes::w4a8_g32>(view, memory, MinMaxRange{}, BackwardExecutor{}, isa);
      REQUIRE_FALSE(packed);
      CHECK(packed.error().code == Errc::not_finite);
      CHECK(std::string(packed.error().where.c_str()) == "row 17, column 33");
    }
  }
  SECTION("little memory") {
    const auto packed = pack_float<schemes::w4a8_g32>(view, std::span(memory).first(memory.size() - 1), MinMaxRange{});
    REQUIRE_FALSE(packed);
    CHECK(packed.error().code == Errc::bad_shape);
  }
  SECTION("rows that overlap") {
    const MatrixView<const float> overlapping{weights.data(), 20, 64, 63};
    CHECK(pack_float<schemes::w4a8_g32>(overlapping, memory, MinMaxRange{}).error().code == Errc::bad_shape);
  }
}
