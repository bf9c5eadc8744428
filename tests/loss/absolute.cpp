// SPDX-License-Identifier: Apache-2.0
#include <cbq/loss/absolute.hpp>

#include <catch2/catch_test_macros.hpp>

#include <vector>

#include "support/losses.hpp"

TEST_CASE("the absolute loss and its gradient") {
  support::check_loss(cbq::AbsoluteLoss{});
  support::check_loss(cbq::AbsoluteLoss::per_element(21));
  support::check_float_loss(cbq::AbsoluteLoss{});
}

TEST_CASE("a tie has no slope") {
  const std::vector<double> t = {1, 2, 3, 4}, y = {1, 3, 2, 4};
  std::vector<double> dy(4);
  const auto view = [](const auto& x) { return cbq::matrix_view(x.data(), 1, 4); };
  CHECK(cbq::AbsoluteLoss::per_element(4).gradient(view(y), view(t), cbq::matrix_view(dy.data(), 1, 4)) == 0.5);
  CHECK(dy == std::vector<double>{0, 0.25, -0.25, 0});
}
