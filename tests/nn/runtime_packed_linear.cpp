// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/runtime_packed_linear.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cbq/nn/any_linear.hpp>

#include "oracle/nn.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"
#include "support/rounded.hpp"

using namespace cbq;

namespace {

template <LinearOperator Op>
std::vector<float> multiply(const Op& op, const std::vector<float>& x, ExecutionContext<>& context) {
  const Workspace::Frame frame(context.workspace());
  LinearInput input(support::input(x, op.info().inputs));
  std::vector<float> y(input.values().rows * op.info().outputs);
  REQUIRE(op.forward(input, {support::view(y, op.info().outputs), {}}, context));
  return y;
}

}  // namespace

TEST_CASE("Every packed scheme, chosen at run time, computes what its fake-quantized operator does") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::size_t outputs = 21, inputs = 150;
  const auto weights = support::normal(outputs * inputs, 1);
  const auto bias = support::normal(outputs, 2);
  std::vector<Scheme> all(packed_schemes.begin(), packed_schemes.end());
  all.push_back(with_tensor_activations(schemes::w4a4));
  for (const Scheme& scheme : all) {
    CAPTURE(scheme_name(scheme).c_str());
    const QuantizedMatrix matrix = support::rounded(weights, inputs, scheme.weight);
    const auto packed = AnyLinear::packed(matrix.view(), scheme, bias);
    const auto fake = FakeQuantizedLinear::create(matrix.view(), scheme, bias);
    REQUIRE((packed && fake));
    REQUIRE(packed->get_if<RuntimePackedLinear>() != nullptr);
    CHECK(packed->info().scheme == scheme);
    std::vector<float> row(inputs), wanted_row(inputs);
    packed->weight_row(20, row.data());
    fake->weight_row(20, wanted_row.data());
    CHECK(row == wanted_row);
    for (const std::size_t tokens : {1u, 6u}) {
      const auto x = support::normal(tokens * inputs, 3, 2.0f);
      const auto wanted = multiply(*fake, x, context);
      CHECK(oracle::distance(multiply(*packed, x, context), oracle::Matrix(tokens, outputs, wanted)) < 1e-6);
    }
  }
}

TEST_CASE("A run-time scheme without packed kernels is refused") {
  const auto weights = support::normal(16 * 64, 1);
  const QuantizedMatrix matrix = support::rounded(weights, 64, schemes::w4a8_g32.weight);
  CHECK(RuntimePackedLinear::create(matrix.view(), make_scheme(5, 8, 32, Zero::symmetric)).error().code ==
        Errc::unsupported);
  CHECK(RuntimePackedLinear::create(matrix.view(), make_scheme(4, 8, 96, Zero::symmetric)).error().code ==
        Errc::unsupported);
  CHECK(RuntimePackedLinear::create(matrix.view(), schemes::w8a8).error().code == Errc::bad_shape);
}

TEST_CASE("Weights that are packed already are multiplied with where they lie") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto weights = support::normal(21 * 150, 1);
  const auto bias = support::normal(21, 2);
  const QuantizedMatrix matrix = support::rounded(weights, 150, schemes::w4a8_g32.weight);
  const auto packed = PackedWeights<schemes::w4a8_g32>::from_codes(matrix.view());
  REQUIRE(packed);
  const auto view = RuntimePackedLinear::view(packed->view(), schemes::w4a8_g32, bias);
  const auto copy = RuntimePackedLinear::create(matrix.view(), schemes::w4a8_g32, bias);
  REQUIRE((view && copy));
  CHECK(view->info().bytes == packed->bytes());
  const auto x = support::normal(3 * 150, 3);
  CHECK(multiply(*view, x, context) == multiply(*copy, x, context));

  const auto refused = [&](const Scheme& scheme, std::span<const float> its_bias) {
    return RuntimePackedLinear::view(packed->view(), scheme, its_bias).error().code;
  };
  CHECK(refused(schemes::w4a8_g128, bias) == Errc::bad_shape);
  CHECK(refused(schemes::w8a8, bias) == Errc::bad_shape);
  CHECK(refused(make_scheme(4, 8, 32, Zero::affine), bias) == Errc::bad_shape);
  CHECK(refused(make_scheme(5, 8, 32, Zero::symmetric), bias) == Errc::unsupported);
  CHECK(refused(schemes::w4a8_g32, std::span(bias).first(20)) == Errc::bad_shape);
}
