// SPDX-License-Identifier: Apache-2.0
#include <cbq/prune/selection.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <limits>
#include <random>
#include <set>
#include <vector>

using namespace cbq;

namespace {

using Indices = std::vector<std::uint32_t>;

/// Drops the least important unprotected token, the last of equals, as often as asked.
Indices one_by_one(const std::vector<float>& importance, std::size_t drop, const std::set<std::uint32_t>& kept) {
  Indices left(importance.size());
  for (std::size_t i = 0; i < left.size(); ++i) left[i] = static_cast<std::uint32_t>(i);
  for (; drop != 0; --drop) {
    auto worst = left.end();
    for (auto i = left.begin(); i != left.end(); ++i) {
      if (kept.contains(*i)) continue;
      if (worst == left.end() || importance[*i] <= importance[*worst]) worst = i;
    }
    left.erase(worst);
  }
  return left;
}

Indices positions_of(std::size_t tokens, std::uint32_t past = 0) {
  Indices positions(tokens);
  for (std::size_t t = 0; t < tokens; ++t) positions[t] = past + static_cast<std::uint32_t>(t);
  return positions;
}

Result<Indices> select(const std::vector<float>& importance, std::size_t drop, const ProtectedTokens& kept = {},
                       std::uint32_t past = 0) {
  const Indices positions = positions_of(importance.size(), past);
  Indices survivors(importance.size());
  const auto count = select_survivors({3, importance, positions, past + importance.size()}, drop, kept, survivors);
  if (!count) return count.error();
  survivors.resize(*count);
  return survivors;
}

}  // namespace

TEST_CASE("The most important tokens stay, protected ones do, and equals go from the end") {
  std::mt19937 random(5);
  for (const std::size_t tokens : {2u, 3u, 17u, 64u}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<float> importance(tokens);
      for (float& value : importance) value = static_cast<float>(random() % 5);  // many equals
      Indices listed = {static_cast<std::uint32_t>(random() % tokens), static_cast<std::uint32_t>(random() % tokens)};
      std::sort(listed.begin(), listed.end());
      std::set<std::uint32_t> kept(listed.begin(), listed.end());
      kept.insert({0u, static_cast<std::uint32_t>(tokens - 1)});
      const std::size_t drop = random() % (tokens - kept.size() + 1);
      CAPTURE(tokens, drop, listed);
      const auto survivors = select(importance, drop, {.positions = listed});
      REQUIRE(survivors);
      REQUIRE(*survivors == one_by_one(importance, drop, kept));
    }
  }
  CHECK(*select(std::vector<float>(6, 1.0f), 3) == Indices{0, 1, 5});
}

TEST_CASE("Protection counts positions of the sequence, not of the call") {
  const std::vector<float> importance = {1, 2, 3, 4};
  CHECK(*select(importance, 3, {.first = 1, .last = 0}, 10) == Indices{3});
  CHECK(*select(importance, 3, {.first = 11, .last = 0}, 10) == Indices{0});
  const Indices listed = {2, 11};  // the first of them is long past
  CHECK(*select(importance, 2, {.first = 0, .last = 1, .positions = listed}, 10) == Indices{1, 3});
}

TEST_CASE("What cannot be kept or dropped is an error") {
  const std::vector<float> importance = {1, 2, 3, 4};
  const Indices beyond = {1, 4}, falling = {2, 1};
  CHECK(select(importance, 2));
  CHECK(select(importance, 3).error().code == Errc::bad_argument);
  CHECK(select(importance, 4, {.first = 0, .last = 0}));  // what a host asks for
  CHECK(select(importance, 5, {.first = 0, .last = 0}).error().code == Errc::bad_argument);
  CHECK(select(importance, 0, {.positions = beyond}).error().code == Errc::bad_argument);
  CHECK(select(importance, 0, {.positions = falling}).error().code == Errc::bad_argument);
  CHECK(select(importance, 0, {.first = 5}).error().code == Errc::bad_argument);
  CHECK(select(importance, 0, {.last = 5}).error().code == Errc::bad_argument);
  CHECK(select({1, std::numeric_limits<float>::quiet_NaN()}, 0).error().code == Errc::not_finite);
  Indices survivors(3);
  const Indices positions = positions_of(4);
  CHECK(select_survivors({0, importance, positions, 4}, 1, {}, survivors).error().code == Errc::bad_shape);
  CHECK(select_survivors({0, importance, survivors, 4}, 1, {}, survivors).error().code == Errc::bad_shape);
}
