// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/ada.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <vector>

#include "support/layer_training.hpp"
#include "support/rounding.hpp"
#include "support/sigmoid_rounding.hpp"

using cbq::Zero;
using support::Trained;

TEST_CASE("hard weights, executors, counts, refusals") {
  support::check_rounding<cbq::AdaRound<float>>({}, 19);
  support::check_refusals<cbq::AdaRound<float>>({});
}

TEST_CASE("weights and gradients are those of the definition") {
  support::check_sigmoid_rounding<cbq::AdaRound<double>>({}, 9, support::grid_of(2, 32, Zero::affine));
  support::check_sigmoid_rounding<cbq::AdaRound<double>>({}, 9, support::grid_of(3, 0, Zero::symmetric));
}

TEST_CASE("before training soft weights are the weights, as far as the grid reaches") {
  const cbq::Grid grid = support::grid_of(4, 32, Zero::affine);
  const std::vector<double> w = support::random_values<double>(4 * 64, 5, 0.05);
  const cbq::MatrixView<const double> view{w.data(), 4, 64, 64};
  auto rounding = cbq::AdaRound<double>::create(view, grid, {}, 0);
  REQUIRE(rounding);
  std::vector<double> soft(w.size());
  REQUIRE(rounding->soft_weights(cbq::matrix_view(soft.data(), 4, 64), cbq::SerialExecutor{}));
  std::size_t same = 0;
  for (std::size_t i = 0; i < w.size(); ++i) same += std::fabs(soft[i] - w[i]) < 1e-12 ? 1u : 0u;
  CHECK(same > w.size() * 9 / 10);
  const auto nearest = cbq::round_nearest(view, grid, cbq::MseRange{});
  const auto hard = rounding->harden();
  REQUIRE((nearest && hard));
  CHECK(std::memcmp(nearest->view().codes.data, hard->view().codes.data, w.size()) == 0);
}

TEST_CASE("the relative weight makes both parts of the gradient equally large") {
  Trained<cbq::AdaRound<double>> t(20, 70, support::grid_of(3, 32, Zero::affine),
                                   {.penalty = {.weighting = cbq::PenaltyWeighting::relative}}, 0.1);
  const std::vector<double> reconstruction = t.gradients();  // the loss does not count yet
  REQUIRE(t.rounding.backward(t.view(t.upstream), {1.0}, support::Backwards{}));
  const std::vector<double> both = t.gradients();
  double first = 0, second = 0;
  for (std::size_t i = 0; i < 20 * 70; ++i) {
    first += reconstruction[i] * reconstruction[i];
    second += (both[i] - reconstruction[i]) * (both[i] - reconstruction[i]);
  }
  CHECK(second == Catch::Approx(first).epsilon(1e-9));
  for (std::size_t i = 20 * 70; i < both.size(); ++i) CHECK(both[i] == reconstruction[i]);  // steps feel no penalty
}

TEST_CASE("training beats nearest rounding and ends decided") {
  const support::Layer layer;
  auto rounding = cbq::AdaRound<float>::create(layer.view(), support::grid_of(3, 32, Zero::affine), {}, 0);
  REQUIRE(rounding);
  std::vector<float> nearest(layer.weights.size()), soft(nearest), hard(nearest);
  const auto out = [&](std::vector<float>& to) { return cbq::matrix_view(to.data(), layer.outputs, layer.inputs); };
  REQUIRE(rounding->hard_weights(out(nearest), cbq::SerialExecutor{}));
  CHECK(layer.train(*rounding, 400) < 0.4 * layer.error(nearest));
  rounding->set_phase(cbq::RoundingPhase::soft);
  REQUIRE(rounding->soft_weights(out(soft), cbq::SerialExecutor{}));
  REQUIRE(rounding->hard_weights(out(hard), cbq::SerialExecutor{}));
  std::size_t undecided = 0;
  for (std::size_t i = 0; i < soft.size(); ++i) {
    const double step = static_cast<double>(rounding->steps().step(i / layer.inputs, i % layer.inputs / 32));
    undecided += std::fabs(static_cast<double>(soft[i] - hard[i])) > 0.05 * step ? 1u : 0u;
  }
  CAPTURE(undecided);
  CHECK(undecided < soft.size() / 20);
}
