// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/lora.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <vector>

#include <cbq/rounding/ada.hpp>
#include "support/layer_training.hpp"
#include "support/rounding.hpp"
#include "support/sigmoid_rounding.hpp"

using cbq::Zero;

TEST_CASE("hard weights, executors, counts, refusals") {
  support::check_rounding<cbq::LoraRounding<float>>({.rank = 3}, 133);
  support::check_refusals<cbq::LoraRounding<float>>({.rank = 8});
}

TEST_CASE("weights and gradients are those of the definition") {
  support::check_sigmoid_rounding<cbq::LoraRounding<double>>({.rank = 5}, 131, support::grid_of(2, 32, Zero::affine));
  support::check_sigmoid_rounding<cbq::LoraRounding<double>>({.rank = 1}, 5, support::grid_of(3, 0, Zero::symmetric));
}

TEST_CASE("(N + K) r parameters instead of N K, and memory to match") {
  const cbq::Grid grid = support::grid_of(4, 0, Zero::symmetric);
  const std::vector<float> w = support::random_values<float>(512 * 256, 5, 0.05);
  const auto lora = cbq::LoraRounding<float>::create({w.data(), 512, 256, 256}, grid, {}, 0);
  REQUIRE(lora);
  CHECK(lora->trained_parameters() == (512 + 256) * 5 + 512);
  CHECK(cbq::AdaRound<float>::bytes_for(512, 256, grid, {}) > std::size_t{2} * 4 * 512 * 256);
  CHECK(lora->bytes() < 2 * 4 * 512 * 256 / 12);
}

TEST_CASE("training beats nearest rounding; the same seed gives the same codes") {
  const support::Layer layer;
  std::vector<float> nearest(layer.weights.size());
  std::vector<double> errors;
  for (const std::uint64_t seed : {1u, 1u, 2u}) {
    auto rounding =
        cbq::LoraRounding<float>::create(layer.view(), support::grid_of(3, 32, Zero::affine), {.rank = 16}, seed);
    REQUIRE(rounding);
    REQUIRE(
        rounding->hard_weights(cbq::matrix_view(nearest.data(), layer.outputs, layer.inputs), cbq::SerialExecutor{}));
    errors.push_back(layer.train(*rounding, 300));
  }
  CHECK(errors[0] < 0.6 * layer.error(nearest));
  CHECK(errors[1] == errors[0]);
  CHECK(errors[2] != errors[0]);
}
