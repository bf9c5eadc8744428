// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/checked.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>

namespace {
constexpr std::size_t largest = SIZE_MAX;
constexpr std::size_t two_32 = std::size_t{1} << 32;
}  // namespace

TEST_CASE("products are exact up to the largest size") {
  CHECK(*cbq::checked_product(std::size_t{6}) == 6);
  CHECK(*cbq::checked_product(std::size_t{6}, std::size_t{7}, std::size_t{2}) == 84);
  CHECK(*cbq::checked_product(largest, std::size_t{1}) == largest);
  CHECK(*cbq::checked_product(two_32, two_32 - 1) == (two_32 - 1) * two_32);
  STATIC_REQUIRE(*cbq::checked_product(std::size_t{3}, std::size_t{4}) == 12);
}

TEST_CASE("products that overflow are errors, wherever they overflow") {
  CHECK(cbq::checked_product(two_32, two_32).error().code == cbq::Errc::bad_shape);
  CHECK(!cbq::checked_product(largest, std::size_t{2}));
  CHECK(!cbq::checked_product(two_32, two_32, std::size_t{2}));  // the wrapped product is 0 already
  CHECK(!cbq::checked_product(two_32 + 1, two_32, std::size_t{1}));
}

TEST_CASE("a zero factor makes every product zero") {
  CHECK(*cbq::checked_product(std::size_t{0}, largest, largest) == 0);
  CHECK(*cbq::checked_product(largest, largest, std::size_t{0}) == 0);
}

TEST_CASE("sums are exact or errors") {
  CHECK(*cbq::checked_sum(largest - 1, std::size_t{1}) == largest);
  CHECK(*cbq::checked_sum(std::size_t{1}, std::size_t{2}, std::size_t{3}) == 6);
  CHECK(!cbq::checked_sum(largest, std::size_t{1}));
  CHECK(!cbq::checked_sum(largest, std::size_t{1}, largest));
}

TEST_CASE("divide_up is the ceiling without overflow") {
  CHECK(cbq::divide_up(0, 16) == 0);
  CHECK(cbq::divide_up(1, 16) == 1);
  CHECK(cbq::divide_up(16, 16) == 1);
  CHECK(cbq::divide_up(17, 16) == 2);
  CHECK(cbq::divide_up(largest, 2) == largest / 2 + 1);
}
