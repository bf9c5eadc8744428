// SPDX-License-Identifier: Apache-2.0
#include <cbq/loss/squared.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <vector>

#include "support/losses.hpp"

TEST_CASE("the squared loss and its gradient") {
  support::check_loss(cbq::SquaredLoss{});
  support::check_loss(cbq::SquaredLoss::normalized(0.3, 21));
  support::check_float_loss(cbq::SquaredLoss{});
}

TEST_CASE("the worked example, and the share of the variance that is lost") {
  const std::vector<double> t = {1, -0.5, 2, 0}, y = {0.8, -0.2, 1.5, 0.4};
  const auto view = [](const auto& x) { return cbq::matrix_view(x.data(), 1, 4); };
  CHECK(cbq::SquaredLoss{}.value(view(y), view(t)) == Catch::Approx(0.54));
  const double variance = cbq::variance(view(t));
  const std::vector<double> mean(4, 0.625);
  CHECK(cbq::SquaredLoss::normalized(variance, 4).value(view(mean), view(t)) == Catch::Approx(1.0));
  CHECK(cbq::SquaredLoss::normalized(0, 4).value(view(y), view(t)) == Catch::Approx(0.54 / 4));
}
