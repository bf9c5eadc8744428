// SPDX-License-Identifier: Apache-2.0
#pragma once

// AdaRound and LoRA-Rounding in plain double, from the definitions: V0 = h^-1(f), h(V0 + D).

#include <cmath>
#include <cstddef>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cbq/rounding/rectified_sigmoid.hpp>
#include "support/rounding.hpp"

namespace support {

template <class R>
double offset_of(R& rounding, std::size_t n, std::size_t k, std::size_t columns) {
  const auto p = rounding.parameters();
  if (p.size() == 2) return static_cast<double>(p[0].values[n * columns + k]);
  const std::size_t rank = p[1].size / columns;
  double v = 0;
  for (std::size_t j = 0; j < rank; ++j)
    v += static_cast<double>(p[0].values[n * rank + j]) * static_cast<double>(p[1].values[j * columns + k]);
  return v;
}

struct PlainDecision {
  double scaled, soft, hard, h;  // u, d, hard d
  bool inside;
};
template <class R>
PlainDecision plain_decision(Trained<R>& t, std::size_t n, std::size_t k) {
  namespace h = cbq::rectified_sigmoid;
  const Grid& grid = t.rounding.grid();
  const std::size_t group = k / cbq::group_length(grid, t.columns);
  const double low = -t.rounding.steps().zero(n, group), high = low + cbq::max_code(grid);
  const auto clamp = [&](double d) { return d < low ? low : d > high ? high : d; };
  const double u =
      static_cast<double>(t.weights[n * t.columns + k]) / static_cast<double>(t.rounding.steps().step(n, group));
  const double v = h::inverse(u - std::floor(u)) + offset_of(t.rounding, n, k, t.columns);
  const double code = std::floor(u) + h::value(v);
  return {u, clamp(code), clamp(std::floor(u) + (v >= 0 ? 1 : 0)), h::value(v), low <= code && code <= high};
}

// sum G o W^ + weight * L_com.
template <class R>
double plain_loss(Trained<R>& t, double weight, double exponent) {
  double sum = 0;
  for (std::size_t n = 0; n < t.rows; ++n) {
    for (std::size_t k = 0; k < t.columns; ++k) {
      const PlainDecision x = plain_decision(t, n, k);
      const std::size_t group = k / cbq::group_length(t.rounding.grid(), t.columns);
      sum += static_cast<double>(t.upstream[n * t.columns + k]) *
                 static_cast<double>(t.rounding.steps().step(n, group)) * x.soft +
             weight * cbq::rectified_sigmoid::penalty(x.h, exponent);
    }
  }
  return sum;
}

// Gradients of offsets against central differences of the definition, of steps against the documented rule; soft and
// hard weights against the definition.
template <class R>
void check_sigmoid_rounding(typename R::Options options, std::size_t rows, const Grid& grid) {
  options.penalty = {.weighting = cbq::PenaltyWeighting::sum, .weight = 0.02};
  constexpr double progress = 0.7;
  Trained<R> t(rows, 70, grid, options, progress);
  const double exponent = cbq::rectified_sigmoid::exponent(options.penalty, progress);
  const std::vector<double> soft = t.soft(cbq::SerialExecutor{});
  t.rounding.set_phase(cbq::RoundingPhase::hard_forward);
  const std::vector<double> hard = t.soft(cbq::SerialExecutor{});
  t.rounding.set_phase(cbq::RoundingPhase::soft);
  const std::size_t length = cbq::group_length(grid, t.columns), groups = cbq::group_count(grid, t.columns);
  std::vector<double> steps(rows * groups), hard_steps(rows * groups);
  std::size_t wrong = 0;
  for (std::size_t n = 0; n < rows; ++n) {
    for (std::size_t k = 0; k < t.columns; ++k) {
      const std::size_t i = n * t.columns + k, g = n * groups + k / length;
      const PlainDecision x = plain_decision(t, n, k);
      const double s = t.rounding.steps().step(n, k / length);
      wrong += std::fabs(soft[i] - s * x.soft) < 1e-12 && std::fabs(hard[i] - s * x.hard) < 1e-12 ? 0u : 1u;
      steps[g] += t.upstream[i] * (x.soft - (x.inside ? x.scaled : 0)) * s;
      hard_steps[g] += t.upstream[i] * (x.hard - (x.inside ? x.scaled : 0)) * s;
    }
  }
  CHECK(wrong == 0);
  const auto p = t.rounding.parameters();
  for (std::size_t part = 0; part + 1 < p.size(); ++part) {
    double largest = 0;
    for (std::size_t i = 0; i < p[part].size; i += 1 + p[part].size / 40) {
      const double at = p[part].values[i], h = 1e-6;
      p[part].values[i] = at + h;
      const double above = plain_loss(t, 0.02, exponent);
      p[part].values[i] = at - h;
      const double below = plain_loss(t, 0.02, exponent);
      p[part].values[i] = at;
      CHECK(p[part].gradients[i] == Catch::Approx((above - below) / (2 * h)).margin(2e-6));
      largest = std::fmax(largest, std::fabs(p[part].gradients[i]));
    }
    CHECK(largest > 1e-3);
  }
  const auto& last = p[p.size() - 1];
  for (std::size_t i = 0; i < steps.size(); ++i) CHECK(last.gradients[i] == Catch::Approx(steps[i]).margin(1e-10));
  t.rounding.set_phase(cbq::RoundingPhase::hard_forward);
  REQUIRE(t.rounding.backward(t.view(t.upstream), {progress}, cbq::SerialExecutor{}));
  for (std::size_t i = 0; i < steps.size(); ++i) CHECK(last.gradients[i] == Catch::Approx(hard_steps[i]).margin(1e-10));
}

}  // namespace support
