// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/packed_attention.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "support/failing_memory.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/kv_kernels.hpp"
#include "support/kv_sequence.hpp"
#include "support/nn.hpp"

using namespace cbq;
using support::KvSequence;
using support::KvSequenceShape;

namespace {

struct Case {
  KvSequenceShape shape;
  std::size_t heads;
  std::size_t tokens;
};

/// Positions where an error by one would show: ends of panels, pages and spans, and of what each source holds.
bool is_edge(const Case& c, std::size_t p) {
  const auto near = [p](std::size_t edge) { return p + 1 == edge || p == edge; };
  const std::size_t first_query = c.shape.size - c.tokens;
  return p % 512 == 0 || p % 512 == 511 || near(c.shape.sinks) || near(c.shape.packed) || p >= first_query ||
         (c.shape.window != 0 && p + c.shape.window >= first_query && p + c.shape.window <= c.shape.size + 1) ||
         (p < 130 && (p % 64 == 0 || p % 64 == 63));
}

/// 1 or -1, without a pattern.
float sign_of(std::size_t channel) {
  return (channel * 2654435761u >> 7) % 2 == 0 ? 1.0f : -1.0f;
}

/// Queries share a direction, and so do the keys at edges: what lies there has most of the weight.
struct Problem {
  explicit Problem(const Case& c)
      : one(c),
        q(support::normal(c.tokens * c.heads * c.shape.width, 1)),
        sequence(c.shape, keys(c), support::normal(c.shape.size * c.shape.heads * c.shape.width, 3)),
        scale(1.0f / std::sqrt(static_cast<float>(c.shape.width))) {
    for (std::size_t i = 0; i < q.size(); ++i) q[i] += sign_of(i % c.shape.width);
  }

  static std::vector<float> keys(const Case& c) {
    auto keys = support::normal(c.shape.size * c.shape.heads * c.shape.width, 2);
    const std::size_t columns = c.shape.heads * c.shape.width;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (is_edge(c, i / columns)) {
        keys[i] += sign_of(i % c.shape.width) * 6.0f / std::sqrt(static_cast<float>(c.shape.width));
      }
    }
    return keys;
  }

  template <class E>
  std::vector<float> run(const E& executor, Isa isa) const {
    ExecutionContext<E> context(executor, isa);
    std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
    const std::size_t columns = one.heads * one.shape.width;
    REQUIRE(attend(support::input(q, columns), sequence.cache(), scale, support::view(out, columns), context));
    return out;
  }

  Case one;
  std::vector<float> q;
  KvSequence sequence;
  float scale;
};

/// Root of the mean squared difference over that of the reference.
double relative_error(const std::vector<float>& got, const oracle::Matrix& wanted) {
  double difference = got.size() == wanted.values.size() ? 0.0 : INFINITY, total = 1e-30;
  for (std::size_t i = 0; i < got.size() && i < wanted.values.size(); ++i) {
    const double d = static_cast<double>(got[i]) - wanted.values[i];
    difference += d * d;
    total += wanted.values[i] * wanted.values[i];
  }
  return std::sqrt(difference / total);
}

constexpr KvScheme kv8{.bits = 8}, kv4{.bits = 4}, kivi{.bits = 4, .channel_keys = true},
    smooth{.bits = 4, .smoothed = true}, rotated{.bits = 3, .smoothed = true, .hadamard = true};

}  // namespace

// Queries and weights of 8 bits change scores by about 1 % of their spread and weights by as much: 0.5 to 1 % of the
// result. A position more or less at an edge would change it by several times that.
TEST_CASE("Attention over pages, sinks and exact rows is that of the decoded rows") {
  const Case cases[] = {{{kv8, 4, 64, 1, 1}, 4, 1},
                        {{kv4, 3, 64, 63, 63}, 9, 1},
                        {{kv8, 3, 64, 64, 63}, 9, 2},
                        {{smooth, 8, 128, 65, 64}, 32, 1},
                        {{rotated, 4, 80, 255, 250}, 4, 3},
                        {{kv8, 3, 96, 256, 256}, 9, 1},
                        {{rotated, 2, 256, 257, 256}, 2, 1},
                        {{kivi, 2, 128, 300, 256}, 8, 2},
                        {{kivi, 1, 256, 128, 128}, 1, 1},
                        {{kv4, 1, 64, 5000, 4999}, 3, 1},
                        {{kv8, 1, 64, 1700, 1600}, 1, 16},
                        {{kv8, 1, 64, 700, 690}, 4, 10},
                        {{kv8, 1, 64, 70, 0}, 2, 3},
                        {{kv8, 2, 64, 700, 650, 5}, 4, 4},
                        {{kv8, 1, 64, 700, 650, 70, 100}, 2, 6},
                        {{kv8, 1, 64, 1300, 1300, 0, 640}, 2, 5},
                        {{kv8, 1, 64, 1200, 600, 3, 513}, 2, 5}};
  for (const Case& c : cases) {
    const Problem problem(c);
    const oracle::Matrix wanted = problem.sequence.attention(problem.q, c.tokens, static_cast<double>(problem.scale));
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(kv_scheme_name(c.shape.scheme).c_str(), c.shape.heads, c.shape.width, c.shape.size, c.shape.packed,
              c.shape.sinks, c.shape.window, c.heads, c.tokens, isa_name(isa));
      CHECK(relative_error(problem.run(SerialExecutor{}, isa), wanted) < 0.015);
    }
  }
}

// As above: without slopes, or with distances off by one page, most of the result would be another.
TEST_CASE("Slopes count the same distances over pages, sinks and exact rows") {
  const Case cases[] = {{{kv8, 2, 64, 700, 650, 5}, 4, 4},
                        {{rotated, 3, 80, 255, 250}, 6, 3},
                        {{kivi, 2, 128, 300, 256}, 8, 1},
                        {{kv8, 1, 64, 1200, 600, 3, 513}, 2, 130}};
  for (const Case& c : cases) {
    Problem problem(c);
    std::vector<float> slopes;
    for (std::size_t h = 0; h < c.heads; ++h) slopes.push_back(0.08f / static_cast<float>(1 + h));
    problem.sequence.set_slopes(slopes);
    const oracle::Matrix wanted = problem.sequence.attention(problem.q, c.tokens, static_cast<double>(problem.scale));
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(kv_scheme_name(c.shape.scheme).c_str(), c.shape.size, c.heads, c.tokens, isa_name(isa));
      const SerialExecutor serial;
      ExecutionContext<> context(serial, isa);
      std::vector<float> out(problem.q.size());
      const std::size_t columns = c.heads * c.shape.width;
      AttentionScores scores(problem.scale);
      scores.slopes = slopes;
      const auto q = support::input(problem.q, columns);
      REQUIRE(attend(q, problem.sequence.cache(), scores, support::view(out, columns), context));
      CHECK(relative_error(out, wanted) < 0.015);
      scores.slopes = scores.slopes.first(1);
      CHECK(attend(q, problem.sequence.cache(), scores, support::view(out, columns), context).error().code ==
            Errc::bad_shape);
    }
  }
}

TEST_CASE(
    "A single exact position may lie as a row: the same attention but for rounding, the same bits for any threads") {
  // One token and several, of which one sees the row; tasks of spans and of tiles; widths that no register divides.
  const Case cases[] = {{{kv8, 4, 64, 1, 0}, 4, 1},        {{kv4, 3, 64, 65, 64}, 9, 1},
                        {{smooth, 2, 50, 200, 199}, 6, 2}, {{rotated, 3, 80, 700, 699}, 3, 30},
                        {{kv8, 1, 13, 90, 89, 5}, 7, 1},   {{kv8, 1, 256, 1300, 1299, 3, 640}, 16, 5},
                        {{kv4, 2, 64, 4, 3, 3}, 2, 1}};
  for (const Case& c : cases) {
    Problem problem(c);
    const std::size_t columns = c.heads * c.shape.width;
    std::vector<float> slopes;
    for (std::size_t h = 0; h < c.heads; ++h) slopes.push_back(0.08f / static_cast<float>(1 + h));
    const support::Guarded<float> key(problem.sequence.newest_key(), support::Edge::end);
    const support::Guarded<float> value(problem.sequence.newest_value(), support::Edge::end);
    QuantizedKvView cache = problem.sequence.cache();
    cache.exact = {};
    cache.newest = {key.data(), value.data(), key.size()};
    for (const bool biased : {false, true}) {
      if (biased) problem.sequence.set_slopes(slopes);
      const oracle::Matrix wanted = problem.sequence.attention(problem.q, c.tokens, static_cast<double>(problem.scale));
      AttentionScores scores(problem.scale);
      if (biased) scores.slopes = slopes;
      for (const Isa isa : support::machine_isas()) {
        CAPTURE(kv_scheme_name(c.shape.scheme).c_str(), c.shape.width, c.shape.size, c.heads, c.tokens, biased,
                isa_name(isa));
        const auto run = [&](const auto& executor, const QuantizedKvView& view) {
          ExecutionContext context(executor, isa);
          std::vector<float> out(problem.q.size(), std::numeric_limits<float>::quiet_NaN());
          REQUIRE(attend(support::input(problem.q, columns), view, scores, support::view(out, columns), context));
          return out;
        };
        const std::vector<float> out = run(SerialExecutor{}, cache);
        CHECK(relative_error(out, wanted) < 0.015);
        const std::vector<float> among_panels = run(SerialExecutor{}, problem.sequence.cache());
        CHECK(relative_error(out, oracle::Matrix(c.tokens, columns, among_panels)) < 1e-6);
        for (const std::size_t threads : {2u, 16u}) CHECK(run(support::ThreadExecutor{threads}, cache) == out);
      }
    }
  }
}

TEST_CASE("Where 8 bits are exact, so is attention but for the rounding of floats") {
  // Integer queries with a largest element of 127 are their own codes; far apart scores leave one weight, equal ones
  // make all weights of a page with equal scales 255.
  const std::size_t width = 96, size = 600;
  auto keys = support::normal(size * width, 1), values = support::normal(size * width, 2);
  for (std::size_t p = 0; p < size; ++p) {
    for (std::size_t i = 0; i < width; ++i)
      values[p * width + i] = std::fmax(-4.0f, std::fmin(4.0f, values[p * width + i]));
    values[p * width] = -4.0f;  // every row has the range of the others
    values[p * width + 1] = 4.0f;
  }
  std::vector<float> q(3 * width);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i * 37 % 255) - 127.0f;
  for (std::size_t r = 0; r < 3; ++r) q[r * width + r] = 127.0f;
  std::vector<float> zero(3 * width);
  const KvSequence sequence({kv8, 1, width, size, size}, keys, values);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const SerialExecutor serial;
    ExecutionContext<> context(serial, isa);
    std::vector<float> out(q.size());
    REQUIRE(attend(support::input(q, width), sequence.cache(), 1.0f, support::view(out, width), context));
    CHECK(relative_error(out, sequence.attention(q, 3, 1.0)) < 1e-5);
    REQUIRE(attend(support::input(zero, width), sequence.cache(), 1.0f, support::view(out, width), context));
    CHECK(relative_error(out, sequence.attention(zero, 3, 1.0)) < 1e-5);
  }
}

TEST_CASE("The same bits for any threads and in any company, and no memory the second time") {
  // Spans as tasks and tiles as tasks, with sinks, a window and exact rows.
  const Case one{{kv4, 2, 64, 1200, 1100, 3, 600}, 6, 30}, other{{kv4, 2, 64, 700, 650, 5}, 4, 1};
  const Problem problem(one), company(other);
  std::vector<float> out(problem.q.size()), beside(company.q.size());
  const AttentionItem items[] = {
      {support::input(company.q, 256), company.sequence.cache(), company.scale, support::view(beside, 256)},
      {support::input(problem.q, 384), problem.sequence.cache(), problem.scale, support::view(out, 384)}};
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const SerialExecutor serial;
    const auto alone = problem.run(serial, isa), company_alone = company.run(serial, isa);
    for (const std::size_t threads : {2u, 16u}) {
      CHECK(problem.run(support::ThreadExecutor{threads}, isa) == alone);
      CHECK(company.run(support::ThreadExecutor{threads}, isa) == company_alone);
    }
    ExecutionContext<> context(serial, isa);
    REQUIRE(attend_batch(items, context));
    CHECK(out == alone);
    CHECK(beside == company_alone);
    support::fail_allocation_after(0);
    const Status again = attend_batch(items, context);
    CHECK_FALSE(support::stop_failing_allocations());
    REQUIRE(again);
    CHECK(out == alone);
  }
}

TEST_CASE("Where queries see codes alone, the same bits row by row or at once; otherwise but for rounding") {
  // 30 tokens of 3 heads are 6 tiles, whole tasks each; one token is a task per span.
  for (const Case& c : {Case{{kv4, 2, 64, 1200, 1200}, 6, 30}, Case{{kivi, 2, 64, 1216, 1216, 0, 700}, 6, 30},
                        Case{{kv4, 2, 64, 1200, 1200, 3, 600}, 6, 30}}) {
    const Problem problem(c);
    const std::size_t columns = c.heads * c.shape.width;
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa), c.shape.sinks, c.shape.window);
      const SerialExecutor serial;
      ExecutionContext<> context(serial, isa);
      const auto whole = problem.run(serial, isa);
      for (const std::size_t t : {0u, 13u, 29u}) {
        std::vector<float> out(columns);
        QuantizedKvView cache = problem.sequence.cache();
        cache.size = cache.packed = c.shape.size - 29 + t;
        REQUIRE(attend(rows(support::input(problem.q, columns), t, 1), cache, problem.scale,
                       support::view(out, columns), context));
        const std::vector<float> part(whole.begin() + static_cast<std::ptrdiff_t>(t * columns),
                                      whole.begin() + static_cast<std::ptrdiff_t>((t + 1) * columns));
        if (c.shape.sinks == 0) {
          CHECK(out == part);
        } else {
          CHECK(relative_error(out, oracle::Matrix(1, columns, part)) < 1e-5);
        }
      }
    }
  }
}

TEST_CASE("Scores behind the panels of a page that queries see are 0, not what lay in memory") {
  for (const KvScheme& scheme : {kv8, kivi}) {
    const std::size_t size = scheme.channel_keys ? 64 : 20;
    const Problem problem({{scheme, 1, 64, size, size}, 2, 1});
    const QuantizedKvView cache = problem.sequence.cache();
    attention::QueryRowsMemory memory;
    attention::QueryRows queries = attention::query_rows(memory);
    for (std::size_t r = 0; r < 2; ++r) {
      const std::span<float> query(queries.floats + r * 64, 64);
      std::copy_n(problem.q.begin() + static_cast<std::ptrdiff_t>(r * 64), 64, query.begin());
      REQUIRE(attention::quantize_query(*cache.layout, query, r, queries));
    }
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa), scheme.channel_keys);
      const KvKernels kernels = kv_kernels(isa, cache.layout->bits);
      const attention::PackedPage page{
          .layout = *cache.layout, .kernels = kernels, .bytes = cache.pages[0] + kv_keys_offset(*cache.layout, 0)};
      std::vector<float> scores(2 * 64, NAN);
      attention::score_page(page, queries, 2, 2, scores.data());
      for (std::size_t i = 0; i < scores.size(); ++i) {
        REQUIRE(std::isfinite(scores[i]));
        if (i % 64 >= 32) REQUIRE(scores[i] == 0.0f);
      }
    }
  }
}

TEST_CASE("Pages before the window may be gone") {
  const Case c{{kv8, 1, 64, 900, 880, 2, 200}, 2, 3};
  Problem problem(c);
  const auto before = problem.run(SerialExecutor{}, detect());
  problem.sequence.forget_before(900 - 3 + 1 - 200);
  CHECK(problem.run(SerialExecutor{}, detect()) == before);
}

TEST_CASE("Attention refuses what does not fit, and queries that are not numbers") {
  const Case c{{kv8, 2, 64, 200, 190}, 4, 2};
  Problem problem(c);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<float> out(2 * 256);
  const auto refused = [&](const QuantizedKvView& cache, std::size_t columns, float scale) {
    const auto q = matrix_view(problem.q.data(), 2, columns);
    const Status done = attend(as_const(q), cache, scale, matrix_view(out.data(), 2, columns), context);
    REQUIRE_FALSE(done);
    return done.error().code;
  };
  const QuantizedKvView good = problem.sequence.cache();
  CHECK(refused({}, 256, 1.0f) == Errc::bad_shape);
  CHECK(refused(good, 192, 1.0f) == Errc::bad_shape);
  CHECK(refused(good, 250, 1.0f) == Errc::bad_shape);
  CHECK(refused(good, 256, 0.0f) == Errc::bad_argument);
  for (const float scale : {-1.0f, 1e-38f, NAN, INFINITY}) CHECK(refused(good, 256, scale) == Errc::bad_argument);
  AttentionScores asked[3];
  asked[0].weights = SoftmaxWeights::log2;
  asked[1].first_weights = matrix_view(out.data(), 2, 4);
  asked[2].column_sums = matrix_view(out.data(), 2, 4);
  for (const AttentionScores& scores : asked) {
    const auto q = matrix_view<const float>(problem.q.data(), 2, 256);
    std::vector<float> result(2 * 256);
    const Status done = attend(q, good, scores, support::view(result, 256), context);
    REQUIRE_FALSE(done);
    CHECK(done.error().code == Errc::unsupported);
  }
  QuantizedKvView bad = good;
  bad.size = 1;
  CHECK(refused(bad, 256, 1.0f) == Errc::bad_shape);
  bad = good;
  bad.exact = {};
  CHECK(refused(bad, 256, 1.0f) == Errc::bad_shape);
  const Problem one({{kv8, 2, 64, 200, 199}, 4, 2});
  const float* row = one.sequence.newest_key().data();
  const QuantizedKvView whole = one.sequence.cache();
  for (const KvRow& newest : {KvRow{row, nullptr, 128}, KvRow{row, row, 64}, KvRow{nullptr, row, 128}}) {
    bad = whole;
    bad.exact = {};
    bad.newest = newest;
    CHECK(refused(bad, 256, 1.0f) == Errc::bad_shape);
  }
  bad = good;  // ten exact positions
  bad.newest = {row, row, 128};
  CHECK(refused(bad, 256, 1.0f) == Errc::bad_shape);
  bad = good;
  bad.pages = nullptr;
  CHECK(refused(bad, 256, 1.0f) == Errc::bad_shape);
  // Queries at 198 and 199.
  for (const std::size_t first : {199u, 200u}) {
    bad = good;
    bad.first = first;
    CHECK(refused(bad, 256, 1.0f) == Errc::bad_argument);
  }
  for (const std::size_t stride : {0u, 255u}) {
    const MatrixView<const float> q{problem.q.data(), 2, 256, stride};
    const MatrixView<float> to{out.data(), 2, 256, stride};
    CHECK_FALSE(attend(q, good, 1.0f, matrix_view(out.data(), 2, 256), context));
    CHECK_FALSE(attend(matrix_view<const float>(problem.q.data(), 2, 256), good, 1.0f, to, context));
  }
  problem.sequence.forget_before(64);
  bad = problem.sequence.cache();
  bad.first = 0;
  CHECK(refused(bad, 256, 1.0f) == Errc::bad_argument);
  for (const Case& exact_or_not : {c, Case{{kv8, 2, 64, 200, 0}, 4, 2}}) {
    for (const float value : {NAN, INFINITY, 1e37f}) {
      Problem spoiled(exact_or_not);
      spoiled.q[300] = value;
      const auto q = support::input(spoiled.q, 256);
      const Status done = attend(q, spoiled.sequence.cache(), 1.0f, support::view(out, 256), context);
      REQUIRE_FALSE(done);
      CHECK(done.error().code == Errc::not_finite);
    }
  }
  const auto none = matrix_view<const float>(problem.q.data(), 0, 256);
  CHECK(attend(none, good, 1.0f, matrix_view(out.data(), 0, 256), context));
}
