// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/page_pool.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support/guarded.hpp"

namespace {

constexpr std::size_t page_bytes = 192;

bool all_zero(const std::byte* page) {
  return std::all_of(page, page + page_bytes, [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

TEST_CASE("a pool hands out each page of the host's memory once, zeroed, and never a byte outside") {
  for (const support::Edge edge : {support::Edge::start, support::Edge::end}) {
    const support::Guarded<std::byte> memory(7 * page_bytes, edge);
    auto pool = cbq::KvPagePool::create(memory.span(), page_bytes);
    REQUIRE(pool.has_value());
    CHECK(pool->size() == 7);
    CHECK(pool->free_pages() == 7);
    for (int round = 0; round < 2; ++round) {
      std::set<std::byte*> pages;
      for (std::size_t i = 0; i < 7; ++i) {
        const auto page = pool->acquire();
        REQUIRE(page.has_value());
        CHECK(all_zero(*page));
        std::memset(*page, 0xff, page_bytes);
        pages.insert(*page);
      }
      CHECK(pages.size() == 7);
      CHECK(*pages.begin() == memory.data());
      CHECK(*pages.rbegin() == memory.data() + 6 * page_bytes);
      const auto none = pool->acquire();
      REQUIRE_FALSE(none.has_value());
      CHECK(none.error().code == cbq::Errc::out_of_memory);
      for (std::byte* page : pages) pool->release(page);
      CHECK(pool->free_pages() == 7);
    }
  }
}

TEST_CASE("a page is free when the last of its holders gives it back") {
  alignas(64) std::byte memory[4 * page_bytes];
  auto pool = cbq::KvPagePool::create(memory, page_bytes);
  REQUIRE(pool.has_value());
  const cbq::KvPages pages = pool->pages();
  std::mt19937 random(5);
  std::vector<std::byte*> held;  // one entry per reference
  for (int step = 0; step < 2000; ++step) {
    const std::set<std::byte*> distinct(held.begin(), held.end());
    REQUIRE(pages.free_pages() == 4 - distinct.size());
    const auto choice = random() % 3;
    if (choice == 0) {
      const auto page = pages.acquire();
      REQUIRE(page.has_value() == (distinct.size() < 4));
      if (!page) continue;
      REQUIRE(distinct.count(*page) == 0);
      REQUIRE(all_zero(*page));
      std::memset(*page, 1, page_bytes);
      held.push_back(*page);
    } else if (!held.empty()) {
      const std::size_t i = random() % held.size();
      std::byte* const page = held[i];
      if (choice == 1 && held.size() < 20) {
        pages.retain(page);
        held.push_back(page);
      } else {
        pages.release(page);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
      }
      if (const auto left = std::count(held.begin(), held.end(), page); left != 0) {
        REQUIRE(pages.references(page) == static_cast<std::size_t>(left));
      }
    }
  }
}

TEST_CASE("pages are still there when their pool has moved") {
  alignas(64) std::byte memory[2 * page_bytes];
  auto created = cbq::KvPagePool::create(memory, page_bytes);
  REQUIRE(created.has_value());
  const cbq::KvPages pages = created->pages();
  const auto page = pages.acquire();
  REQUIRE(page.has_value());
  cbq::KvPagePool moved = *std::move(created);
  CHECK(pages.free_pages() == 1);
  CHECK(moved.free_pages() == 1);
  CHECK(pages.check_free(1).has_value());
  const cbq::Status status = pages.check_free(2);
  REQUIRE_FALSE(status.has_value());
  CHECK(std::string(status.error().got.c_str()) == "1 of 2");
  moved.release(*page);
  CHECK(pages.free_pages() == 2);
  CHECK(created->pages().empty());
  CHECK(cbq::KvPages().empty());
}

TEST_CASE("a pool that was moved from has no pages") {
  alignas(64) std::byte memory[2 * page_bytes];
  auto created = cbq::KvPagePool::create(memory, page_bytes);
  REQUIRE(created.has_value());
  const cbq::KvPagePool moved = *std::move(created);
  CHECK(moved.size() == 2);
  CHECK(created->size() == 0);
  CHECK(created->page_bytes() == 0);
  CHECK(created->free_pages() == 0);
  CHECK(created->acquire().error().code == cbq::Errc::out_of_memory);
  const cbq::KvPages none;
  CHECK(none.size() == 0);
  CHECK(none.page_bytes() == 0);
  CHECK(none.acquire().error().code == cbq::Errc::out_of_memory);
  CHECK(none.check_free(0).has_value());
  CHECK(none.check_free(1).error().code == cbq::Errc::out_of_memory);
}

TEST_CASE("a pool refuses memory and pages that do not fit each other") {
  alignas(64) std::byte memory[512];
  const auto code = [](std::span<std::byte> bytes, std::size_t size) {
    const auto pool = cbq::KvPagePool::create(bytes, size);
    REQUIRE_FALSE(pool.has_value());
    return pool.error().code;
  };
  CHECK(code(memory, 0) == cbq::Errc::bad_shape);
  CHECK(code(memory, 96) == cbq::Errc::bad_shape);
  CHECK(code(memory, 576) == cbq::Errc::bad_shape);
  CHECK(code({}, 64) == cbq::Errc::bad_shape);
  CHECK(code(std::span(memory).subspan(32), 64) == cbq::Errc::bad_argument);
  CHECK(cbq::KvPagePool::create(std::span(memory).first(511), 128)->size() == 3);
}
