// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/kv_page_table.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <utility>

namespace {

struct Pool {
  alignas(64) std::byte memory[4 * 64];
  cbq::KvPagePool pool = *cbq::KvPagePool::create(memory, 64);
};

}  // namespace

TEST_CASE("a table acquires the pages that are written and gives them back when it ends") {
  Pool host;
  {
    auto table = cbq::KvPageTable::create(host.pool.pages(), 10);
    REQUIRE(table.has_value());
    CHECK(table->needed({2, 5}) == 3);
    const auto page = table->writable(3);
    REQUIRE(page.has_value());
    CHECK(*table->writable(3) == *page);
    CHECK(table->data()[3] == *page);
    CHECK(table->data()[2] == nullptr);
    CHECK(table->needed({2, 5}) == 2);
    CHECK(table->releasable({2, 5}) == 1);
    CHECK(table->held() == 1);
    REQUIRE(table->writable(2).has_value());
    CHECK(host.pool.free_pages() == 2);
    table->release({0, 3});
    CHECK(host.pool.free_pages() == 3);
    CHECK(table->data()[2] == nullptr);
    CHECK(table->data()[3] == *page);

    cbq::KvPageTable moved = *std::move(table);
    CHECK_FALSE(table->alive());
    CHECK(moved.held() == 1);
    cbq::KvPageTable other;
    CHECK_FALSE(other.alive());
    other = std::move(moved);
    CHECK(other.held() == 1);
    CHECK_FALSE(moved.alive());
    CHECK(host.pool.free_pages() == 3);
    other = *cbq::KvPageTable::create(host.pool.pages(), 1);
    CHECK(other.size() == 1);
    CHECK(host.pool.free_pages() == 4);
  }
  CHECK(host.pool.free_pages() == 4);
}

TEST_CASE("forked tables share pages until one of them writes") {
  Pool host;
  auto table = cbq::KvPageTable::create(host.pool.pages(), 3);
  std::byte* const first = *table->writable(0);
  std::byte* const second = *table->writable(1);
  second[7] = std::byte{42};
  {
    auto fork = table->fork();
    REQUIRE(fork.has_value());
    CHECK(host.pool.free_pages() == 2);
    CHECK(fork->shared() == 2);
    CHECK(fork->needed({0, 3}) == 3);
    std::byte* const copy = *fork->writable(1);
    CHECK(copy != second);
    CHECK(copy[7] == std::byte{42});
    copy[7] = std::byte{1};
    CHECK(second[7] == std::byte{42});
    CHECK(table->data()[1] == second);
    CHECK(*table->writable(1) == second);  // nobody else holds it any more
    CHECK(fork->data()[0] == first);
    CHECK(fork->shared() == 1);
    REQUIRE(table->writable(2).has_value());
    CHECK(host.pool.free_pages() == 0);
    const auto none = fork->writable(0);
    REQUIRE_FALSE(none.has_value());
    CHECK(none.error().code == cbq::Errc::out_of_memory);
    CHECK(fork->data()[0] == first);
  }
  CHECK(host.pool.free_pages() == 1);
  CHECK(*table->writable(0) == first);
}
