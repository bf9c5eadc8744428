// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/integer_attention.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/kv_kernels.hpp"
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

constexpr float score_scale = 0.3f;

/// Rows of heads in INT8 from the definition.
struct Codes {
  std::vector<int> values;
  std::size_t columns = 0;
  int operator()(std::size_t row, std::size_t column) const { return values[row * columns + column]; }
};

int code_of(float x, float scale) {
  return static_cast<int>(std::fmin(std::fmax(std::nearbyint(x / scale), -127.0f), 127.0f));
}

struct Problem {
  explicit Problem(const Case& c, float deviation = 1.0f)
      : shape(c),
        q(support::normal(c.tokens * c.heads * c.width, 1, deviation)),
        k(support::normal((c.past + c.tokens) * c.kv_heads * c.width, 2)),
        v(support::normal((c.past + c.tokens) * c.kv_heads * c.width, 3)) {
    for (std::size_t h = 0; h < c.heads; ++h) scales.push_back(0.03f / static_cast<float>(h + 1) * deviation);
    for (std::size_t h = 0; h < 2 * c.kv_heads; ++h) scales.push_back(0.02f + 0.001f * static_cast<float>(h));
  }

  [[nodiscard]] Int8KvScales static_scales() const {
    const std::span<const float> all(scales);
    return {all.first(shape.heads), all.subspan(shape.heads, shape.kv_heads),
            all.subspan(shape.heads + shape.kv_heads)};
  }

  [[nodiscard]] Int8KvCache cache(const Int8KvScales& with = {}) const {
    auto made = Int8KvCache::create({shape.kv_heads, shape.width}, shape.past + shape.tokens, with);
    REQUIRE(made);
    const auto keys = support::input(k, shape.kv_heads * shape.width);
    const auto values = support::input(v, shape.kv_heads * shape.width);
    // The second append holds no larger rows, so that dynamic scales stay what the oracle takes them to be.
    REQUIRE(made->append(rows(keys, 0, keys.rows), rows(values, 0, keys.rows)));
    return *std::move(made);
  }

  template <class E>
  std::vector<float> run(const Int8KvCache& from, AttentionScores scores, const E& executor, Isa isa) const {
    ExecutionContext<E> context(executor, isa);
    std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
    const std::size_t columns = shape.heads * shape.width;
    REQUIRE(attend(support::input(q, columns), from, scores, support::view(out, columns), context));
    return out;
  }

  Case shape;
  std::vector<float> q, k, v, scales;
};

/// One query and head from the definition, weights in double, sums in integers.
struct Row {
  std::vector<double> p;  // softmax of integer scores
  std::vector<float> log2;
  std::vector<float> normalized;  // over the sum of rounded weights
  std::vector<double> exact;
  bool certain = true;  // no weight lies near a middle between two powers
};

float head_scale(const std::vector<float>& x, std::size_t heads, std::size_t head, std::size_t width) {
  float largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (i / width % heads == head) largest = std::fmax(largest, std::fabs(x[i]));
  }
  return largest / 127.0f;
}

Row row_of(const Problem& problem, const Int8KvScales& fixed, std::span<const float> slopes, std::size_t token,
           std::size_t head) {
  const Case& c = problem.shape;
  const std::size_t kv = head / (c.heads / c.kv_heads), visible = c.past + token + 1;
  const float* query = problem.q.data() + (token * c.heads + head) * c.width;
  float largest = 0;
  for (std::size_t i = 0; i < c.width; ++i) largest = std::fmax(largest, std::fabs(query[i]));
  const float sq = fixed.queries.empty() ? largest / 127.0f : fixed.queries[head];
  const float sk = fixed.keys.empty() ? head_scale(problem.k, c.kv_heads, kv, c.width) : fixed.keys[kv];
  const float sv = fixed.values.empty() ? head_scale(problem.v, c.kv_heads, kv, c.width) : fixed.values[kv];
  const auto cached = [&](const std::vector<float>& x, std::size_t j, std::size_t i, float scale) {
    return code_of(x[(j * c.kv_heads + kv) * c.width + i], scale);
  };
  Row row;
  double best = -1e300, total = 0;
  for (std::size_t j = 0; j < visible; ++j) {
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < c.width; ++i) sum += code_of(query[i], sq) * cached(problem.k, j, i, sk);
    row.p.push_back(static_cast<double>(sum) * static_cast<double>(sq) * static_cast<double>(sk) *
                    static_cast<double>(score_scale));
    if (!slopes.empty()) row.p.back() -= static_cast<double>(slopes[head]) * static_cast<double>(visible - 1 - j);
    best = std::fmax(best, row.p.back());
  }
  for (double& p : row.p) total += p = std::exp(p - best);
  std::vector<std::int64_t> sums(c.width);
  std::int64_t weights = 0;
  row.exact.resize(c.width);
  for (std::size_t j = 0; j < visible; ++j) {
    row.p[j] /= total;
    const double power = -std::log2(row.p[j]), code = std::nearbyint(power);
    row.certain = row.certain && std::fabs(std::fabs(power - code) - 0.5) > 5e-5;
    weights += code < 16 ? 1 << (15 - static_cast<int>(code)) : 0;
    for (std::size_t i = 0; i < c.width; ++i) {
      const int value = cached(problem.v, j, i, sv);
      if (code < 16) sums[i] += static_cast<std::int64_t>(value) * (1 << (15 - static_cast<int>(code)));
      row.exact[i] += row.p[j] * value * static_cast<double>(sv);
    }
  }
  for (const std::int64_t sum : sums) {
    row.log2.push_back(static_cast<float>(sum) / 32768.0f * sv);
    row.normalized.push_back(static_cast<float>(sum) * (1.0f / static_cast<float>(weights)) * sv);
  }
  return row;
}

}  // namespace

TEST_CASE("Integer attention with log2 weights has the bits of its definition") {
  const Case cases[] = {{0, 1, 1, 1, 1},    {0, 5, 2, 2, 17},   {63, 1, 4, 2, 64},  {62, 3, 3, 1, 32},
                        {7, 1, 20, 1, 8},   {255, 1, 2, 1, 40}, {250, 8, 2, 1, 96}, {0, 33, 1, 1, 256},
                        {600, 2, 6, 2, 16}, {509, 19, 1, 1, 33}};
  std::size_t certain = 0, all = 0;
  for (const Case& c : cases) {
    const Problem problem(c);
    for (const bool fixed : {false, true}) {
      const Int8KvScales scales = fixed ? problem.static_scales() : Int8KvScales{};
      const Int8KvCache cache = problem.cache(scales);
      // Static scales come with ALiBi.
      std::vector<float> slopes;
      for (std::size_t h = 0; h < c.heads && fixed; ++h) slopes.push_back(0.25f / static_cast<float>(h + 1));
      std::vector<Row> wanted;
      for (std::size_t i = 0; i < c.tokens * c.heads; ++i) {
        wanted.push_back(row_of(problem, scales, slopes, i / c.heads, i % c.heads));
      }
      for (const Isa isa : support::machine_isas()) {
        CAPTURE(c.past, c.tokens, c.heads, c.kv_heads, c.width, fixed, isa_name(isa));
        std::vector<float> first(c.tokens * c.heads);
        AttentionScores scores(score_scale);
        scores.weights = SoftmaxWeights::log2;
        scores.slopes = slopes;
        scores.first_weights = matrix_view(first.data(), c.tokens, c.heads);
        const auto out = problem.run(cache, scores, SerialExecutor{}, isa);
        scores.weights = SoftmaxWeights::log2_normalized;
        scores.first_weights = {};
        const auto normalized = problem.run(cache, scores, SerialExecutor{}, isa);
        scores = AttentionScores(score_scale);
        scores.slopes = slopes;
        const auto exact = problem.run(cache, scores, SerialExecutor{}, isa);
        std::size_t wrong = 0;
        double worst = 0;
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          const Row& row = wanted[i];
          const double code = std::nearbyint(-std::log2(row.p[0]));
          certain += row.certain;
          wrong += row.certain && first[i] != (code < 16 ? static_cast<float>(std::exp2(-code)) : 0.0f);
          for (std::size_t e = 0; e < c.width; ++e) {
            wrong += row.certain && out[i * c.width + e] != row.log2[e];
            wrong += row.certain && normalized[i * c.width + e] != row.normalized[e];
            worst = std::fmax(worst, std::fabs(static_cast<double>(exact[i * c.width + e]) - row.exact[e]));
          }
        }
        all += wanted.size();
        CHECK(wrong == 0);
        // Half a step of 2^-15 per weight, most of which cancel; values reach 4.
        CHECK(worst < 4 * 0x1p-16 * (2 + 2 * std::sqrt(static_cast<double>(c.past + c.tokens))));
      }
    }
  }
  CHECK(certain > all * 9 / 10);
}

TEST_CASE("Any executor and any cut of the queries gives the same bits") {
  const Problem problem({20, 70, 6, 2, 32});
  const std::size_t columns = 6 * 32;
  AttentionScores scores(score_scale);
  for (const SoftmaxWeights weights : {SoftmaxWeights::exact, SoftmaxWeights::log2}) {
    scores.weights = weights;
    const Int8KvScales fixed = problem.static_scales();
    const Int8KvCache whole = problem.cache(fixed);
    const Isa isa = detect();
    const auto one = problem.run(whole, scores, SerialExecutor{}, isa);
    CHECK(problem.run(whole, scores, support::ThreadExecutor{3}, isa) == one);
    const SerialExecutor serial;
    ExecutionContext<> context(serial, isa);
    auto cache = Int8KvCache::create({2, 32}, 90, fixed);
    std::vector<float> out(problem.q.size());
    const auto keys = support::input(problem.k, 64), values = support::input(problem.v, 64);
    REQUIRE(cache->append(rows(keys, 0, 20), rows(values, 0, 20)));
    for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 30}, {30, 39}, {69, 1}}) {
      REQUIRE(cache->append(rows(keys, 20 + first, count), rows(values, 20 + first, count)));
      REQUIRE(attend(rows(support::input(problem.q, columns), first, count), *cache, scores,
                     rows(support::view(out, columns), first, count), context));
    }
    CHECK(out == one);
  }
}

TEST_CASE("Float keys and values under log2 weights") {
  for (const Case& c : {Case{0, 5, 2, 1, 17}, {300, 3, 4, 2, 16}, {255, 1, 3, 1, 40}}) {
    const Problem problem(c);
    auto cache = FloatKvCache::create(c.kv_heads, c.width, c.past + c.tokens);
    REQUIRE(cache->append(support::input(problem.k, c.kv_heads * c.width),
                          support::input(problem.v, c.kv_heads * c.width)));
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(c.past, isa_name(isa));
      const SerialExecutor serial;
      ExecutionContext<> context(serial, isa);
      AttentionScores scores(score_scale);
      scores.weights = SoftmaxWeights::log2;
      std::vector<float> out(problem.q.size());
      const std::size_t columns = c.heads * c.width;
      REQUIRE(attend(support::input(problem.q, columns), *cache, scores, support::view(out, columns), context));
      std::size_t wrong = 0, certain = 0;
      for (std::size_t i = 0; i < c.tokens * c.heads; ++i) {
        const std::size_t kv = i % c.heads / (c.heads / c.kv_heads), visible = c.past + i / c.heads + 1;
        std::vector<double> p, wanted(c.width);
        double total = 0;
        for (std::size_t j = 0; j < visible; ++j) {
          double score = 0;
          for (std::size_t e = 0; e < c.width; ++e) {
            score += static_cast<double>(problem.q[i * c.width + e]) *
                     static_cast<double>(problem.k[(j * c.kv_heads + kv) * c.width + e]);
          }
          p.push_back(std::exp(score * static_cast<double>(score_scale)));
          total += p.back();
        }
        bool sure = true;
        for (std::size_t j = 0; j < visible; ++j) {
          const double power = -std::log2(p[j] / total), code = std::nearbyint(power);
          sure = sure && std::fabs(std::fabs(power - code) - 0.5) > 2e-5;
          for (std::size_t e = 0; e < c.width && code < 16; ++e) {
            wanted[e] += std::exp2(-code) * static_cast<double>(problem.v[(j * c.kv_heads + kv) * c.width + e]);
          }
        }
        certain += sure;
        for (std::size_t e = 0; e < c.width; ++e) {
          wrong += sure && std::fabs(static_cast<double>(out[i * c.width + e]) - wanted[e]) > 2e-6;
        }
      }
      CHECK(wrong == 0);
      CHECK(certain > c.tokens * c.heads * 8 / 10);
    }
  }
}

TEST_CASE("Shifts and planes of bytes make the same sums, at the ends of codes and weights") {
  constexpr std::size_t rows = 3, width = 48;
  std::vector<std::byte> values(int8_value_bytes(width));
  std::vector<float> weights(rows * attention::block_positions);
  std::vector<std::uint8_t> codes(rows * kv_page_positions);
  std::vector<std::int64_t> wanted(rows * width);
  std::mt19937 random(5);
  for (std::byte& value : values) value = static_cast<std::byte>(random() % 4 == 0 ? random() % 2 * 254 + 1 : random());
  for (std::size_t r = 0; r < rows; ++r) {
    double left = 1.4;
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      const auto q = static_cast<unsigned>(r == 2 ? (p == 5 ? 0 : 16) : random() % 17);
      const double weight = q < 16 ? std::ldexp(1.0, -static_cast<int>(q)) : 0.0;
      const bool fits = weight <= left;
      codes[r * kv_page_positions + p] = fits ? static_cast<std::uint8_t>(q) : no_shift;
      weights[r * attention::block_positions + p] = fits ? static_cast<float>(weight * 32768) : 0.0f;
      left -= fits ? weight : 0.0;
      for (std::size_t e = 0; e < width && fits && q < 16; ++e) {
        const std::size_t at = e / 16 * 1024 + p / 4 * 64 + e % 16 * 4 + p % 4;
        wanted[r * width + e] += (static_cast<std::int64_t>(values[at]) - 128) * (std::int64_t{1} << (15 - q));
      }
    }
  }
  const auto differing = [&](const std::vector<float>& out) {
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < out.size(); ++i) wrong += out[i] != static_cast<float>(wanted[i] + 7);
    return wrong;
  };
  std::vector<float> shifted(rows * width, 7.0f);
  isa::scalar::shift_tile({values.data(), width / 16, rows, codes.data(), shifted.data(), width});
  CHECK(differing(shifted) == 0);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::vector<float> out(rows * width, 7.0f);
    const KvKernels kernels = kv_kernels_of<8>(isa);
    const Int8KvView cache{.width = width};
    const attention::Int8Queries queries{};
    const attention::Int8Source source{kernels, cache, 0, queries, rows, SoftmaxWeights::log2, isa};
    float maxima[rows], sums[rows];
    source.add_planes(values.data(), weights.data(), {rows, 1.0f, maxima, sums, out.data(), width});
    CHECK(differing(out) == 0);
  }
}

TEST_CASE("Dynamic scales double when rows outgrow them; codes are halved to even") {
  auto cache = Int8KvCache::create({2, 3}, 70);
  REQUIRE(cache);
  std::vector<float> keys = {127, 3, -5, 1, 1, 1}, values = {0, 0, 0, 127, 126, -125};
  for (int i = 0; i < 65; ++i) REQUIRE(cache->append(support::input(keys, 6), support::input(values, 6)));
  CHECK(cache->view().key_scales[0] == 1.0f);
  CHECK(cache->view().key_scales[1] == 1.0f / 127.0f);
  CHECK(cache->view().value_scales[0] == smallest_scale);
  CHECK(cache->key_code(1, 64, 2) == 127);
  const std::vector<float> large = {-400, 4, 6, 1, 1, 1};
  REQUIRE(cache->append(support::input(large, 6), support::input(values, 6)));
  CHECK(cache->view().key_scales[0] == 4.0f);  // 2 * 127 < 400
  for (const std::size_t p : {0u, 63u, 64u}) {
    CHECK(cache->key_code(0, p, 0) == 32);  // 127 / 4
    CHECK(cache->key_code(0, p, 1) == 1);
    CHECK(cache->key_code(0, p, 2) == -1);
    CHECK(cache->value_code(1, p, 0) == 127);
    CHECK(cache->value_code(1, p, 2) == -125);
  }
  CHECK(cache->key_code(0, 65, 0) == -100);
  CHECK(cache->key_code(0, 65, 2) == 2);  // 1.5 to even
  cache->truncate(1);
  std::vector<float> huge(6, 1e30f);
  REQUIRE(cache->append(support::input(huge, 6), support::input(huge, 6)));
  CHECK(cache->key_code(0, 0, 0) == 0);
  CHECK(cache->key_code(0, 1, 0) >= 64);
  cache->reset();
  REQUIRE(cache->append(support::input(keys, 6), support::input(values, 6)));
  CHECK(cache->view().key_scales[0] == 1.0f);
}

TEST_CASE("Static scales clip") {
  const float q[] = {1.0f}, k[] = {0.5f}, v[] = {2.0f};
  auto cache = Int8KvCache::create({1, 2}, 4, {q, k, v});
  REQUIRE(cache);
  const std::vector<float> keys = {100.0f, -1.25f}, values = {-255.0f, 3.0f};
  REQUIRE(cache->append(support::input(keys, 2), support::input(values, 2)));
  CHECK(cache->key_code(0, 0, 0) == 127);
  CHECK(cache->key_code(0, 0, 1) == -2);  // -2.5 to even
  CHECK(cache->value_code(0, 0, 0) == -127);
  CHECK(cache->value_code(0, 0, 1) == 2);  // 1.5 to even
}

TEST_CASE("Slopes that are as good as infinite leave the nearest position") {
  // Codes of tiny queries are worth so little that 2^100 over it is no float.
  const float tiny[] = {0x1p-60f}, one[] = {1.0f};
  auto cache = Int8KvCache::create({1, 1}, 3, {tiny, tiny, one});
  REQUIRE(cache);
  const std::vector<float> keys = {1.0f, 2.0f, 3.0f}, values = {10.0f, 20.0f, 30.0f}, q(3, 0x1p-60f);
  REQUIRE(cache->append(support::input(keys, 1), support::input(values, 1)));
  const SerialExecutor serial;
  for (const auto weights : {SoftmaxWeights::exact, SoftmaxWeights::log2}) {
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa));
      ExecutionContext<> context(serial, isa);
      AttentionScores scores(1.0f);
      scores.weights = weights;
      std::vector<float> out(3);
      for (const float slope : {0x1p100f, -0x1p100f}) {
        scores.slopes = std::span<const float>(&slope, 1);
        REQUIRE(attend(support::input(q, 1), *cache, scores, support::view(out, 1), context));
        CHECK(out == (slope > 0 ? values : std::vector<float>(3, 10.0f)));
      }
    }
  }
}

TEST_CASE("Integer attention refuses what does not fit") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(Int8KvCache::create({0, 4}, 1).error().code == Errc::bad_shape);
  CHECK(Int8KvCache::create({1, 257}, 1).error().code == Errc::unsupported);
  CHECK(Int8KvCache::create({1, 4}, SIZE_MAX).error().code == Errc::bad_shape);
  CHECK(Int8KvCache::create({SIZE_MAX / 8, 256}, 64).error().code == Errc::bad_shape);
  CHECK(Int8KvCache::create({SIZE_MAX / 2 + 1, 4}, 0).error().code == Errc::bad_shape);  // its scales
  const float good[] = {1.0f, 1.0f}, bad[] = {0.0f}, nan[] = {infinity};
  const std::span<const float> one(good, 1), two(good);
  CHECK(Int8KvCache::create({1, 4}, 1, {one, one, {}}).error().code == Errc::bad_shape);
  CHECK(Int8KvCache::create({1, 4}, 1, {one, bad, one}).error().code == Errc::bad_argument);
  CHECK(Int8KvCache::create({1, 4}, 1, {nan, one, one}).error().code == Errc::bad_argument);
  auto cache = Int8KvCache::create({1, 4}, 2, {two, one, one});
  REQUIRE(cache);
  std::vector<float> row(4, 1.0f), many(12, 1.0f), out(8);
  CHECK(cache->append(support::input(many, 4), support::input(many, 4)).error().code == Errc::bad_shape);
  CHECK(cache->append(support::input(row, 2), support::input(row, 2)).error().code == Errc::bad_shape);
  std::vector<float> broken = row;
  for (const float value : {infinity, std::numeric_limits<float>::quiet_NaN(), 0x1p101f}) {
    broken[2] = value;
    CHECK(cache->append(support::input(broken, 4), support::input(row, 4)).error().code == Errc::not_finite);
    CHECK(cache->append(support::input(row, 4), support::input(broken, 4)).error().code == Errc::not_finite);
  }
  CHECK(cache->size() == 0);
  REQUIRE(cache->append(support::input(row, 4), support::input(row, 4)));
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto q = matrix_view<const float>(many.data(), 1, 8);
  CHECK(attend(q, *cache, 1.0f, matrix_view(out.data(), 1, 8), context));
  CHECK(attend(support::input(row, 4), *cache, 1.0f, matrix_view(out.data(), 1, 4), context).error().code ==
        Errc::bad_shape);  // static scales of two query heads
  CHECK(attend(q, *cache, 0.0f, matrix_view(out.data(), 1, 8), context).error().code == Errc::bad_argument);
  CHECK(attend(q, *cache, 1.0f, matrix_view(out.data(), 1, 4), context).error().code == Errc::bad_shape);
  AttentionScores columns(1.0f);
  columns.column_sums = matrix_view(many.data(), 1, 2);
  CHECK(attend(q, *cache, columns, matrix_view(out.data(), 1, 8), context).error().code == Errc::unsupported);
  many[5] = infinity;
  CHECK(attend(q, *cache, 1.0f, matrix_view(out.data(), 1, 8), context).error().code == Errc::not_finite);
  Int8KvCache moved(std::move(*cache));
  CHECK(moved.size() == 1);
  CHECK(cache->size() == 0);
  CHECK(cache->append(support::input(row, 4), support::input(row, 4)).error().code == Errc::bad_shape);
}
