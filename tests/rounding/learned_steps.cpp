// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/learned_steps.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <vector>

#include "support/layer_training.hpp"
#include "support/rounding.hpp"

using cbq::Zero;
using support::Trained;

TEST_CASE("hard weights, executors, counts, refusals") {
  support::check_rounding<cbq::LearnedSteps<float>>({}, 19);
  support::check_refusals<cbq::LearnedSteps<float>>({});
}

TEST_CASE("gradients of the steps, per channel and per group, are those of the surrogate") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    for (const int group : {0, 32, 128}) {
      const cbq::Grid grid = support::grid_of(2, group, zero);
      Trained<cbq::LearnedSteps<double>> t(6, 290, grid, {});
      const auto p = t.rounding.parameters();
      REQUIRE(p.size() == 1);
      const std::size_t length = cbq::group_length(grid, t.columns), groups = cbq::group_count(grid, t.columns);
      std::vector<double> wanted(p[0].size);
      for (std::size_t i = 0; i < t.weights.size(); ++i) {
        const std::size_t n = i / t.columns, g = i % t.columns / length;
        const double s = t.rounding.steps().step(n, g);
        wanted[n * groups + g] += s * support::straight_gradient(t.weights[i], 0, t.upstream[i], s,
                                                                 t.rounding.steps().zero(n, g), cbq::max_code(grid))
                                          .step;
      }
      for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(p[0].gradients[i] == Catch::Approx(wanted[i]).margin(1e-7));
    }
  }
}

TEST_CASE("training the steps alone beats the search for the least squared error") {
  const support::Layer layer;
  auto rounding = cbq::LearnedSteps<float>::create(layer.view(), support::grid_of(2, 32, Zero::affine), {}, 0);
  REQUIRE(rounding);
  std::vector<float> nearest(layer.weights.size());
  REQUIRE(rounding->hard_weights(cbq::matrix_view(nearest.data(), layer.outputs, layer.inputs), cbq::SerialExecutor{}));
  CHECK(layer.train(*rounding, 200) < 0.95 * layer.error(nearest));
}
