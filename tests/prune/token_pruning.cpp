// SPDX-License-Identifier: Apache-2.0
#include <cbq/prune/token_pruning.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include <cbq/prune/gather.hpp>

using namespace cbq;

TEST_CASE("Importance is a sum over heads") {
  const std::vector<float> weights = {0.5f, 0.25f, 9, 1, 0, 9, 0.125f, 0.5f, 9};  // rows of 2 heads, 3 apart
  std::vector<float> importance(3);
  sum_heads({weights.data(), 3, 2, 3}, importance);
  CHECK(importance == std::vector<float>{0.75f, 1, 0.625f});
}

TEST_CASE("Scheduled pruning drops the share of its schedule from calls of enough tokens") {
  const auto policy = ScheduledPruning::create({.schedule = {.layers = 8, .first = 2, .every = 3, .ratio = 0.25}});
  REQUIRE(policy);
  CHECK(policy->drops(2, 64));
  CHECK_FALSE(policy->drops(2, 63));
  CHECK_FALSE(policy->drops(3, 64));
  CHECK(policy->drops(5, 640));
  CHECK_FALSE(policy->drops(8, 640));
  std::vector<float> importance(64);
  std::vector<std::uint32_t> positions(64), survivors(64);
  for (std::size_t i = 0; i < 64; ++i) {
    importance[i] = static_cast<float>(i * 29 % 64);
    positions[i] = static_cast<std::uint32_t>(i);
  }
  const auto left = policy->select({5, importance, positions, 64}, survivors);
  REQUIRE(left);
  CHECK(*left == 48);
  CHECK_FALSE(ScheduledPruning::create({.schedule = {.layers = 8, .first = 2, .ratio = 1.0}}));
  CHECK_FALSE(ScheduledPruning::create({}));
}

TEST_CASE("Scheduled pruning lowers the bits of a share of the tokens that are left, protected ones not") {
  ScheduledPruningOptions options = {.schedule = {.layers = 8, .first = 2, .ratio = 0.25}, .low_bit_share = 0.5};
  const auto policy = ScheduledPruning::create(options);
  REQUIRE(policy);
  CHECK(policy->lowers(0, 64));
  CHECK_FALSE(policy->lowers(0, 63));
  std::vector<float> importance(64);
  std::vector<std::uint32_t> positions(64), scratch(64);
  for (std::size_t i = 0; i < 64; ++i) {
    importance[i] = static_cast<float>(i);  // the first, the least important, is protected
    positions[i] = static_cast<std::uint32_t>(i);
  }
  std::vector<std::uint8_t> bits(64, 8), wanted(64, 8);
  std::fill(wanted.begin() + 1, wanted.begin() + 33, std::uint8_t{4});
  bits[50] = wanted[50] = 4;  // since an earlier layer
  REQUIRE(policy->lower({0, importance, positions, 64}, scratch, bits));
  CHECK(bits == wanted);
  CHECK(policy->lower({0, importance, positions, 64}, scratch, std::span(bits).first(63)).error().code ==
        Errc::bad_shape);
  for (const double wrong : {-0.1, 1.0, std::nan("")}) {
    options.low_bit_share = wrong;
    CHECK(ScheduledPruning::create(options).error().code == Errc::bad_argument);
  }
  options.low_bit_share = 0.0;
  CHECK_FALSE(ScheduledPruning::create(options)->lowers(0, 64));
}

TEST_CASE("Rows and elements of survivors move to the front, in place") {
  std::vector<int> values(15);
  for (std::size_t i = 0; i < 15; ++i) values[i] = static_cast<int>(i);
  const std::vector<std::uint32_t> stay = {0, 2, 4};
  gather_rows<int>(stay, {values.data(), 5, 2, 3});
  CHECK(values == std::vector<int>{0, 1, 2, 6, 7, 5, 12, 13, 8, 9, 10, 11, 12, 13, 14});  // the gaps stay
  std::vector<int> elements = {9, 8, 7, 6, 5};
  gather_elements<int>(stay, elements);
  CHECK(elements == std::vector<int>{9, 7, 5, 6, 5});
  CHECK(check_survivors(stay, 5));
  CHECK_FALSE(check_survivors(stay, 4));
  const std::vector<std::uint32_t> twice = {1, 1};
  CHECK_FALSE(check_survivors(twice, 4));
}
