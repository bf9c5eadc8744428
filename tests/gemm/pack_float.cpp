// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/pack_float.hpp>

#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch_all.hpp>

#include <cbq/rounding/nearest.hpp>

#include "support/guarded.hpp"

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

/// Packing in one pass against rounding and packing one after another.
template <Scheme S, Element T, RangeFinder Finder>
void check_same(const std::vector<T>& weights, Shape shape, const Finder& finder) {
  CAPTURE(scheme_name(S).c_str(), shape.outputs, shape.inputs);
  const support::Guarded<T> guarded(std::span<const T>(weights), support::Edge::end);
  const auto view = as_const(matrix_view(guarded.data(), shape.outputs, shape.inputs));
  const auto codes = round_nearest(view, S.weight, finder);
  REQUIRE(codes);
  const auto wanted = PackedWeights<S>::from_codes(codes->view());
  REQUIRE(wanted);
  const support::Guarded<std::byte> memory(wanted->bytes(), support::Edge::end);
  const auto got = pack_float<S>(view, memory.span(), finder, BackwardExecutor{});
  REQUIRE(got);
  CHECK(got->multiplier == wanted->view().multiplier);
  CHECK((wanted->bytes() == 0 || std::memcmp(memory.data(), wanted->view().data, wanted->bytes()) == 0));
}

}  // namespace

TEST_CASE("Packing floats in one pass gives the bytes of rounding and packing") {
  const Shape shape = GENERATE(Shape{1, 1}, Shape{16, 32}, Shape{17, 100}, Shape{40, 576}, Shape{0, 5}, Shape{5, 0});
  check_same<schemes::w4a8_g32>(normal_weights<float>(shape), shape, MinMaxRange{});
  check_same<schemes::w8a8>(normal_weights<half>(shape), shape, MinMaxRange{});
  check_same<schemes::w2a8_g64_asym>(normal_weights<bfloat16>(shape), shape, MseRange{});
  check_same<schemes::w3a16_g128_asym>(normal_weights<double>(shape), shape, MinMaxRange{});
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
    const auto packed = pack_float<schemes::w4a8_g32>(view, memory, MinMaxRange{}, BackwardExecutor{});
    REQUIRE_FALSE(packed);
    CHECK(packed.error().code == Errc::not_finite);
    CHECK(std::string(packed.error().where.c_str()) == "row 17, column 33");
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
