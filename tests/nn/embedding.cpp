// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/embedding.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cbq/nn/dense_linear.hpp>
#include <cbq/nn/packed_linear.hpp>

#include "support/nn.hpp"
#include "support/rounded.hpp"

using namespace cbq;

TEST_CASE("Embedding rows are the rows of the matrix, dense or packed") {
  const support::ThreadExecutor threads;
  ExecutionContext<support::ThreadExecutor> context(threads);
  const std::size_t vocabulary = 50, hidden = 40;
  const auto weights = support::normal(vocabulary * hidden, 1);
  std::vector<std::uint32_t> tokens(37);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::uint32_t>(i * 7 % vocabulary);
  std::vector<float> out(tokens.size() * hidden);
  const auto check = [&](const auto& table, const std::vector<float>& wanted) {
    REQUIRE(embed(table, tokens, support::view(out, hidden), context));
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::size_t i = 0; i < hidden; ++i) REQUIRE(out[t * hidden + i] == wanted[tokens[t] * hidden + i]);
    }
  };
  check(*DenseLinear<float>::create(support::input(weights, hidden)), weights);
  std::vector<float> halves = weights;
  for (float& w : halves) w = to_float(to_half(w));
  check(*DenseLinear<half>::create(support::input(weights, hidden)), halves);
  const auto check_packed = [&]<Scheme S>() {
    const QuantizedMatrix matrix = support::rounded(weights, hidden, S.weight);
    std::vector<float> rounded(weights.size());
    REQUIRE(dequantize(matrix.view(), S.weight, support::view(rounded, hidden)));
    check(*PackedLinear<S>::create(matrix.view()), rounded);
  };
  check_packed.operator()<schemes::w8a8>();
  check_packed.operator()<schemes::w4a8_g32>();
  check_packed.operator()<make_scheme(3, 16, 32, Zero::affine)>();
  check_packed.operator()<make_scheme(2, 16, 0, Zero::affine)>();
}

TEST_CASE("Embedding refuses tokens beyond the vocabulary and results that do not fit") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto weights = support::normal(10 * 8, 1);
  const auto table = DenseLinear<float>::create(support::input(weights, 8));
  std::vector<float> out(16);
  const std::vector<std::uint32_t> beyond = {9, 10};
  const Status failed = embed(*table, beyond, support::view(out, 8), context);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::bad_argument);
  CHECK(embed(*table, beyond, support::view(out, 4), context).error().code == Errc::bad_shape);
  CHECK(embed(*table, std::span<const std::uint32_t>(beyond).first(1), support::view(out, 8), context).error().code ==
        Errc::bad_shape);
}

TEST_CASE("Head schemes by bits") {
  CHECK(*head_scheme(8, schemes::w4a8_g128) == schemes::w8a8);
  CHECK(*head_scheme(8, schemes::w4a4) == schemes::w8a8);
  CHECK(*head_scheme(8, schemes::w4a16_g128) == schemes::w8a16);
  CHECK(*head_scheme(4, schemes::w4a8_g128) == schemes::w4a8_g32);
  CHECK(*head_scheme(4, schemes::w4a16_g128) == schemes::w4a16_g32);
  CHECK(head_scheme(16, schemes::w4a8_g128)->weight.bits == 16);
  CHECK(head_scheme(5, schemes::w4a8_g128).error().code == Errc::unsupported);
}
