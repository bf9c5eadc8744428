// SPDX-License-Identifier: Apache-2.0
#include <cbq/transform/channel_scaling.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <string>
#include <vector>

#include <cbq/transform/smoothquant.hpp>

#include "support/kernels.hpp"
#include "support/random_decoder.hpp"

using cbq::Errc;
using cbq::LinearWeights;

namespace {

// Positive factors between 1/8 and 8.
std::vector<float> random_factors(std::size_t count, unsigned seed) {
  std::vector<float> factors = support::normal(count, seed);
  for (float& f : factors) f = std::exp2(std::fmin(std::fmax(f, -3.0f), 3.0f));
  return factors;
}

}  // namespace

TEST_CASE("scaling all four sites of a LLaMA layer leaves the model's function unchanged") {
  for (const bool biases : {false, true}) {
    support::RandomLlama llama(biases);
    const auto wanted = llama.reference_logits(support::tokens);
    for (support::Layer& l : llama.layers) {
      const std::vector<float> before = l.value.values;
      const auto w = support::weights_of(l);
      const LinearWeights<float> qkv[] = {w.query, w.key, w.value};
      const LinearWeights<float> gate_up[] = {w.gate, w.up};
      REQUIRE(cbq::scale_channels(w.attention_norm, qkv, random_factors(48, 1)));
      REQUIRE(cbq::scale_channels(w.mlp_norm, gate_up, random_factors(48, 2)));
      REQUIRE(cbq::scale_channels(w.up, {&w.down, 1}, random_factors(72, 3)));
      std::vector<float> factors = random_factors(72, 4);
      REQUIRE(cbq::scale_value_channels(w.value, w.output, {4, 2, 18}, factors));
      CHECK(l.value.values != before);
    }
    CHECK(oracle::distance(support::logits(llama), wanted) < 1e-5);
  }
}

TEST_CASE("scaling norms with biases, and rows before a ReLU, leaves OPT's function unchanged") {
  support::RandomOpt opt;
  support::Layer& l = opt.layers[0];
  const oracle::Matrix h(9, 40, support::normal(9 * 40, 3));
  const oracle::Matrix wanted = opt.reference(l, h);
  const auto w = support::weights_of(l);
  const LinearWeights<float> qkv[] = {w.query, w.key, w.value};
  REQUIRE(cbq::scale_channels(support::layer_norm(l.first_norm, l.first_bias), qkv, random_factors(40, 1)));
  REQUIRE(cbq::scale_channels(support::layer_norm(l.second_norm, l.second_bias), {&w.up, 1}, random_factors(40, 2)));
  REQUIRE(cbq::scale_channels(w.up, {&w.down, 1}, random_factors(64, 3)));
  std::vector<float> factors = random_factors(40, 4);
  REQUIRE(cbq::scale_value_channels(w.value, w.output, {5, 5, 8}, factors));
  const oracle::Matrix scaled = opt.reference(l, h);
  CHECK(oracle::distance(std::vector<float>(scaled.values.begin(), scaled.values.end()), wanted) < 1e-5);
}

TEST_CASE("query heads of one value head share the largest factor") {
  std::vector<double> factors = {1, 2, 3, 4, /**/ 5, 1, 1, 9};
  REQUIRE(cbq::share_factors({4, 2, 2}, std::span<double>(factors)));
  CHECK(factors == std::vector<double>{3, 4, 3, 4, 5, 9, 5, 9});
  CHECK(cbq::share_factors({4, 3, 2}, std::span<double>(factors)).error().code == Errc::bad_shape);
  CHECK(cbq::share_factors({4, 2, 3}, std::span<double>(factors)).error().code == Errc::bad_shape);
  CHECK(cbq::share_factors({0, 0, 0}, std::span<double>(factors)).error().code == Errc::bad_shape);
}

TEST_CASE("wrong factors and shapes are named and change nothing") {
  support::Weights producer(6, 5, 1, true), consumer(4, 6, 2, false);
  const auto p = support::view_of(producer), c = support::view_of(consumer);
  const auto before = producer.values;
  const auto scale = [&](const std::vector<float>& factors) { return cbq::scale_channels(p, {&c, 1}, factors); };
  for (const float bad : {0.0f, -1.0f, std::nanf(""), HUGE_VALF}) {
    const auto failed = scale({1, 1, 1, bad, 1, 1});
    REQUIRE_FALSE(failed);
    CHECK(failed.error().code == Errc::bad_argument);
    CHECK(std::string(failed.error().where.c_str()) == "channel 3");
  }
  CHECK(scale({1, 1, 1, 1, 1}).error().code == Errc::bad_shape);
  consumer.inputs = 3;
  const auto narrow = support::view_of(consumer);
  const auto failed = cbq::scale_channels(p, {&narrow, 1}, std::vector<float>(6, 2.0f));
  REQUIRE_FALSE(failed);
  CHECK(std::string(failed.error().where.c_str()) == "consumer 0");
  CHECK(producer.values == before);
}

TEST_CASE("SmoothQuant's factors are those of its formula, and 1 for dead channels") {
  std::vector<double> w1 = {1, -4, 0, 2, /**/ -2, 1, 0, 1}, w2 = {0.5, -9, 0, 1};
  const LinearWeights<double> consumers[] = {{cbq::matrix_view(w1.data(), 2, 4), {}},
                                             {cbq::matrix_view(w2.data(), 1, 4), {}}};
  const std::vector<double> sizes = {8, 16, 3, 0};
  std::vector<double> factors(4);
  const auto find = [&](double alpha) {
    return cbq::smoothquant_factors(std::span<const double>(sizes), std::span<const LinearWeights<double>>(consumers),
                                    std::span<double>(factors), {.alpha = alpha});
  };
  REQUIRE(find(0.5));
  CHECK(factors == std::vector<double>{2, 4.0 / 3.0, 1, 1});
  // At one half, scaled activations and weights have equal maxima.
  CHECK(sizes[1] / factors[1] == Catch::Approx(9 * factors[1]));
  REQUIRE(find(1));
  CHECK(factors == std::vector<double>{8, 16, 1, 1});
  REQUIRE(find(0));
  CHECK(factors[0] == 0.5);
  CHECK(find(1.1).error().code == Errc::bad_argument);
  w1[1] = std::nan("");
  CHECK(find(0.5).error().code == Errc::not_finite);
  CHECK(std::string(find(0.5).error().where.c_str()) == "channel 1");
}
