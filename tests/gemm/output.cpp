// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/output.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <cbq/gemm.hpp>

#include "oracle/gemm.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"

using namespace cbq;

namespace {

struct Shape {
  std::size_t tokens;
  std::size_t outputs;
  std::size_t inputs;
};

template <class T>
T rounded(float value) {
  if constexpr (std::is_same_v<T, std::int8_t>) {
    return static_cast<T>(std::nearbyint(std::clamp(value, -127.0f, 127.0f)));
  } else {
    return from_float<T>(value);
  }
}

/// Calls multiply(y) with a result of floats and one of T, whose rows have 3 elements of padding and end at a page: the
/// second must be the first rounded, and the padding untouched.
template <class T, class Multiply>
void check_rounded(const Shape& shape, const Multiply& multiply) {
  std::vector<float> want(shape.tokens * shape.outputs);
  REQUIRE(multiply(matrix_view(want.data(), shape.tokens, shape.outputs)));
  const std::size_t stride = shape.outputs + 3;
  const support::Guarded<T> memory(shape.tokens * stride - 3, support::Edge::end);
  const T canary = rounded<T>(99.0f);
  std::fill(memory.span().begin(), memory.span().end(), canary);
  REQUIRE(multiply(MatrixView<T>{memory.data(), shape.tokens, shape.outputs, stride}));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const std::size_t r = i / stride;
    const std::size_t c = i % stride;
    wrong += memory.data()[i] == (c < shape.outputs ? rounded<T>(want[r * shape.outputs + c]) : canary) ? 0u : 1u;
  }
  CAPTURE(shape.tokens, shape.outputs, shape.inputs, sizeof(T));
  CHECK(wrong == 0);
}

template <class Multiply>
void check_types(const Shape& shape, const Multiply& multiply) {
  check_rounded<half>(shape, multiply);
  check_rounded<bfloat16>(shape, multiply);
  check_rounded<std::int8_t>(shape, multiply);
}

std::vector<float> normal_floats(std::size_t count, std::mt19937& random) {
  std::vector<float> values(count);
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace

TEST_CASE("Integer products are rounded once, after the epilogue") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(3);
  for (const Shape shape : {Shape{1, 16, 64}, Shape{3, 37, 65}, Shape{21, 32, 32}, Shape{5, 1, 33}}) {
    const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
    const std::vector<float> x = normal_floats(shape.tokens * shape.inputs, random);
    const std::vector<float> bias = normal_floats(shape.outputs, random);
    const auto packed = PackedWeights<S>::from_codes(w.view());
    REQUIRE(packed);
    for (const Isa isa : support::machine_isas()) {
      QuantizedActivations<S> quantized;  // AMX has an order of its own
      REQUIRE(
          quantized.quantize(matrix_view<const float>(x.data(), shape.tokens, shape.inputs), SerialExecutor{}, isa));
      check_types(shape, [&](const auto& y) {
        return matmul(quantized.view(), packed->view(), y, NoEpilogue{}, SerialExecutor{}, isa);
      });
      check_types(shape, [&](const auto& y) {
        return matmul(quantized.view(), packed->view(), y, Then{AddBias{bias.data()}, RequantizeInt8{17.0f}},
                      SerialExecutor{}, isa);
      });
    }
  }
}

TEST_CASE("Weight-only products are rounded once, with few tokens and with many") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(4);
  for (const Shape shape : {Shape{1, 33, 64}, Shape{3, 16, 33}, Shape{6, 37, 300}}) {
    const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
    const std::vector<float> x = normal_floats(shape.tokens * shape.inputs, random);
    const auto packed = PackedWeights<S>::from_codes(w.view());
    REQUIRE(packed);
    const auto input = matrix_view<const float>(x.data(), shape.tokens, shape.inputs);
    for (const Isa isa : support::machine_isas()) {
      check_types(shape, [&](const auto& y) {
        return matmul(input, packed->view(), y, RequantizeInt8{17.0f}, SerialExecutor{}, isa);
      });
    }
  }
}

TEST_CASE("Float products are rounded once, and added to 16-bit results as floats") {
  std::mt19937 random(5);
  for (const Shape shape : {Shape{2, 33, 40}, Shape{7, 48, 300}}) {
    const std::vector<float> a = normal_floats(shape.tokens * shape.inputs, random);
    const std::vector<float> b = normal_floats(shape.inputs * shape.outputs, random);
    const auto left = matrix_view<const float>(a.data(), shape.tokens, shape.inputs);
    const auto right = row_major(matrix_view<const float>(b.data(), shape.inputs, shape.outputs));
    for (const Isa isa : support::machine_isas()) {
      check_types(shape, [&](const auto& y) {
        return float_matmul(left, right, y, RequantizeInt8{5.0f}, FloatMatmulOptions<>{.cap = isa});
      });
      std::vector<bfloat16> sums(shape.tokens * shape.outputs, to_bfloat16(3.0f));
      std::vector<float> floats(sums.size(), 3.0f);
      const FloatMatmulOptions<> add{.accumulate = Accumulate::add, .cap = isa};
      REQUIRE(float_matmul(left, right, matrix_view(sums.data(), shape.tokens, shape.outputs), NoEpilogue{}, add));
      REQUIRE(float_matmul(left, right, matrix_view(floats.data(), shape.tokens, shape.outputs), NoEpilogue{}, add));
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < sums.size(); ++i) wrong += sums[i] == to_bfloat16(floats[i]) ? 0u : 1u;
      CHECK(wrong == 0);
    }
    std::vector<std::int8_t> codes(shape.tokens * shape.outputs);
    CHECK(float_matmul(left, right, matrix_view(codes.data(), shape.tokens, shape.outputs), NoEpilogue{},
                       FloatMatmulOptions<>{.accumulate = Accumulate::add})
              .error()
              .code == Errc::bad_argument);
  }
}

TEST_CASE("Ranges of outputs are resolved or refused") {
  const auto all = driver::resolve({}, 37);
  REQUIRE(all);
  CHECK((all->first == 0 && all->count == 37));
  const auto rest = driver::resolve({.first = 32}, 37);
  REQUIRE(rest);
  CHECK((rest->first == 32 && rest->count == 5));
  CHECK(driver::resolve({.first = 16, .count = 21}, 37));
  CHECK(driver::resolve({.first = 32, .count = 0}, 32));
  CHECK_FALSE(driver::resolve({.first = 16, .count = 22}, 37));
  CHECK_FALSE(driver::resolve({.first = 8}, 37));
  CHECK_FALSE(driver::resolve({.first = 48}, 37));
}
