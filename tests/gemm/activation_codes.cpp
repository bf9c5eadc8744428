// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/activation_codes.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <cbq/gemm/matmul.hpp>

#include "oracle/gemm.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"

using namespace cbq;

namespace {

struct Shape {
  std::size_t tokens;
  std::size_t inputs;
};

/// Codes whose largest magnitude is 127 in every row: then quantizing code * 2^-3 finds the scale 2^-3 and the codes.
std::vector<std::int8_t> codes_of(const Shape& shape, std::mt19937& random) {
  std::vector<std::int8_t> codes(shape.tokens * shape.inputs);
  for (std::int8_t& code : codes) code = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  for (std::size_t t = 0; t < shape.tokens && shape.inputs != 0; ++t)
    codes[t * shape.inputs + t % shape.inputs] = t % 2 == 0 ? 127 : -127;
  return codes;
}

template <Scheme S>
void check_shape(const Shape& shape) {
  constexpr float scale = 0.125f;
  std::mt19937 random(static_cast<unsigned>(shape.tokens * 100 + shape.inputs));
  const std::vector<std::int8_t> codes = codes_of(shape, random);
  const support::Guarded<std::int8_t> guarded(codes, support::Edge::end);
  std::vector<float> x(codes.begin(), codes.end());
  for (float& value : x) value *= scale;
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(scheme_name(S).c_str(), shape.tokens, shape.inputs, isa_name(isa));
    const std::size_t words = *activations_size<S>(shape.tokens, shape.inputs) / 4 + 1;
    std::vector<std::int32_t> quantized_memory(words, 0x5a5a5a5a), arranged_memory(words, 0x5a5a5a5a);
    const auto quantized =
        quantize_activations<S>(matrix_view<const float>(x.data(), shape.tokens, shape.inputs),
                                std::as_writable_bytes(std::span(quantized_memory)), SerialExecutor{}, isa);
    const auto arranged =
        activations_from_codes<S>(matrix_view<const std::int8_t>(guarded.data(), shape.tokens, shape.inputs), scale,
                                  std::as_writable_bytes(std::span(arranged_memory)), SerialExecutor{}, isa);
    REQUIRE((quantized && arranged));
    CHECK(arranged->tokens == quantized->tokens);
    CHECK(arranged->shape.rows == quantized->shape.rows);
    CHECK(arranged->layout.inputs == quantized->layout.inputs);
    CHECK(arranged_memory == quantized_memory);
  }
}

}  // namespace

TEST_CASE("Arranged codes are what quantizing their values gives, byte for byte") {
  for (const Shape shape : {Shape{0, 8}, Shape{1, 1}, Shape{3, 31}, Shape{20, 32}, Shape{21, 97}, Shape{41, 256}}) {
    check_shape<schemes::w4a8_g32>(shape);
    check_shape<schemes::w4a8_g128>(shape);
    check_shape<make_scheme(4, 8, 0, Zero::affine)>(shape);
  }
}

TEST_CASE("A layer that requantizes feeds the next one") {
  constexpr Scheme S = schemes::w4a8_g32;
  constexpr std::size_t tokens = 5, inputs = 64, inner = 40, outputs = 20;
  constexpr float scale = 0.25f;
  std::mt19937 random(7);
  const auto first =
      PackedWeights<S>::from_codes(oracle::weights(S.weight, inner, inputs, oracle::Codes::random, random).view());
  const oracle::Weights w = oracle::weights(S.weight, outputs, inner, oracle::Codes::random, random);
  const auto second = PackedWeights<S>::from_codes(w.view());
  std::vector<float> x(tokens * inputs);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  QuantizedActivations<S> input;
  REQUIRE((first && second && input.quantize(matrix_view<const float>(x.data(), tokens, inputs))));
  std::vector<float> exact(tokens * inner);
  REQUIRE(matmul(input.view(), first->view(), matrix_view(exact.data(), tokens, inner)));
  std::vector<std::int8_t> codes(tokens * inner);
  const auto code_view = matrix_view(codes.data(), tokens, inner);
  REQUIRE(matmul(input.view(), first->view(), code_view, RequantizeInt8{1.0f / scale}));
  for (std::size_t i = 0; i < codes.size(); ++i)
    CHECK(codes[i] == std::clamp(std::nearbyint(exact[i] / scale), -127.0f, 127.0f));

  std::vector<std::byte> memory(*activations_size<S>(tokens, inner));
  const auto hidden = activations_from_codes<S>(as_const(code_view), scale, memory);
  REQUIRE(hidden);
  std::vector<float> y(tokens * outputs);
  REQUIRE(matmul(*hidden, second->view(), matrix_view(y.data(), tokens, outputs)));
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < outputs; ++n) {
      double sum = 0.0;
      for (std::size_t k = 0; k < inner; ++k)
        sum += static_cast<double>(w.scale(n, k)) * w.level(n, k) * codes[t * inner + k] * static_cast<double>(scale);
      CHECK_THAT(static_cast<double>(y[t * outputs + n]), Catch::Matchers::WithinAbs(sum, 1e-4));
    }
  }
}

TEST_CASE("Codes that cannot be arranged are refused") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::vector<std::int8_t> codes(3 * 40, 5);
  std::vector<std::int32_t> memory(*activations_size<S>(3, 40) / 4 + 1);
  const auto bytes = std::as_writable_bytes(std::span(memory));
  const auto view = matrix_view<const std::int8_t>(codes.data(), 3, 40);
  const auto code = [](const auto& result) { return result ? Errc{} : result.error().code; };
  CHECK(activations_from_codes<S>(view, 1.0f, bytes));
  CHECK(code(activations_from_codes<S>(view, std::numeric_limits<float>::infinity(), bytes)) == Errc::not_finite);
  CHECK(code(activations_from_codes<S>(view, 1.0f, bytes.first(*activations_size<S>(3, 40) - 1))) == Errc::bad_shape);
  CHECK(code(activations_from_codes<S>(view, 1.0f, bytes.subspan(1))) == Errc::bad_argument);
  CHECK(code(activations_from_codes<S>(matrix_view<const std::int8_t>(nullptr, 3, 40), 1.0f, bytes)) ==
        Errc::bad_argument);
  CHECK(code(activations_from_codes<S>(MatrixView<const std::int8_t>{codes.data(), 3, 40, 39}, 1.0f, bytes)) ==
        Errc::bad_shape);
  codes[2 * 40 + 1] = -128;
  const auto refused = activations_from_codes<S>(view, 1.0f, bytes);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::bad_argument);
  CHECK(std::string(refused.error().where.c_str()) == "token 2");
}
