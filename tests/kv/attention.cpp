// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/attention.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "oracle/nn.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"

using namespace cbq;

namespace {

struct Case {
  std::size_t past;
  std::size_t tokens;
  std::size_t heads;
  std::size_t kv_heads;
  std::size_t width;
};

/// Keys and values of past + tokens positions in a cache, queries, and the definition's answer.
struct Problem {
  explicit Problem(const Case& c, float deviation = 1.0f)
      : shape(c),
        q(support::normal(c.tokens * c.heads * c.width, 1, deviation)),
        k(support::normal((c.past + c.tokens) * c.kv_heads * c.width, 2)),
        v(support::normal((c.past + c.tokens) * c.kv_heads * c.width, 3)) {
    auto made = FloatKvCache::create(c.kv_heads, c.width, c.past + c.tokens);
    REQUIRE(made);
    cache = *std::move(made);
    // In two parts, as a prompt and what follows.
    const auto keys = support::input(k, c.kv_heads * c.width);
    const auto values = support::input(v, c.kv_heads * c.width);
    REQUIRE(cache.append(rows(keys, 0, c.past), rows(values, 0, c.past)));
    REQUIRE(cache.append(rows(keys, c.past, c.tokens), rows(values, c.past, c.tokens)));
    const std::size_t columns = c.kv_heads * c.width;
    wanted = oracle::attention(oracle::Matrix(c.tokens, c.heads * c.width, q), oracle::Matrix(keys.rows, columns, k),
                               oracle::Matrix(keys.rows, columns, v), c.width, 0.3);
  }

  template <class E>
  std::vector<float> run(const E& executor, Isa isa) const {
    ExecutionContext<E> context(executor, isa);
    std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
    const std::size_t columns = shape.heads * shape.width;
    REQUIRE(attend(support::input(q, columns), cache, 0.3f, support::view(out, columns), context));
    return out;
  }

  Case shape;
  std::vector<float> q, k, v;
  FloatKvCache cache;
  oracle::Matrix wanted;
};

}  // namespace

TEST_CASE("Attention equals its definition: heads, widths, tails of blocks and panels") {
  const Case cases[] = {{0, 1, 1, 1, 1},     {0, 1, 4, 2, 64},   {0, 2, 3, 1, 16},    {0, 5, 2, 2, 17},
                        {3, 4, 6, 2, 8},     {15, 1, 9, 3, 64},  {16, 1, 8, 1, 32},   {255, 1, 2, 1, 40},
                        {256, 1, 4, 4, 5},   {254, 3, 3, 3, 64}, {240, 33, 4, 2, 16}, {0, 300, 2, 1, 24},
                        {511, 18, 1, 1, 33}, {7, 1, 20, 1, 8},   {0, 17, 2, 1, 256}};
  for (const Case& c : cases) {
    const Problem problem(c);
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(c.past, c.tokens, c.heads, c.kv_heads, c.width, isa_name(isa));
      CHECK(oracle::distance(problem.run(SerialExecutor{}, isa), problem.wanted) < 2e-6);
    }
  }
}

TEST_CASE("Weights of the first position are what its value counts for") {
  // One query of a group, more heads than a tile has rows, several blocks of queries and of positions.
  for (const Case& c : {Case{255, 1, 4, 2, 40}, {7, 1, 20, 1, 8}, {0, 5, 2, 2, 17}, {240, 33, 6, 3, 16}}) {
    const Problem problem(c);
    oracle::Matrix one(c.past + c.tokens, c.kv_heads * c.width);
    for (std::size_t i = 0; i < one.columns; ++i) one(0, i) = 1;
    const oracle::Matrix wanted =
        oracle::attention(oracle::Matrix(c.tokens, c.heads * c.width, problem.q),
                          oracle::Matrix(one.rows, one.columns, problem.k), one, c.width, 0.3);
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(c.past, c.tokens, c.heads, isa_name(isa));
      const SerialExecutor serial;
      ExecutionContext<> context(serial, isa);
      std::vector<float> out(problem.q.size()), weights(c.tokens * (c.heads + 1), -1.0f);
      AttentionScores scores(0.3f);
      scores.first_weights = {weights.data(), c.tokens, c.heads, c.heads + 1};
      const auto q = support::input(problem.q, c.heads * c.width);
      REQUIRE(attend(q, problem.cache, scores, support::view(out, c.heads * c.width), context));
      CHECK(out == problem.run(serial, isa));
      for (std::size_t t = 0; t < c.tokens; ++t) {
        for (std::size_t h = 0; h < c.heads; ++h) {
          REQUIRE(std::fabs(static_cast<double>(row(scores.first_weights, t)[h]) - wanted(t, h * c.width)) < 2e-6);
        }
        CHECK(row(scores.first_weights, t)[c.heads] == -1.0f);
      }
    }
  }
}

TEST_CASE("Slopes add to scores what lies between query and key") {
  for (const Case& c : {Case{300, 1, 6, 2, 16}, {7, 1, 20, 1, 8}, {0, 5, 2, 2, 17}, {240, 33, 6, 3, 16}}) {
    const Problem problem(c);
    std::vector<float> slopes;
    for (std::size_t h = 0; h < c.heads; ++h) slopes.push_back(h % 3 == 2 ? -0.01f : 0.05f * static_cast<float>(h));
    const oracle::Matrix q(c.tokens, c.heads * c.width, problem.q);
    const oracle::Matrix k(c.past + c.tokens, c.kv_heads * c.width, problem.k);
    oracle::Matrix first(k.rows, k.columns);
    for (std::size_t i = 0; i < first.columns; ++i) first(0, i) = 1;
    const auto attended = [&](const oracle::Matrix& v) {
      return oracle::attention(q, k, v, c.width, 0.3, support::doubles(slopes));
    };
    const oracle::Matrix wanted = attended(oracle::Matrix(k.rows, k.columns, problem.v)), shares = attended(first);
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(c.past, c.tokens, c.heads, isa_name(isa));
      const SerialExecutor serial;
      ExecutionContext<> context(serial, isa);
      std::vector<float> out(problem.q.size()), weights(c.tokens * c.heads);
      AttentionScores scores(0.3f);
      scores.slopes = slopes;
      scores.first_weights = support::view(weights, c.heads);
      const auto queries = support::input(problem.q, c.heads * c.width);
      REQUIRE(attend(queries, problem.cache, scores, support::view(out, c.heads * c.width), context));
      CHECK(oracle::distance(out, wanted) < 5e-6);
      for (std::size_t i = 0; i < weights.size(); ++i) {
        REQUIRE(std::fabs(static_cast<double>(weights[i]) - shares.values[i * c.width]) < 5e-6);
      }
    }
  }
}

TEST_CASE("Sums of columns are what the call's queries give to its keys") {
  for (const Case& c : {Case{7, 1, 20, 1, 8}, {0, 5, 2, 2, 17}, {250, 33, 6, 3, 16}}) {
    const Problem problem(c);
    std::vector<float> slopes;
    for (std::size_t h = 0; c.heads == 6 && h < c.heads; ++h) slopes.push_back(0.05f * static_cast<float>(h));
    oracle::Matrix wanted(c.tokens, c.heads);
    for (std::size_t key = 0; key < c.tokens; ++key) {
      oracle::Matrix one(c.past + c.tokens, c.kv_heads * c.width);
      for (std::size_t i = 0; i < one.columns; ++i) one(c.past + key, i) = 1;
      const oracle::Matrix shares = oracle::attention(oracle::Matrix(c.tokens, c.heads * c.width, problem.q),
                                                      oracle::Matrix(one.rows, one.columns, problem.k), one, c.width,
                                                      0.3, support::doubles(slopes));
      for (std::size_t t = 0; t < c.tokens; ++t) {
        for (std::size_t h = 0; h < c.heads; ++h) wanted(key, h) += shares(t, h * c.width);
      }
    }
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(c.past, c.tokens, c.heads, isa_name(isa));
      const support::ThreadExecutor threads{3};
      ExecutionContext<support::ThreadExecutor> context(threads, isa);
      std::vector<float> out(problem.q.size()), sums(c.tokens * c.heads);
      AttentionScores scores(0.3f);
      scores.slopes = slopes;
      scores.column_sums = support::view(sums, c.heads);
      const auto q = support::input(problem.q, c.heads * c.width);
      REQUIRE(attend(q, problem.cache, scores, support::view(out, c.heads * c.width), context));
      CHECK(oracle::distance(sums, wanted) < 2e-6);
      if (slopes.empty()) CHECK(out == problem.run(threads, isa));
    }
  }
}

TEST_CASE("Large scores, where most weights vanish") {
  const Problem problem({100, 20, 2, 1, 64}, 100.0f);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    CHECK(oracle::distance(problem.run(SerialExecutor{}, isa), problem.wanted) < 1e-4);
  }
}

TEST_CASE("Any executor gives the same bits; any cut of the queries the same but for rounding") {
  const Problem problem({20, 70, 6, 2, 32});
  const std::size_t columns = 6 * 32;
  const auto keys = support::input(problem.k, 64), values = support::input(problem.v, 64);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const auto one = problem.run(SerialExecutor{}, isa);
    for (const std::size_t threads : {2u, 5u}) CHECK(problem.run(support::ThreadExecutor{threads}, isa) == one);

    // The same queries in three calls, each when the cache ends with them.
    const SerialExecutor serial;
    ExecutionContext<> context(serial, isa);
    auto cache = FloatKvCache::create(2, 32, 90);
    std::vector<float> out(problem.q.size());
    REQUIRE(cache->append(rows(keys, 0, 20), rows(values, 0, 20)));
    for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 30}, {30, 39}, {69, 1}}) {
      REQUIRE(cache->append(rows(keys, 20 + first, count), rows(values, 20 + first, count)));
      REQUIRE(attend(rows(support::input(problem.q, columns), first, count), *cache, 0.3f,
                     rows(support::view(out, columns), first, count), context));
    }
    CHECK(oracle::distance(out, problem.wanted) < 2e-6);
  }
}

TEST_CASE("NaN in a key reaches exactly the queries that see it") {
  Problem problem({0, 40, 2, 1, 16});
  auto keys = problem.k;
  keys[25 * 16] = std::numeric_limits<float>::quiet_NaN();
  problem.cache.reset();
  REQUIRE(problem.cache.append(support::input(keys, 16), support::input(problem.v, 16)));
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const auto out = problem.run(SerialExecutor{}, isa);
    for (std::size_t i = 0; i < out.size(); ++i) REQUIRE(std::isnan(out[i]) == (i / 32 >= 25));
  }
}

TEST_CASE("Attention refuses what does not fit") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Problem problem({0, 4, 2, 2, 8});
  std::vector<float> out(64);
  const auto q = support::input(problem.q, 16);
  CHECK(attend(q, problem.cache, 1.0f, matrix_view(out.data(), 3, 16), context).error().code == Errc::bad_shape);
  CHECK(
      attend(support::input(problem.q, 8), problem.cache, 1.0f, matrix_view(out.data(), 8, 8), context).error().code ==
      Errc::bad_shape);
  const auto five = matrix_view(problem.q.data(), 1, 8);
  CHECK_FALSE(attend(five, problem.cache, 1.0f, matrix_view(out.data(), 1, 8), context));
  for (const float scale : {0.0f, -1.0f, 1e-38f, std::nextafter(0x1p-100f, 0.0f), NAN, INFINITY}) {
    CAPTURE(scale);
    const Status done = attend(q, problem.cache, scale, support::view(out, 16), context);
    REQUIRE_FALSE(done);
    CHECK(done.error().code == Errc::bad_argument);
  }
  AttentionScores scores(1.0f);
  scores.first_weights = matrix_view(out.data(), 4, 3);
  CHECK(attend(q, problem.cache, scores, support::view(out, 16), context).error().code == Errc::bad_shape);
  scores = 1.0f;
  scores.column_sums = matrix_view(out.data(), 4, 2);
  scores.weights = SoftmaxWeights::log2;
  std::vector<float> result(64);
  CHECK(attend(q, problem.cache, scores, support::view(result, 16), context).error().code == Errc::unsupported);
  scores = 1.0f;
  for (const std::vector<float>& slopes : {std::vector<float>{1.0f}, {1.0f, NAN}, {INFINITY, 1.0f}, {1.0f, -1e38f}}) {
    scores.slopes = slopes;
    const Status done = attend(q, problem.cache, scores, support::view(out, 16), context);
    REQUIRE_FALSE(done);
    CHECK(done.error().code == (slopes.size() == 1 ? Errc::bad_shape : Errc::bad_argument));
  }
  CHECK(attend(q, problem.cache, 0x1p-100f, support::view(out, 16), context));
  const MatrixView<const float> dense{problem.q.data(), 4, 16, 15};
  const MatrixView<float> overlapping{out.data(), 4, 16, 15};
  CHECK_FALSE(attend(dense, problem.cache, 1.0f, support::view(out, 16), context));
  CHECK_FALSE(attend(q, problem.cache, 1.0f, overlapping, context));
  CHECK(check_attention({.heads = 3, .kv_heads = 2, .width = 8}).error().code == Errc::bad_shape);
  CHECK(check_attention({.heads = 2, .kv_heads = 2, .width = 257}).error().code == Errc::unsupported);
  CHECK(check_attention({}).error().code == Errc::bad_shape);
}
