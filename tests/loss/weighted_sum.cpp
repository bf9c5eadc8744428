// SPDX-License-Identifier: Apache-2.0
#include <cbq/loss/weighted_sum.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cmath>
#include <vector>

#include <cbq/loss/softmax_kl.hpp>
#include <cbq/loss/squared.hpp>
#include "support/losses.hpp"

TEST_CASE("a weighted sum is a loss") {
  static_assert(cbq::Loss<cbq::WeightedSum<cbq::SquaredLoss, cbq::FeatureKl>>);
  const cbq::WeightedSum loss(std::array{0.5, 2.0}, cbq::SquaredLoss{}, cbq::FeatureKl{});
  support::check_loss(loss);
  support::check_float_loss(loss);
}

TEST_CASE("the worked example: L2 and KL with weight 1") {
  const std::vector<double> t = {1, -0.5, 2, 0}, y = {0.8, -0.2, 1.5, 0.4};
  const std::vector<double> wanted = {-0.385262, 0.639012, -1.133812, 0.880062};
  std::vector<double> dy(4);
  const auto view = [](const auto& x) { return cbq::matrix_view(x.data(), 1, 4); };
  const cbq::WeightedSum loss(cbq::SquaredLoss{}, cbq::FeatureKl{});
  CHECK(loss.gradient(view(y), view(t), cbq::matrix_view(dy.data(), 1, 4)) == Catch::Approx(0.590553).margin(1e-6));
  for (std::size_t i = 0; i < 4; ++i) CHECK(dy[i] == Catch::Approx(wanted[i]).margin(1e-6));
}

TEST_CASE("a term of weight zero is not computed") {
  const std::vector<double> t = {INFINITY, 0}, y = {0.0, 0.0};
  const auto view = [](const auto& x) { return cbq::matrix_view(x.data(), 1, 2); };
  const cbq::WeightedSum loss(std::array{0.0, 0.0}, cbq::SquaredLoss{}, cbq::FeatureKl{});
  CHECK(loss.value(view(y), view(t)) == 0.0);
}
