// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/activation_site.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/nn.hpp"

using namespace cbq;

namespace {

Grid token_grid(int bits, Zero zero) {
  return {.bits = bits, .granularity = Granularity::per_token, .zero = zero};
}

template <class T>
std::vector<T> forward(const ActivationSite<T>& site, const std::vector<T>& x, std::size_t width) {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<T> out(x.size());
  const std::size_t rows = x.size() / width;
  REQUIRE(site.forward(matrix_view<const T>(x.data(), rows, width), matrix_view(out.data(), rows, width), context));
  return out;
}

}  // namespace

TEST_CASE("A grid of 16 bits is the identity, other grids are those of packed activations") {
  CHECK(ActivationSite<float>::create(Grid{}).value().is_identity());
  CHECK_FALSE(ActivationSite<float>::create(token_grid(6, Zero::symmetric)));
  const std::vector<float> x = support::normal(3 * 45, 4);
  const Grid groups = {.bits = 8, .granularity = Granularity::per_group, .group = 32};
  for (const Grid grid :
       {token_grid(8, Zero::symmetric), token_grid(4, Zero::symmetric), token_grid(4, Zero::affine), groups}) {
    const auto site = ActivationSite<float>::create(grid);
    REQUIRE(site);
    std::vector<float> wanted(x.size());
    REQUIRE(fake_quantize_activations(support::input(x, 45), grid, support::view(wanted, 45)));
    CHECK(forward(*site, x, 45) == wanted);
  }
}

TEST_CASE("All tokens are on one grid where activations are per tensor, and what it clips gets no gradient") {
  const std::vector<float> x = support::normal(20 * 45, 4);
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    const Grid grid = {.bits = 4, .granularity = Granularity::per_tensor, .zero = zero};
    auto site = ActivationSite<float>::create(grid, ClipMultiplier::learned);
    auto exact = ActivationSite<double>::create(grid);
    REQUIRE((site && exact));
    std::vector<float> wanted(x.size());
    ActivationRules rules;
    const auto check = [&] {
      REQUIRE(fake_quantize_activations(support::input(x, 45), grid, support::view(wanted, 45), rules));
      CHECK(forward(*site, x, 45) == wanted);
    };
    check();
    rules.fixed = StaticGrid{0.125f, zero == Zero::affine ? 7 : 0};
    REQUIRE((site->fix_activations(*rules.fixed) && exact->fix_activations(*rules.fixed)));
    check();
    site->clip() = rules.clip = 0.5f;
    check();
    CHECK(site->fix_activations({1.0f, -1}).error().code == Errc::bad_argument);
    // Not trained, but clipped: codes reach 7 steps of an eighth.
    const std::vector<double> values = {0.8, 2.0, -0.1, -3.0};
    std::vector<double> gradient = {1.0, 2.0, 3.0, 4.0};
    CHECK(forward(*exact, values, 4) == std::vector<double>{0.75, zero == Zero::affine ? 1.0 : 0.875, -0.125, -0.875});
    const SerialExecutor serial;
    ExecutionContext<> context(serial);
    const auto in = matrix_view<const double>(values.data(), 1, 4);
    REQUIRE(exact->backward(matrix_view(gradient.data(), 1, 4), in, in, context));
    CHECK(gradient == std::vector<double>{1.0, 0.0, 3.0, 0.0});
  }
  auto per_token = *ActivationSite<float>::create(token_grid(4, Zero::affine));
  CHECK(per_token.fix_activations({1.0f, 0}).error().code == Errc::unsupported);
}

TEST_CASE("A clip below 1 shrinks the range of every token") {
  auto site = ActivationSite<double>::create(token_grid(4, Zero::symmetric), ClipMultiplier::learned);
  REQUIRE(site);
  site->clip() = 0.5;
  // max|x| = 7 gives step 0.5: 7 is cut to 3.5, 1.3 becomes 3 steps.
  CHECK(forward(*site, {7.0, 1.3, -1.1, 0.2}, 4) == std::vector<double>{3.5, 1.5, -1.0, 0.0});
}

TEST_CASE("Groups of a token are tokens of their own") {
  const Grid grid = {.bits = 8, .granularity = Granularity::per_group, .group = 32};
  auto grouped = ActivationSite<double>::create(grid, ClipMultiplier::learned);
  auto whole = ActivationSite<double>::create(token_grid(8, Zero::symmetric), ClipMultiplier::learned);
  REQUIRE((grouped && whole));
  // Two tokens of two groups are four tokens.
  std::vector<double> x = support::doubles(support::normal(2 * 64, 8));
  for (std::size_t i = 0; i < 32; ++i) x[i] *= 100.0;
  const std::vector<double> slopes = support::doubles(support::normal(2 * 64, 9));
  grouped->clip() = whole->clip() = 0.7;
  CHECK(forward(*grouped, x, 64) == forward(*whole, x, 32));
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<double> gradient = slopes, wanted = slopes;
  const auto in = matrix_view<const double>(x.data(), 2, 64);
  const auto apart = matrix_view<const double>(x.data(), 4, 32);
  REQUIRE(grouped->backward(matrix_view(gradient.data(), 2, 64), in, in, context));
  REQUIRE(whole->backward(matrix_view(wanted.data(), 4, 32), apart, apart, context));
  CHECK(gradient == wanted);
  CHECK(gradient != slopes);
  CHECK(grouped->clip_gradient() == Catch::Approx(whole->clip_gradient()));
  // Of two groups, the second with the bad value.
  x[64 + 40] = std::numeric_limits<double>::infinity();
  std::vector<double> out(x.size());
  const Status done = grouped->forward(in, matrix_view(out.data(), 2, 64), context);
  REQUIRE_FALSE(done);
  CHECK(std::string(done.error().where.c_str()) == "token 1");
}

TEST_CASE("The gradient of a clip is that of learned steps, and clipped values get none") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    auto site = ActivationSite<double>::create(token_grid(4, zero), ClipMultiplier::learned);
    REQUIRE(site);
    const std::vector<double> x = support::doubles(support::normal(2 * 31, 8));
    const std::vector<double> slopes = support::doubles(support::normal(2 * 31, 9));
    site->clip() = 0.6;
    const SerialExecutor serial;
    ExecutionContext<> context(serial);
    std::vector<double> gradient = slopes;
    const auto in = matrix_view<const double>(x.data(), 2, 31);
    REQUIRE(site->backward(matrix_view(gradient.data(), 2, 31), in, in, context));
    double wanted = 0;
    for (std::size_t t = 0; t < 2; ++t) {
      double low = 0, high = 0;
      for (std::size_t i = 0; i < 31; ++i) {
        low = std::min(low, x[t * 31 + i]);
        high = std::max(high, x[t * 31 + i]);
      }
      const double levels = zero == Zero::symmetric ? 7 : 15;
      const double full = zero == Zero::symmetric ? std::max(-low, high) / levels : (high - low) / levels;
      const double offset = zero == Zero::symmetric ? 7 : std::nearbyint(-low / full);
      const double top = zero == Zero::symmetric ? 7 : 15 - offset;
      for (std::size_t i = 0; i < 31; ++i) {
        const double u = x[t * 31 + i] / (0.6 * full);
        const double v = std::nearbyint(u);
        const bool inside = v >= -offset && v <= top;
        const double q = std::min(std::max(v, -offset), top);
        wanted += slopes[t * 31 + i] * (q - (inside ? u : 0)) * full;
        CHECK(gradient[t * 31 + i] == (inside ? slopes[t * 31 + i] : 0.0));
      }
    }
    CHECK(site->clip_gradient() == Catch::Approx(wanted));
    site->clip() = 0.1;
    site->project();
    CHECK(site->clip() == ActivationSite<double>::smallest_clip);
    site->clip() = 1.5;
    site->project();
    CHECK(site->clip() == 1.0);
  }
}

TEST_CASE("Activations that are not finite are named by their token") {
  const auto site = ActivationSite<float>::create(token_grid(8, Zero::symmetric));
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    std::vector<float> x = support::normal(40 * 5, 1);
    x[33 * 5 + 2] = bad;
    std::vector<float> out(x.size());
    const Status done = site->forward(support::input(x, 5), support::view(out, 5), context);
    REQUIRE_FALSE(done);
    CHECK(done.error().code == Errc::not_finite);
    CHECK(std::string(done.error().where.c_str()) == "token 33");
  }
}
