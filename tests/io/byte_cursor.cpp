// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/byte_cursor.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdint>

#include "support/files.hpp"

TEST_CASE("a cursor reads what is there and nothing else") {
  const support::GuardedBytes guarded(
      support::ByteBuilder().add(std::uint16_t{0x1234}).counted("abc").add('z').bytes());
  cbq::io_detail::ByteCursor cursor(guarded.bytes());
  CHECK(*cursor.number<std::uint16_t>() == 0x1234);
  CHECK(cursor.position() == 2);
  auto shorter = cursor;
  CHECK_FALSE(shorter.text(2));
  CHECK(*cursor.text(3) == "abc");
  CHECK(cursor.left() == 1);
  CHECK_FALSE(cursor.number<std::uint16_t>());
  CHECK_FALSE(cursor.take(2));
  CHECK_FALSE(cursor.take(~std::size_t{0}));
  CHECK(cursor.left() == 1);
  CHECK(cursor.take(1)->size() == 1);
  CHECK(cursor.take(0)->empty());
  CHECK_FALSE(cursor.take(1));
}

TEST_CASE("a text length that wraps is an error") {
  const support::GuardedBytes guarded(support::ByteBuilder().add(~std::uint64_t{0}).text("abc").bytes());
  for (const std::size_t limit : {std::size_t{10}, ~std::size_t{0}}) {
    cbq::io_detail::ByteCursor cursor(guarded.bytes());
    CHECK_FALSE(cursor.text(limit));
  }
}
