// SPDX-License-Identifier: Apache-2.0
#include <cbq/loss/rows.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <vector>

#include "support/losses.hpp"

TEST_CASE("the variance is around each token's mean") {
  const std::vector<double> t = {1, 3, 10, 14};
  CHECK(cbq::variance(cbq::matrix_view(t.data(), 2, 2)) == Catch::Approx((1 + 1 + 4 + 4) / 4.0));
  CHECK(cbq::variance(cbq::matrix_view(t.data(), 0, 2)) == 0.0);
  const std::vector<float> x = support::normal<float>(200 * 33, 1);
  const auto view = cbq::matrix_view(x.data(), 200, 33);
  CHECK(cbq::variance(view) == cbq::variance(view, support::BackwardThreads{}));
  CHECK(cbq::variance(view) == Catch::Approx(32.0 / 33).epsilon(0.05));
}

TEST_CASE("every row is summed once, whatever their number") {
  for (const std::size_t rows : {0u, 1u, 63u, 64u, 65u, 128u, 129u, 1000u}) {
    const double sum = cbq::losses::sum_rows(rows, support::BackwardThreads{},
                                             [](std::size_t n) { return static_cast<double>(n) + 1; });
    CHECK(sum == static_cast<double>(rows * (rows + 1)) / 2);
  }
}
