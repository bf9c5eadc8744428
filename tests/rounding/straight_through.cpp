// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/straight_through.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <vector>

#include "support/layer_training.hpp"
#include "support/rounding.hpp"

using cbq::Zero;
using support::Trained;

namespace {

template <class R>
double step_of(const R& rounding, std::size_t n, std::size_t k, std::size_t length) {
  return static_cast<double>(rounding.steps().step(n, k / length));
}

}  // namespace

TEST_CASE("dense: hard weights, executors, counts, refusals") {
  support::check_rounding<cbq::StraightThrough<float>>({}, 19);
  support::check_refusals<cbq::StraightThrough<float>>({});
}

TEST_CASE("low rank: hard weights, executors, counts, refusals") {
  support::check_rounding<cbq::StraightThroughLowRank<float>>({.reach = 0.7, .rank = 3}, 133);
  support::check_refusals<cbq::StraightThroughLowRank<float>>({.rank = 8});
}

TEST_CASE("dense: gradients are those of the surrogate, clipped weights included") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    for (const int group : {0, 32}) {
      const cbq::Grid grid = support::grid_of(2, group, zero);
      Trained<cbq::StraightThrough<double>> t(19, 290, grid, {});
      const auto p = t.rounding.parameters();
      REQUIRE(p.size() == 2);
      const std::size_t length = cbq::group_length(grid, t.columns), groups = cbq::group_count(grid, t.columns);
      std::vector<double> steps(t.rows * groups);
      std::size_t clipped = 0, wrong = 0;
      for (std::size_t n = 0; n < t.rows; ++n) {
        for (std::size_t k = 0; k < t.columns; ++k) {
          const std::size_t i = n * t.columns + k, g = k / length;
          const double s = step_of(t.rounding, n, k, length);
          const auto wanted = support::straight_gradient(t.weights[i], p[0].values[i], t.upstream[i], s,
                                                         t.rounding.steps().zero(n, g), cbq::max_code(grid));
          clipped += wanted.offset == 0 ? 1u : 0u;
          wrong += std::fabs(p[0].gradients[i] - wanted.offset) < 1e-7 ? 0u : 1u;
          steps[n * groups + g] += wanted.step * s;
        }
      }
      CHECK(wrong == 0);
      CHECK(clipped > 10);
      for (std::size_t i = 0; i < steps.size(); ++i) CHECK(p[1].gradients[i] == Catch::Approx(steps[i]).margin(1e-7));
    }
  }
}

TEST_CASE("low rank: gradients of the factors, of the bound and of the steps") {
  const cbq::Grid grid = support::grid_of(3, 64, Zero::affine);
  constexpr std::size_t rank = 3;
  Trained<cbq::StraightThroughLowRank<double>> t(135, 290, grid, {.reach = 0.3, .rank = rank});
  const auto p = t.rounding.parameters();
  REQUIRE(p.size() == 3);
  REQUIRE(p[0].size == 135 * rank);
  REQUIRE(p[1].size == rank * 290);
  std::vector<double> left(p[0].size), right(p[1].size), steps(p[2].size);
  std::size_t bounded = 0;
  for (std::size_t n = 0; n < t.rows; ++n) {
    for (std::size_t k = 0; k < t.columns; ++k) {
      double v = 0;
      for (std::size_t j = 0; j < rank; ++j) v += p[0].values[n * rank + j] * p[1].values[j * t.columns + k];
      const bool free = std::fabs(v) <= 0.3;
      bounded += free ? 0u : 1u;
      v = free ? v : std::copysign(0.3, v);
      const double s = step_of(t.rounding, n, k, 64);
      const auto wanted = support::straight_gradient(t.weights[n * t.columns + k], v, t.upstream[n * t.columns + k], s,
                                                     t.rounding.steps().zero(n, k / 64), 7);
      for (std::size_t j = 0; j < rank && free; ++j) {
        left[n * rank + j] += wanted.offset * p[1].values[j * t.columns + k];
        right[j * t.columns + k] += wanted.offset * p[0].values[n * rank + j];
      }
      steps[n * 5 + k / 64] += wanted.step * s;
    }
  }
  CHECK(bounded > 100);
  const std::vector<double>* const wanted[] = {&left, &right, &steps};
  for (std::size_t part = 0; part < 3; ++part) {
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < p[part].size; ++i)
      wrong += std::fabs(p[part].gradients[i] - (*wanted[part])[i]) < 1e-6 ? 0u : 1u;
    CHECK(wrong == 0);
  }
}

TEST_CASE("without training it is nearest rounding, and offsets move codes by one at most") {
  const cbq::Grid grid = support::grid_of(4, 32, Zero::affine);
  const std::vector<float> w = support::random_values<float>(16 * 96, 5, 0.05);
  const cbq::MatrixView<const float> view{w.data(), 16, 96, 96};
  const auto nearest = cbq::round_nearest(view, grid, cbq::MseRange{});
  auto rounding = cbq::StraightThrough<float>::create(view, grid, {}, 0);
  REQUIRE((nearest && rounding));
  const auto untrained = rounding->harden();
  REQUIRE(untrained);
  CHECK(std::memcmp(untrained->view().codes.data, nearest->view().codes.data, w.size()) == 0);
  CHECK(std::memcmp(untrained->view().scales.data, nearest->view().scales.data, 16 * 3 * sizeof(float)) == 0);
  for (float* v = rounding->parameters()[0].values; v != rounding->parameters()[0].values + w.size(); ++v) *v = 9.0f;
  rounding->project();
  const auto moved = rounding->harden();
  REQUIRE(moved);
  std::size_t up = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const int difference = moved->view().codes.data[i] - nearest->view().codes.data[i];
    CHECK((difference == 0 || difference == 1));
    up += difference == 1 ? 1u : 0u;
  }
  CHECK(up > w.size() / 4);
}

TEST_CASE("hardened: offsets rest") {
  Trained<cbq::StraightThrough<float>> t(5, 70, support::grid_of(4, 32, Zero::symmetric), {});
  t.rounding.set_phase(cbq::RoundingPhase::hardened);
  REQUIRE(t.rounding.backward(t.view(t.upstream), {0.95}, cbq::SerialExecutor{}));
  const auto p = t.rounding.parameters();
  CHECK(p[0].learning_rate == 0);
  CHECK(p[1].learning_rate > 0);
  for (std::size_t i = 0; i < p[0].size; ++i) CHECK(p[0].gradients[i] == 0.0f);
  CHECK(p[1].gradients[0] != 0.0f);
}

TEST_CASE("ranks that make no sense are refused, and A1 has the variance 1 / r") {
  const std::vector<float> w = support::random_values<float>(400 * 100, 5, 0.05);
  const cbq::MatrixView<const float> view{w.data(), 400, 100, 100};
  for (const std::size_t rank : {std::size_t{0}, std::size_t{101}}) {
    const auto made =
        cbq::StraightThroughLowRank<float>::create(view, support::grid_of(4, 0, Zero::affine), {.rank = rank}, 0);
    REQUIRE(!made);
    CHECK(made.error().code == cbq::Errc::bad_argument);
  }
  auto made = cbq::StraightThroughLowRank<float>::create(view, support::grid_of(4, 0, Zero::affine), {.rank = 16}, 0);
  REQUIRE(made);
  const auto p = made->parameters();
  double sum = 0, squares = 0;
  for (std::size_t i = 0; i < p[0].size; ++i) {
    sum += static_cast<double>(p[0].values[i]);
    squares += static_cast<double>(p[0].values[i]) * static_cast<double>(p[0].values[i]);
  }
  CHECK(sum / 6400 == Catch::Approx(0).margin(0.015));
  CHECK(squares / 6400 == Catch::Approx(1.0 / 16).epsilon(0.05));
  for (std::size_t i = 0; i < p[1].size; ++i) CHECK(p[1].values[i] == 0.0f);
}

TEST_CASE("training beats nearest rounding: dense by far, low rank as well") {
  const support::Layer layer;
  const cbq::Grid grid = support::grid_of(2, 32, Zero::affine);
  std::vector<float> nearest(layer.weights.size());
  auto dense = cbq::StraightThrough<float>::create(layer.view(), grid, {}, 0);
  auto low = cbq::StraightThroughLowRank<float>::create(layer.view(), grid, {.rank = 16}, 0);
  REQUIRE((dense && low));
  REQUIRE(dense->hard_weights(cbq::matrix_view(nearest.data(), layer.outputs, layer.inputs), cbq::SerialExecutor{}));
  CHECK(layer.train(*dense, 300) < 0.4 * layer.error(nearest));
  CHECK(layer.train(*low, 300) < 0.8 * layer.error(nearest));
}
