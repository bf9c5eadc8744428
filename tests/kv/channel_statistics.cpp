// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/channel_statistics.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/nn.hpp"

using cbq::Errc;
using cbq::ErrorText;
using cbq::KvChannelStatistics;
using cbq::matrix_view;

namespace {

constexpr cbq::KvHeads heads = {.heads = 2, .width = 3};
constexpr std::size_t channels = heads.heads * heads.width;
constexpr std::size_t shared = 2;  // query heads per key/value head

struct Rows {
  std::vector<float> queries, keys, values;
  explicit Rows(std::size_t tokens)
      : queries(support::normal(tokens * channels * shared, 1)),
        keys(support::normal(tokens * channels, 2, 0.25f)),
        values(support::normal(tokens * channels, 3)) {
    for (float& key : keys) key += 1000;  // far from zero: naive sums of squares would cancel
  }
  [[nodiscard]] cbq::Status add_to(KvChannelStatistics& statistics, std::size_t first, std::size_t count) const {
    return statistics.add(matrix_view(queries.data() + first * channels * shared, count, channels * shared),
                          matrix_view(keys.data() + first * channels, count, channels),
                          matrix_view(values.data() + first * channels, count, channels), "layer 4");
  }
};

}  // namespace

TEST_CASE("statistics are means and variances per channel, however the text is cut", "[kv]") {
  constexpr std::size_t tokens = 50;
  const Rows rows(tokens);
  KvChannelStatistics whole = KvChannelStatistics::create(heads).value();
  KvChannelStatistics cut = KvChannelStatistics::create(heads).value();
  CHECK(whole.keys().mean(0) == 0);
  CHECK(whole.keys().variance(0) == 0);
  REQUIRE(rows.add_to(whole, 0, tokens));
  REQUIRE(rows.add_to(cut, 0, 1));
  REQUIRE(rows.add_to(cut, 1, 0));
  REQUIRE(rows.add_to(cut, 1, tokens - 1));
  CHECK(whole.tokens() == tokens);
  CHECK(whole.queries().rows() == tokens * shared);
  for (std::size_t c = 0; c < channels; ++c) {
    double sum = 0, squares = 0, read = 0;
    for (std::size_t t = 0; t < tokens; ++t) sum += rows.keys[t * channels + c];
    for (std::size_t t = 0; t < tokens; ++t) squares += std::pow(rows.keys[t * channels + c] - sum / tokens, 2);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t i = 0; i < shared; ++i) {  // query heads 0, 1 read head 0; 2, 3 read head 1
        const std::size_t head = c / heads.width * shared + i;
        read += std::pow(rows.queries[(t * heads.heads * shared + head) * heads.width + c % heads.width], 2);
      }
    }
    CHECK(whole.keys().mean(c) == Catch::Approx(sum / tokens).epsilon(1e-12));
    CHECK(whole.keys().variance(c) == Catch::Approx(squares / tokens).epsilon(1e-9));
    CHECK(whole.queries().second_moment(c) == Catch::Approx(read / (tokens * shared)).epsilon(1e-9));
    CHECK(whole.keys().variance(c) == cut.keys().variance(c));
    CHECK(whole.queries().second_moment(c) == cut.queries().second_moment(c));
    CHECK(whole.values().mean(c) == cut.values().mean(c));
  }
}

TEST_CASE("a channel that never varies has variance 0", "[kv]") {
  const std::vector<float> rows(7 * channels, 0.1f);
  KvChannelStatistics statistics = KvChannelStatistics::create(heads).value();
  const auto x = matrix_view(rows.data(), 7, channels);
  REQUIRE(statistics.add(x, x, x, "layer"));
  CHECK(statistics.values().variance(2) == 0);
  CHECK(statistics.values().mean(2) == static_cast<double>(0.1f));
}

TEST_CASE("rows that do not fit or are not finite leave statistics as they are", "[kv]") {
  constexpr std::size_t tokens = 5;
  KvChannelStatistics statistics = KvChannelStatistics::create(heads).value();
  Rows rows(tokens);
  REQUIRE(rows.add_to(statistics, 0, tokens));
  const double before = statistics.values().mean(1);
  rows.values[3 * channels + 1] = std::numeric_limits<float>::quiet_NaN();
  const cbq::Status bad = rows.add_to(statistics, 0, tokens);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().code == Errc::not_finite);
  CHECK(std::string(bad.error().where.c_str()) == "layer 4, value channel 1, token 8");
  CHECK(statistics.tokens() == tokens);
  CHECK(statistics.values().mean(1) == before);

  const auto x = matrix_view<const float>(rows.keys.data(), tokens, channels);
  const auto narrow = matrix_view<const float>(rows.keys.data(), tokens, channels - 1);
  const auto fewer = matrix_view<const float>(rows.keys.data(), tokens - 1, channels);
  CHECK(statistics.add(x, narrow, x, "layer").error().code == Errc::bad_shape);
  CHECK(statistics.add(x, x, narrow, "layer").error().code == Errc::bad_shape);
  CHECK(statistics.add(narrow, x, x, "layer").error().code == Errc::bad_shape);
  CHECK(statistics.add(x, x, fewer, "layer").error().code == Errc::bad_shape);
  CHECK(statistics.add(fewer, x, x, "layer").error().code == Errc::bad_shape);
  CHECK(KvChannelStatistics::create({.heads = 0, .width = 3}).error().code == Errc::bad_shape);
}

TEST_CASE("statistics of no channel take no rows", "[kv]") {
  const Rows rows(1);
  KvChannelStatistics statistics = KvChannelStatistics::create(heads).value();
  const KvChannelStatistics taken = std::move(statistics);
  const auto none = matrix_view<const float>(rows.keys.data(), 1, 0);
  const auto queries = matrix_view<const float>(rows.queries.data(), 1, channels);
  KvChannelStatistics fresh;
  CHECK(statistics.add(queries, none, none, "layer").error().code == Errc::bad_shape);
  CHECK(fresh.add(queries, none, none, "layer").error().code == Errc::bad_shape);
}
