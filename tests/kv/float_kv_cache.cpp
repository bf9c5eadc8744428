// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/float_kv_cache.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <utility>
#include <vector>

#include "support/failing_memory.hpp"
#include "support/nn.hpp"

using namespace cbq;

namespace {

/// Key and value element as the layout in the header says.
float key(const FloatKvView& v, std::size_t head, std::size_t position, std::size_t i) {
  return v.keys[((head * v.capacity + position / 16 * 16) * v.width) + i * 16 + position % 16];
}
float value(const FloatKvView& v, std::size_t head, std::size_t position, std::size_t i) {
  const std::size_t padded = (v.width + 15) / 16 * 16;
  return v.values[head * padded * v.capacity + i / 16 * 16 * v.capacity + position * 16 + i % 16];
}

}  // namespace

TEST_CASE("Every appended element is found in its panel") {
  for (const std::size_t width : {1u, 15u, 16u, 17u, 64u}) {
    CAPTURE(width);
    const std::size_t heads = 3, tokens = 37;
    const auto keys = support::normal(tokens * heads * width, 1);
    const auto values = support::normal(tokens * heads * width, 2);
    auto cache = FloatKvCache::create(heads, width, tokens);
    REQUIRE(cache);
    const auto k = support::input(keys, heads * width), v = support::input(values, heads * width);
    REQUIRE(cache->append(rows(k, 0, 20), rows(v, 0, 20)));
    REQUIRE(cache->append(rows(k, 20, 17), rows(v, 20, 17)));
    REQUIRE(cache->size() == tokens);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t h = 0; h < heads; ++h) {
        for (std::size_t i = 0; i < width; ++i) {
          REQUIRE(key(cache->view(), h, t, i) == row(k, t)[h * width + i]);
          REQUIRE(value(cache->view(), h, t, i) == row(v, t)[h * width + i]);
        }
        for (std::size_t i = width; i % 16 != 0; ++i) REQUIRE(value(cache->view(), h, t, i) == 0.0f);
      }
    }
  }
}

TEST_CASE("A cache rolls back and starts over") {
  auto cache = FloatKvCache::create(1, 4, 10);
  const auto first = support::normal(10 * 4, 1), second = support::normal(10 * 4, 2);
  REQUIRE(cache->append(support::input(first, 4), support::input(first, 4)));
  cache->truncate(6);
  CHECK(cache->size() == 6);
  REQUIRE(cache->append(rows(support::input(second, 4), 0, 4), rows(support::input(second, 4), 0, 4)));
  for (std::size_t t = 0; t < 10; ++t) {
    CHECK(key(cache->view(), 0, t, 2) == (t < 6 ? first[t * 4 + 2] : second[(t - 6) * 4 + 2]));
  }
  cache->truncate(11);
  CHECK(cache->size() == 10);
  cache->reset();
  CHECK(cache->size() == 0);
}

TEST_CASE("A cache gives back its first positions and copies any out") {
  const std::size_t heads = 2, tokens = 50, more = 9;
  for (const std::size_t width : {1u, 16u, 19u}) {
    const std::size_t columns = heads * width;
    const auto keys = support::normal((tokens + more) * columns, 3), values = support::normal(keys.size(), 4);
    const auto k = support::input(keys, columns), v = support::input(values, columns);
    for (const std::size_t count : {0u, 1u, 15u, 16u, 17u, 48u, 50u}) {
      CAPTURE(width, count);
      auto cache = FloatKvCache::create(heads, width, 64);
      REQUIRE(cache->append(rows(k, 0, tokens), rows(v, 0, tokens)));
      cache->drop_front(count);
      REQUIRE(cache->size() == tokens - count);
      REQUIRE(cache->append(rows(k, tokens, more), rows(v, tokens, more)));
      std::vector<float> key_row(columns), value_row(columns);
      for (std::size_t t = 0; t < cache->size(); ++t) {
        for (std::size_t h = 0; h < heads; ++h) {
          cache->copy_key(h, t, key_row.data() + h * width);
          cache->copy_value(h, t, value_row.data() + h * width);
        }
        REQUIRE(std::equal(key_row.begin(), key_row.end(), row(k, t + count)));
        REQUIRE(std::equal(value_row.begin(), value_row.end(), row(v, t + count)));
        REQUIRE(key(cache->view(), 1, t, width - 1) == row(k, t + count)[columns - 1]);
        for (std::size_t i = width; i % 16 != 0; ++i) REQUIRE(value(cache->view(), 1, t, i) == 0.0f);
      }
    }
  }
}

TEST_CASE("A cache refuses what does not fit and keeps what it has") {
  CHECK(FloatKvCache::create(0, 4, 10).error().code == Errc::bad_shape);
  CHECK(FloatKvCache::create(1, 0, 10).error().code == Errc::bad_shape);
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
  CHECK(FloatKvCache::create(1, 4, huge).error().code == Errc::bad_shape);
  CHECK(FloatKvCache::create(huge / 2, 4, 16).error().code == Errc::bad_shape);
  support::fail_allocation_after(0);
  const auto starved = FloatKvCache::create(1, 4, 16);
  CHECK(support::stop_failing_allocations());
  REQUIRE_FALSE(starved);
  CHECK(starved.error().code == Errc::out_of_memory);
  auto cache = FloatKvCache::create(1, 4, 3);
  const auto four = support::normal(16, 1);
  CHECK(cache->append(support::input(four, 4), support::input(four, 4)).error().code == Errc::bad_shape);
  CHECK(cache->append(support::input(four, 8), support::input(four, 8)).error().code == Errc::bad_shape);
  CHECK(cache->append(rows(support::input(four, 4), 0, 2), rows(support::input(four, 4), 0, 1)).error().code ==
        Errc::bad_shape);
  const MatrixView<const float> two = rows(support::input(four, 4), 0, 2), overlapping{four.data(), 2, 4, 3};
  const MatrixView<const float> nothing{nullptr, 2, 4, 4};
  for (const MatrixView<const float>& bad : {overlapping, nothing}) {
    CHECK(cache->append(bad, two).error().code == Errc::bad_shape);
    CHECK(cache->append(two, bad).error().code == Errc::bad_shape);
  }
  CHECK(cache->size() == 0);
  CHECK(cache->append(rows(nothing, 0, 0), rows(nothing, 0, 0)));
  CHECK(cache->append(rows(overlapping, 0, 1), rows(two, 0, 1)));  // a single row has no next one
  CHECK(cache->append(two, two));
}

TEST_CASE("A cache that was moved from is empty and without room") {
  const auto x = support::normal(16, 1);
  const auto full = [&x] {
    auto cache = FloatKvCache::create(1, 4, 4);
    REQUIRE(cache->append(support::input(x, 4), support::input(x, 4)));
    return *std::move(cache);
  };
  const auto check_gone = [&x](FloatKvCache& gone) {
    CHECK(gone.size() == 0);
    CHECK(gone.capacity() == 0);
    CHECK(gone.view().keys == nullptr);
    CHECK(gone.view().values == nullptr);
    CHECK(gone.view().size == 0);
    CHECK(gone.view().heads == 0);
    CHECK(gone.append(support::input(x, 4), support::input(x, 4)).error().code == Errc::bad_shape);
    CHECK(gone.append(matrix_view(x.data(), 1, 0), matrix_view(x.data(), 1, 0)).error().code == Errc::bad_shape);
    gone.truncate(0);
    gone.drop_front(0);
  };
  FloatKvCache first = full(), second = full();
  FloatKvCache third(std::move(first));
  check_gone(first);
  CHECK(key(third.view(), 0, 3, 2) == x[14]);
  third.truncate(2);
  second = std::move(third);
  check_gone(third);
  CHECK(second.size() == 2);
  CHECK(value(second.view(), 0, 1, 2) == x[6]);
  first = std::move(second);  // and takes another one's place
  CHECK(first.append(rows(support::input(x, 4), 0, 2), rows(support::input(x, 4), 0, 2)));
  FloatKvCache& same = first;
  first = std::move(same);
  CHECK(first.size() == 4);
  CHECK(key(first.view(), 0, 3, 2) == x[6]);
}
