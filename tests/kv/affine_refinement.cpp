// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/affine_refinement.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "support/guarded.hpp"
#include "support/nn.hpp"

using cbq::AffineGroup;
using cbq::AffineRefinement;
using cbq::refine_affine_group;

namespace {

AffineGroup range_fit(std::span<const float> x, std::size_t bits) {
  return cbq::fit_affine_group(cbq::min_max(x), bits).value();
}

// Weighted squared error of a group, in plain double.
double error_of(std::span<const float> x, const float* weights, const AffineGroup& fit, std::size_t bits) {
  const double scale = to_float(fit.scale), offset = to_float(fit.offset), top = std::exp2(bits) - 1;
  double error = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double code = std::fmin(std::fmax(std::nearbyint((static_cast<double>(x[i]) - offset) / scale), 0.0), top);
    const double off = static_cast<double>(x[i]) - scale * code - offset;
    error += (weights == nullptr ? 1.0 : static_cast<double>(weights[i])) * off * off;
  }
  return error;
}

bool same(const AffineGroup& a, const AffineGroup& b) {
  return a.scale.bits == b.scale.bits && a.offset.bits == b.offset.bits;
}

}  // namespace

TEST_CASE("one step gives the best scale and offset for the codes of the range", "[kv]") {
  // Two bits, range 0 .. 3: codes 0, 0, 1, 3, 3 of mean 1.4, x of mean 1.48; sums of deviations: codes squared 9.2,
  // codes times x 7.84.
  const std::vector<float> x = {0, 0.4f, 1.4f, 2.6f, 3};
  const AffineGroup range = range_fit(x, 2);
  REQUIRE(to_float(range.scale) == 1.0f);
  const AffineGroup refined = refine_affine_group(x, range, 2, {.steps = 1});
  CHECK(to_float(refined.scale) == Catch::Approx(7.84 / 9.2).epsilon(0x1p-11));
  CHECK(to_float(refined.offset) == Catch::Approx(1.48 - 1.4 * 7.84 / 9.2).epsilon(0x1p-10));
}

TEST_CASE("refinement never raises the weighted error, and lowers it for groups of any size", "[kv]") {
  for (const std::size_t bits : {2u, 3u, 4u, 8u}) {
    for (const std::size_t size : {2u, 15u, 16u, 17u, 64u, 80u, 127u, 128u}) {
      INFO("bits " << bits << ", elements " << size);
      const std::vector<float> values = support::normal(size, 7, 3.0f);
      std::vector<float> costs = support::normal(size, 8);
      for (float& cost : costs) cost *= cost;
      const support::Guarded<float> x(values, support::Edge::end), weights(costs, support::Edge::end);
      const AffineGroup range = range_fit(x.span(), bits);
      const float* const choices[] = {nullptr, weights.data()};
      for (const float* w : choices) {
        double before = error_of(x.span(), w, range, bits);
        const double first = before;
        for (int steps = 1; steps <= 4; ++steps) {
          const double after = error_of(x.span(), w, refine_affine_group(x.span(), range, bits, {steps, w}), bits);
          CHECK(after <= before * (1 + 1e-5));
          before = after;
        }
        if (size >= 64 && bits <= 4) CHECK(before < 0.95 * first);
      }
    }
  }
}

TEST_CASE("weights decide which channels keep their range", "[kv]") {
  // One loud channel: with equal weights its extreme is given up for the others, with a high weight it is kept.
  std::vector<float> x = support::normal(64, 3);
  x[10] = 12;
  std::vector<float> weights(64, 1.0f);
  const AffineGroup range = range_fit(x, 2);
  const auto loss = [&](const float* w) {
    const AffineGroup fit = refine_affine_group(x, range, 2, {8, w});
    return std::fabs(12 - std::fmin(12.0, 3.0 * to_float(fit.scale) + to_float(fit.offset)));
  };
  const double equal = loss(nullptr);
  CHECK(loss(weights.data()) == equal);
  weights[10] = 1e4f;
  CHECK(equal > 0.5);
  CHECK(loss(weights.data()) < 0.01);
}

TEST_CASE("what tells nothing stays as it is", "[kv]") {
  const std::vector<float> x = support::normal(32, 5);
  const AffineGroup range = range_fit(x, 4);
  CHECK(same(refine_affine_group(x, range, 4, {}), range));
  const std::vector<float> nothing(32, 0.0f);
  CHECK(same(refine_affine_group(x, range, 4, {2, nothing.data()}), range));
  const std::vector<float> constant(32, 1.5f);
  const AffineGroup flat = range_fit(constant, 4);
  CHECK(same(refine_affine_group(constant, flat, 4, {.steps = 2}), flat));
  const std::vector<float> one = {3};
  CHECK(same(refine_affine_group(one, {.scale = cbq::to_half(1), .offset = cbq::to_half(3)}, 4, {.steps = 2}),
             {.scale = cbq::to_half(1), .offset = cbq::to_half(3)}));
  CHECK(same(refine_affine_group({}, range, 4, {.steps = 2}), range));
}
