// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/mlp.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include <cbq/nn/dense_linear.hpp>

#include "oracle/nn.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"

using namespace cbq;

namespace {

DenseLinear<float> dense(const std::vector<float>& weights, std::size_t inputs, const std::vector<float>& bias = {}) {
  auto made = DenseLinear<float>::create(support::input(weights, inputs), bias);
  REQUIRE(made);
  return *std::move(made);
}

}  // namespace

TEST_CASE("Activations equal their definitions") {
  std::vector<float> x = support::normal(1003, 1, 3.0f);
  x[0] = 0.0f;
  x[1] = -0.0f;
  x[2] = 30.0f;
  x[3] = -30.0f;
  std::vector<float> out(x.size());
  for (const std::size_t size : {1u, 3u, 4u, 5u, 1003u}) {
    for (const Activation activation : {Activation::relu, Activation::gelu_tanh, Activation::gelu_erf}) {
      activate_row(activation, std::span<const float>(x).first(size), out.data());
      for (std::size_t i = 0; i < size; ++i) {
        const auto v = static_cast<double>(x[i]);
        const double wanted = activation == Activation::relu        ? std::fmax(v, 0.0)
                              : activation == Activation::gelu_tanh ? oracle::gelu_tanh(v)
                                                                    : oracle::gelu_erf(v);
        CHECK(std::fabs(static_cast<double>(out[i]) - wanted) < 1e-6 * std::fmax(1.0, std::fabs(v)));
      }
    }
  }
  x[2] = NAN;
  activate_row(Activation::relu, x, out.data());
  CHECK(std::isnan(out[2]));
}

TEST_CASE("Feed-forward layers equal their definitions, with residual, for one and many tokens") {
  const SerialExecutor serial;
  const std::size_t hidden = 35, inner = 50;
  const auto gate = support::normal(inner * hidden, 1, 0.2f), up = support::normal(inner * hidden, 2, 0.2f);
  const auto down = support::normal(hidden * inner, 3, 0.2f);
  const auto bias = support::normal(inner, 4), out_bias = support::normal(hidden, 5);
  const oracle::Matrix wg(inner, hidden, gate), wu(inner, hidden, up), wd(hidden, inner, down);
  auto gated =
      GatedMlp<DenseLinear<float>>::create(hidden, inner, {dense(gate, hidden), dense(up, hidden), dense(down, inner)});
  REQUIRE(gated);
  auto plain = PlainMlp<DenseLinear<float>>::create(hidden, Activation::gelu_erf,
                                                    {dense(up, hidden, bias), dense(down, inner, out_bias)});
  REQUIRE(plain);
  for (const Isa isa : support::machine_isas()) {
    ExecutionContext<> context(serial, isa);
    for (const std::size_t tokens : {1u, 4u, 33u}) {
      CAPTURE(isa_name(isa), tokens);
      const auto x = support::normal(tokens * hidden, 6), residual = support::normal(tokens * hidden, 7);
      const oracle::Matrix reference(tokens, hidden, x);
      std::vector<float> y(x.size());
      const LinearOutput out{support::view(y, hidden), support::input(residual, hidden)};

      REQUIRE(gated->forward(support::input(x, hidden), out, context));
      oracle::Matrix middle = oracle::linear(reference, wg);
      const oracle::Matrix raised = oracle::linear(reference, wu);
      for (std::size_t i = 0; i < middle.values.size(); ++i) {
        middle.values[i] = oracle::silu(middle.values[i]) * raised.values[i];
      }
      const oracle::Matrix added(tokens, hidden, residual);
      CHECK(oracle::distance(y, oracle::add(oracle::linear(middle, wd), added)) < 1e-6);

      REQUIRE(plain->forward(support::input(x, hidden), out, context));
      oracle::Matrix activated = oracle::linear(reference, wu, support::doubles(bias));
      for (double& v : activated.values) v = oracle::gelu_erf(v);
      const auto wanted = oracle::linear(activated, wd, support::doubles(out_bias));
      CHECK(oracle::distance(y, oracle::add(wanted, added)) < 1e-6);
    }
  }
}

TEST_CASE("Feed-forward layers refuse matrices that do not fit") {
  const std::vector<float> w(12);
  CHECK(GatedMlp<DenseLinear<float>>::create(4, 3, {dense(w, 4), dense(w, 3), dense(w, 3)}).error().code ==
        Errc::bad_shape);
  CHECK(PlainMlp<DenseLinear<float>>::create(4, Activation::relu, {dense(w, 4), dense(w, 4)}).error().code ==
        Errc::bad_shape);
  CHECK(PlainMlp<DenseLinear<float>>::create(4, Activation::relu, {dense(w, 4), dense(w, 3)}));
}
