// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/dense_linear.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <limits>

#include "oracle/nn.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"
#include "support/rounded.hpp"

using namespace cbq;

namespace {

/// y of an operator with and without residual.
template <class Op, class E>
std::vector<float> multiply(const Op& op, const std::vector<float>& x, const std::vector<float>& residual,
                            ExecutionContext<E>& context) {
  const Workspace::Frame frame(context.workspace());
  LinearInput input(support::input(x, op.info().inputs));
  std::vector<float> y(x.size() / op.info().inputs * op.info().outputs);
  LinearOutput out{support::view(y, op.info().outputs), {}};
  if (!residual.empty()) out.residual = support::input(residual, op.info().outputs);
  REQUIRE(op.forward(input, out, context));
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("Dense operators equal the definition on rounded weights", "", float, half, bfloat16) {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const auto& [outputs, inputs] : {std::pair<std::size_t, std::size_t>{1, 1}, {17, 31}, {48, 64}, {33, 300}}) {
    auto weights = support::normal(outputs * inputs, 1);
    const auto bias = support::normal(outputs, 2);
    const auto made = DenseLinear<TestType>::create(support::input(weights, inputs), bias);
    const auto plain = DenseLinear<TestType>::create(support::input(weights, inputs));
    REQUIRE((made && plain));
    for (float& w : weights) w = to_float(from_float<TestType>(w));
    std::vector<float> row(inputs);
    made->weight_row(outputs - 1, row.data());
    CHECK(std::equal(row.begin(), row.end(), weights.end() - static_cast<std::ptrdiff_t>(inputs)));
    for (const std::size_t tokens : {0u, 1u, 5u, 130u}) {
      CAPTURE(outputs, inputs, tokens);
      const auto x = support::normal(tokens * inputs, 3), residual = support::normal(tokens * outputs, 4);
      const oracle::Matrix reference(tokens, inputs, x), w(outputs, inputs, weights);
      const oracle::Matrix added(tokens, outputs, residual);
      const auto with_bias = oracle::linear(reference, w, support::doubles(bias));
      CHECK(oracle::distance(multiply(*made, x, {}, context), with_bias) < 2e-6);
      CHECK(oracle::distance(multiply(*made, x, residual, context), oracle::add(with_bias, added)) < 2e-6);
      const auto without = oracle::linear(reference, w);
      CHECK(oracle::distance(multiply(*plain, x, {}, context), without) < 2e-6);
      CHECK(oracle::distance(multiply(*plain, x, residual, context), oracle::add(without, added)) < 2e-6);
    }
  }
}

TEST_CASE("A fake-quantized operator multiplies rounded activations with rounded weights") {
  const SerialExecutor serial;
  const support::ThreadExecutor threads;
  ExecutionContext<> context(serial);
  ExecutionContext<support::ThreadExecutor> threaded(threads);
  const std::size_t outputs = 20, inputs = 70, tokens = 40;
  const auto weights = support::normal(outputs * inputs, 1);
  const auto x = support::normal(tokens * inputs, 2);
  for (const Scheme& scheme : {schemes::w4a8_g32, schemes::w4a16_g32, make_scheme(3, 4, 32, Zero::affine)}) {
    CAPTURE(scheme_name(scheme).c_str());
    const QuantizedMatrix matrix = support::rounded(weights, inputs, scheme.weight);
    const auto op = FakeQuantizedLinear::create(matrix.view(), scheme);
    REQUIRE(op);
    CHECK(op->info().scheme == scheme);
    std::vector<float> rounded_weights(weights.size()), rounded_x = x;
    REQUIRE(dequantize(matrix.view(), scheme.weight, support::view(rounded_weights, inputs)));
    if (scheme.activation.bits != 16) {
      REQUIRE(
          fake_quantize_activations(support::input(x, inputs), scheme.activation, support::view(rounded_x, inputs)));
      REQUIRE(rounded_x != x);
    }
    const auto wanted =
        oracle::linear(oracle::Matrix(tokens, inputs, rounded_x), oracle::Matrix(outputs, inputs, rounded_weights));
    const auto y = multiply(*op, x, {}, context);
    CHECK(oracle::distance(y, wanted) < 2e-6);
    CHECK(multiply(*op, x, {}, threaded) == y);
  }
}

TEST_CASE("NaN in an activation is named by its token where activations are quantized, and spreads where not") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Workspace::Frame frame(context.workspace());
  const std::size_t inputs = 32;
  auto x = support::normal(40 * inputs, 1);
  x[37 * inputs + 3] = std::numeric_limits<float>::quiet_NaN();
  LinearInput input(support::input(x, inputs));
  std::vector<float> y(40 * 16);
  const auto weights = support::normal(16 * inputs, 2);
  const auto fake = FakeQuantizedLinear::create(support::rounded(weights, inputs, schemes::w4a8_g32.weight).view(),
                                                schemes::w4a8_g32);
  const Status failed = fake->forward(input, {support::view(y, 16)}, context);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
  CHECK(std::string(failed.error().where.c_str()).find("37") != std::string::npos);
  const auto dense = DenseLinear<float>::create(support::input(weights, inputs));
  REQUIRE(dense->forward(input, {support::view(y, 16)}, context));
  for (std::size_t i = 0; i < y.size(); ++i) CHECK((y[i] != y[i]) == (i / 16 == 37));
}

TEST_CASE("Linear operators refuse operands that do not fit") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto weights = support::normal(6 * 4, 1);
  CHECK(DenseLinear<float>::create(support::input(weights, 4), std::vector<float>(5)).error().code == Errc::bad_shape);
  const auto op = DenseLinear<float>::create(support::input(weights, 4));
  std::vector<float> x(20), y(60), other(60);
  LinearInput fits(support::input(x, 4)), narrow(support::input(x, 5));
  const auto code = [&](LinearInput& input, const LinearOutput& out) {
    const Status done = op->forward(input, out, context);
    REQUIRE_FALSE(done);
    return done.error().code;
  };
  CHECK(code(narrow, {matrix_view(y.data(), 4, 6), {}}) == Errc::bad_shape);
  CHECK(code(fits, {matrix_view(y.data(), 4, 6), {}}) == Errc::bad_shape);
  CHECK(code(fits, {matrix_view(y.data(), 5, 7), {}}) == Errc::bad_shape);
  const auto result = matrix_view(y.data(), 5, 6);
  CHECK(code(fits, {result, as_const(result)}) == Errc::bad_shape);
  CHECK(code(fits, {result, matrix_view<const float>(other.data(), 4, 6)}) == Errc::bad_shape);
  CHECK(op->forward(fits, {result, matrix_view<const float>(other.data(), 5, 6)}, context));

  const QuantizedMatrix matrix = support::rounded(weights, 4, Grid{.bits = 4});
  CHECK(FakeQuantizedLinear::create(matrix.view(), schemes::w4a8).has_value());
  Scheme wrong = schemes::w4a8;
  wrong.activation.bits = 6;
  CHECK(FakeQuantizedLinear::create(matrix.view(), wrong).error().code == Errc::unsupported);
}
