// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/kv_policy.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>

namespace {

constexpr cbq::KvScheme plain{};
constexpr cbq::KvScheme past_only{.past_only = true};
constexpr cbq::KvScheme channel_keys{.channel_keys = true};

}  // namespace

TEST_CASE("without whole pages all that is eligible is quantized") {
  for (const std::size_t past : {0u, 1u, 63u, 64u, 1000u}) {
    CHECK(cbq::quantized_positions(plain, {}, past) == past);
    CHECK(cbq::quantized_positions(past_only, {.sinks = 4, .window = 100}, past) == past);
  }
}

TEST_CASE("with recent positions or scales per channel whole pages are quantized, and never one that is too recent") {
  for (const std::size_t recent : {0u, 1u, 32u, 64u, 100u}) {
    std::size_t before = 0;
    for (std::size_t past = 0; past < 400; ++past) {
      const std::size_t done = cbq::quantized_positions(channel_keys, {.recent = recent}, past);
      REQUIRE(done % 64 == 0);
      REQUIRE(done + recent <= (past < recent ? recent : past));
      REQUIRE(past - done < recent + 64);
      REQUIRE(done >= before);
      if (recent > 0) REQUIRE(cbq::quantized_positions(plain, {.recent = recent}, past) == done);
      before = done;
    }
  }
}

TEST_CASE("room for exact rows is what the policy can leave, and no more than the sequence") {
  CHECK(cbq::most_exact_positions(plain, {}, 4096, 512) == 1);
  CHECK(cbq::most_exact_positions(past_only, {}, 4096, 512) == 512);
  CHECK(cbq::most_exact_positions(past_only, {.recent = 100}, 4096, 512) == 675);
  CHECK(cbq::most_exact_positions(channel_keys, {}, 4096, 512) == 64);
  CHECK(cbq::most_exact_positions(past_only, {.recent = ~std::size_t{0}}, 300, 512) == 300);
  CHECK(cbq::most_exact_positions(past_only, {}, 300, ~std::size_t{0}) == 300);
}

TEST_CASE("a window ends with the query's own position") {
  CHECK(cbq::first_visible({}, 1000) == 0);
  CHECK(cbq::first_visible({.window = 1}, 1000) == 1000);
  CHECK(cbq::first_visible({.window = 100}, 98) == 0);
  CHECK(cbq::first_visible({.window = 100}, 99) == 0);
  CHECK(cbq::first_visible({.window = 100}, 100) == 1);
}
