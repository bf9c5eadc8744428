// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/nibble_lanes.hpp>

#include <catch2/catch_test_macros.hpp>

using namespace cbq;

TEST_CASE("All 4096 products of two weights and an activation are exact, to every depth up to 256") {
  int wrong = 0;
  for (unsigned triple = 0; triple < 4096; ++triple) {
    const unsigned upper = triple >> 8, lower = triple >> 4 & 15, code = triple & 15;
    wrong += nibble_lane(std::byte(triple >> 4)) != nibble_lane(upper, lower);
    LaneSums sums;
    for (unsigned depth = 1; depth <= lane_depth; ++depth) {
      multiply_add(sums, nibble_lane(upper, lower), code);
      wrong += upper_sum(sums) != depth * upper * code || lower_sum(sums) != depth * lower * code;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("291 products of the largest codes fit, and not one more") {
  LaneSums sums;
  for (unsigned depth = 1; depth <= 292; ++depth) {
    multiply_add(sums, nibble_lane(15, 15), 15);
    const bool exact = upper_sum(sums) == depth * 225 && lower_sum(sums) == depth * 225;
    CHECK(exact == (depth <= 291));
  }
}

TEST_CASE("Orders of products do not matter") {
  // Large and small products in turn: the fields borrow from each other in every other order.
  LaneSums sums;
  unsigned upper = 0, lower = 0;
  for (unsigned i = 0; i < lane_depth; ++i) {
    const unsigned w = i * 7 % 16, v = (i / 16 + i) % 16, code = i * 5 % 16;
    multiply_add(sums, nibble_lane(w, v), code);
    upper += w * code;
    lower += v * code;
  }
  CHECK(upper_sum(sums) == upper);
  CHECK(lower_sum(sums) == lower);
}
