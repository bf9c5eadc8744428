// SPDX-License-Identifier: Apache-2.0
#include <cbq/loss/softmax_kl.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <vector>

#include "support/losses.hpp"

TEST_CASE("the divergence of softmax rows and its gradient") {
  support::check_loss(cbq::FeatureKl{});
  support::check_float_loss(cbq::LogitsKl{});
}

TEST_CASE("the worked example") {
  const std::vector<double> t = {1, -0.5, 2, 0}, y = {0.8, -0.2, 1.5, 0.4};
  const auto view = [](const auto& x) { return cbq::matrix_view(x.data(), 1, 4); };
  CHECK(cbq::SoftmaxKl{}.value(view(y), view(t)) == Catch::Approx(0.050553).margin(1e-6));
}

TEST_CASE("large values neither overflow nor spoil the result") {
  const std::vector<float> t = {1000, -1000, 998, 0}, y = {-3000, -1000, -2998, -3000};
  std::vector<float> dy(4);
  const auto view = [](const auto& x) { return cbq::matrix_view(x.data(), 1, 4); };
  // Almost all of y's mass is on the second, almost all of t's on the first: KL is about y's distance there.
  const double value = cbq::SoftmaxKl{}.gradient(view(y), view(t), cbq::matrix_view(dy.data(), 1, 4));
  const double p = 1 / (1 + std::exp(-2.0));
  const double entropy = -p * std::log(p) - (1 - p) * std::log(1 - p);
  CHECK(value == Catch::Approx(p * 2000 + (1 - p) * 1998 - entropy).epsilon(1e-5));
  CHECK(dy[0] == Catch::Approx(-p).epsilon(1e-5));
  CHECK(dy[1] == 1.0f);
}
