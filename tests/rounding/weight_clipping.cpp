// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/weight_clipping.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

#include <cbq/rounding/straight_through.hpp>
#include "support/layer_training.hpp"
#include "support/rounding.hpp"

using cbq::Zero;
using support::Trained;

TEST_CASE("hard weights, executors, counts, refusals") {
  support::check_rounding<cbq::WeightClipping<float>>({}, 19);
  support::check_refusals<cbq::WeightClipping<float>>({});
}

TEST_CASE("steps and zero points follow from the strengths") {
  const std::vector<double> w = {-0.5, 0.25, 1.0, 0.125};
  const double strength = 1 / (1 + std::exp(-4.0));
  const auto made = [&](Zero zero) {
    auto rounding = cbq::WeightClipping<double>::create({w.data(), 1, 4, 4}, support::grid_of(4, 0, zero), {}, 0);
    REQUIRE(rounding);
    return rounding;
  };
  CHECK(made(Zero::affine)->steps().step(0, 0) == Catch::Approx(strength * 1.5 / 15));
  CHECK(made(Zero::affine)->steps().zero(0, 0) == 5);
  CHECK(made(Zero::symmetric)->steps().step(0, 0) == Catch::Approx(strength * 1.0 / 7));
  CHECK(made(Zero::symmetric)->steps().zero(0, 0) == 8);
}

TEST_CASE("gradients of the strengths: the chain from the surrogate's step") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    const cbq::Grid grid = support::grid_of(3, 32, zero);
    Trained<cbq::WeightClipping<double>> t(6, 290, grid, {});
    const auto p = t.rounding.parameters();
    REQUIRE(p.size() == 2);
    std::vector<double> ds(p[0].size);
    for (std::size_t i = 0; i < t.weights.size(); ++i) {
      const std::size_t n = i / t.columns, g = i % t.columns / 32;
      ds[n * 10 + g] += support::straight_gradient(t.weights[i], 0, t.upstream[i], t.rounding.steps().step(n, g),
                                                   t.rounding.steps().zero(n, g), cbq::max_code(grid))
                            .step;
    }
    for (std::size_t part = 0; part < 2; ++part) {
      for (std::size_t i = 0; i < ds.size(); ++i) {
        const double at = p[part].values[i], h = 1e-6;
        p[part].values[i] = at + h;
        const double above = t.rounding.steps().step(i / 10, i % 10);
        p[part].values[i] = at - h;
        const double below = t.rounding.steps().step(i / 10, i % 10);
        p[part].values[i] = at;
        CHECK(p[part].gradients[i] == Catch::Approx(ds[i] * (above - below) / (2 * h)).margin(1e-7));
      }
    }
  }
}

TEST_CASE("trained ranges start another method") {
  const support::Layer layer;
  const cbq::Grid grid = support::grid_of(2, 32, Zero::affine);
  auto clipping = cbq::WeightClipping<float>::create(layer.view(), grid, {}, 0);
  REQUIRE(clipping);
  std::vector<float> before(layer.weights.size()), after(before), started(before);
  const auto view = [&](std::vector<float>& to) { return cbq::matrix_view(to.data(), layer.outputs, layer.inputs); };
  REQUIRE(clipping->hard_weights(view(before), cbq::SerialExecutor{}));
  CHECK(layer.train(*clipping, 300) < 0.8 * layer.error(before));
  REQUIRE(clipping->hard_weights(view(after), cbq::SerialExecutor{}));
  auto steps = cbq::clipped_steps(*clipping);
  REQUIRE(steps);
  auto rounding = cbq::StraightThrough<float>::create_with(layer.view(), std::move(*steps), {}, 0);
  REQUIRE(rounding);
  REQUIRE(rounding->hard_weights(view(started), cbq::SerialExecutor{}));
  // The stored steps are 2^-12 off the trained ones, which moves a few weights to another code.
  CHECK(layer.error(started) == Catch::Approx(layer.error(after)).epsilon(0.1));
  CHECK(layer.train(*rounding, 300) < 0.8 * layer.error(after));
}
