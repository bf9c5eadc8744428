// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/view.hpp>

#include <catch2/catch_test_macros.hpp>

#include <type_traits>

TEST_CASE("rows and columns of a view keep the stride") {
  int data[24] = {};
  for (int i = 0; i < 24; ++i) data[i] = i;
  const cbq::MatrixView<int> view{data, 4, 5, 6};
  CHECK(cbq::row(view, 3)[4] == 22);
  const auto part = cbq::columns(cbq::rows(view, 1, 2), 2, 3);
  CHECK(part.rows == 2);
  CHECK(part.columns == 3);
  CHECK(cbq::row(part, 0)[0] == 8);
  CHECK(cbq::row(part, 1)[2] == 16);
  CHECK(cbq::row(cbq::as_const(part), 1)[0] == 14);
  STATIC_REQUIRE(std::is_same_v<decltype(cbq::as_const(view)), cbq::MatrixView<const int>>);
  STATIC_REQUIRE(std::is_aggregate_v<cbq::MatrixView<int>>);
}

TEST_CASE("matrix_view has no gaps") {
  float data[6] = {0, 1, 2, 3, 4, 5};
  const auto view = cbq::matrix_view(data, 2, 3);
  CHECK(view.stride == 3);
  CHECK(cbq::row(view, 1)[2] == 5);
  CHECK(cbq::rows(view, 2, 0).rows == 0);
}
