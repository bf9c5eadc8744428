// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/refined_groups.hpp>

#include <catch2/catch_test_macros.hpp>

#include <vector>

#include "support/stored_matrices.hpp"

using cbq::Zero;
using support::grid_of;
using support::Matrix;

TEST_CASE("the longest groups that divide") {
  CHECK(cbq::dividing_group(grid_of(4, 128, Zero::symmetric), 576, 576) == 64);
  CHECK(cbq::dividing_group(grid_of(4, 128, Zero::symmetric), 1536, 1536) == 128);
  CHECK(cbq::dividing_group(grid_of(4, 128, Zero::symmetric), 1536, 32) == 32);
  CHECK(cbq::dividing_group(grid_of(4, 0, Zero::symmetric), 576, 128) == 64);
  CHECK(cbq::dividing_group(grid_of(4, 0, Zero::symmetric), 25, 128) == 1);
  CHECK(cbq::dividing_group(grid_of(4, 32, Zero::symmetric), 0, 128) != 1);
}

TEST_CASE("every weight keeps its scale and zero point") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    for (const auto& [group, refined] : {std::pair{64, 32}, {64, 16}, {0, 32}, {32, 32}}) {
      const Matrix m = support::random_matrix(3, 96, grid_of(4, group, zero));
      const auto made = cbq::RefinedGroups::create(m.view(), m.grid, refined);
      REQUIRE(made);
      CHECK(made->grid() == grid_of(4, refined, zero));
      const cbq::QuantizedMatrixView view = made->view();
      CHECK(view.codes.data == m.codes.data());
      REQUIRE(view.scales.columns == 96 / static_cast<std::size_t>(refined));
      const std::size_t length = cbq::group_length(m.grid, 96);
      for (std::size_t n = 0; n < 3; ++n) {
        for (std::size_t k = 0; k < 96; ++k) {
          const std::size_t g = k / static_cast<std::size_t>(refined);
          CHECK(cbq::row(view.scales, n)[g] == cbq::row(m.view().scales, n)[k / length]);
          if (zero == Zero::affine) CHECK(cbq::row(view.zeros, n)[g] == cbq::row(m.view().zeros, n)[k / length]);
        }
      }
    }
  }
  const Matrix m = support::random_matrix(3, 96, grid_of(4, 64, Zero::symmetric));
  CHECK_FALSE(cbq::RefinedGroups::create(m.view(), m.grid, 48));
  CHECK_FALSE(cbq::RefinedGroups::create(m.view(), m.grid, 0));
}
