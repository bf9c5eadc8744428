// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/quantized_kv_cache.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <cbq/kv/packed_attention.hpp>
#include <cbq/nn/causal_model.hpp>

#include "support/failing_memory.hpp"
#include "support/kernels.hpp"
#include "support/kv_kernels.hpp"
#include "support/kv_row_model.hpp"

namespace {

using cbq::QuantizedKvCache;
using cbq::QuantizedKvOptions;
using support::KvHost;
using support::KvRowModel;
using support::KvRows;

struct Pair {
  QuantizedKvCache cache;
  KvRowModel expected;
};

/// Appends, rollbacks, forks and ends of sequences that share a pool, in random order.
class Sequences {
 public:
  Sequences(const QuantizedKvOptions& options, std::size_t pages, unsigned seed)
      : options_(options), host_(options, pages), random_(seed) {
    begin();
  }

  void step() {
    const std::size_t i = random_() % all_.size();
    switch (random_() % 12) {
      case 0:
        truncate(i);
        break;
      case 1:
        fork(i);
        break;
      case 2:
        if (all_.size() > 2) all_.erase(all_.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      default:
        append(i);
    }
    std::set<const std::byte*> pages;
    for (const Pair& pair : all_) {
      const cbq::QuantizedKvView view = pair.cache.view();
      pair.expected.check(view);
      for (std::size_t page = 0; page < options_.capacity / 64; ++page) {
        if (view.pages[page] == nullptr) continue;
        pages.insert(view.pages[page]);
        REQUIRE(page >= view.first / 64);
        REQUIRE(page * 64 < view.packed);
      }
    }
    REQUIRE(host_.pool.size() - host_.pool.free_pages() == pages.size());
  }
  void end() {
    all_.clear();
    CHECK(host_.pool.free_pages() == host_.pool.size());
  }
  /// Appends for which there was no page, and the longest sequence that found no room.
  [[nodiscard]] std::size_t refused() const { return refused_; }
  [[nodiscard]] std::size_t largest() const { return largest_; }

 private:
  void begin() {
    auto cache = QuantizedKvCache::create(host_.pool, options_, host_.transform);
    REQUIRE(cache);
    all_.push_back({*std::move(cache), KvRowModel(options_, host_.transform)});
  }
  void append(std::size_t i) {
    const std::size_t rows = random_() % 3 == 0 ? 1 + random_() % options_.largest_append : 1 + random_() % 2;
    const KvRows more(rows, options_.heads * options_.width, random_);
    Pair& pair = all_[i];
    const std::size_t size = pair.cache.size(), free = host_.pool.free_pages();
    const cbq::Status done = pair.cache.append(more.k(), more.v());
    if (done) {
      pair.expected.append(more);
      return;
    }
    REQUIRE((done.error().code == cbq::Errc::out_of_memory || size + rows > options_.capacity));
    REQUIRE(host_.pool.free_pages() == free);
    refused_ += done.error().code == cbq::Errc::out_of_memory ? 1u : 0u;
    largest_ = std::max(largest_, size);
  }
  void truncate(std::size_t i) {
    const std::size_t size = all_[i].cache.size();
    const std::size_t back = random_() % 4 == 0 ? random_() % (size + 1) : random_() % 8;
    all_[i].cache.truncate(back < size ? size - back : 0);
    all_[i].expected.truncate(back < size ? size - back : 0);
  }
  void fork(std::size_t i) {
    if (all_.size() > 4) return;
    auto copy = all_[i].cache.fork();
    REQUIRE(copy);
    Pair pair{*std::move(copy), all_[i].expected};
    all_.push_back(std::move(pair));
  }

  QuantizedKvOptions options_;
  KvHost host_;
  std::mt19937 random_;
  std::vector<Pair> all_;
  std::size_t refused_ = 0;
  std::size_t largest_ = 0;
};

/// Attention of the queries of the last positions by definition: softmax over the rows that the policy lets each see.
std::vector<double> attention(const KvRowModel& rows, const QuantizedKvOptions& options,
                              const cbq::RowTransform& transform, const KvRows& q, float scale) {
  const std::size_t width = options.width, queries = q.rows(), query_heads = q.columns / width;
  std::vector<float> x = q.keys;
  const cbq::KvHeads heads{options.heads, width};
  REQUIRE(cbq::transform_queries(transform, heads, cbq::matrix_view(x.data(), queries, q.columns)));
  std::vector<double> out;
  for (std::size_t t = 0; t < queries; ++t) {
    const std::size_t position = rows.size() - queries + t, window = options.policy.window;
    for (std::size_t head = 0; head < query_heads; ++head) {
      const std::size_t first = head / (query_heads / options.heads) * width;
      std::vector<double> sum(width);
      double total = 0;
      for (std::size_t p = 0; p <= position; ++p) {
        if (p >= options.policy.sinks && window != 0 && p + window <= position) continue;
        double score = 0;
        for (std::size_t i = 0; i < width; ++i) {
          score += static_cast<double>(x[t * q.columns + head * width + i]) * rows.row(p).key[first + i];
        }
        const double weight = std::exp(score * static_cast<double>(scale));
        total += weight;
        for (std::size_t i = 0; i < width; ++i) sum[i] += weight * rows.row(p).value[first + i];
      }
      for (double& value : sum) value /= total;
      cbq::restore_output(transform, head / (query_heads / options.heads), std::span(sum), cbq::Isa::scalar);
      out.insert(out.end(), sum.begin(), sum.end());
    }
  }
  return out;
}

QuantizedKvOptions small(const char* scheme, const cbq::KvPolicy& policy = {}) {
  return {.scheme = *cbq::parse_kv_scheme(scheme),
          .policy = policy,
          .heads = 2,
          .width = 12,
          .capacity = 320,
          .largest_append = 70};
}

}  // namespace

TEST_CASE("Random appends, rollbacks and forks show what a vector of rows shows, and every page comes back") {
  const QuantizedKvOptions all[] = {
      small("kv4"),
      small("kv4_past"),
      small("kv3_2d_past_hadamard"),
      small("kv8_past", {.recent = 30}),
      small("kv4", {.recent = 64, .sinks = 5}),
      small("kv4_past", {.sinks = 70}),
      small("kv2_kivi"),
      small("kv2_kivi_past", {.recent = 10, .sinks = 3}),
      small("kv4_past", {.window = 40}),
      small("kv4_kivi_past", {.sinks = 4, .window = 100}),
      small("kv4", {.recent = 10, .window = 60}),
  };
  for (const QuantizedKvOptions& options : all) {
    CAPTURE(cbq::kv_scheme_name(options.scheme).c_str(), options.policy.recent, options.policy.sinks,
            options.policy.window);
    Sequences sequences(options, options.policy.window == 0 ? 6 : 3, 11);
    for (int step = 0; step < 400; ++step) sequences.step();
    CHECK(sequences.refused() > 0);
    CHECK(sequences.largest() > 250);
    sequences.end();
  }
}

TEST_CASE("What is past is quantized by the next append, and stays so when that is rolled back") {
  const QuantizedKvOptions options = small("kv2_past");
  KvHost host(options, 8);
  std::mt19937 random(1);
  auto cache = QuantizedKvCache::create(host.pool, options);
  REQUIRE(cache);
  const KvRows prompt(70, 24, random), draft(5, 24, random);
  REQUIRE(cache->append(prompt.k(), prompt.v()));
  CHECK(cache->view().packed == 0);
  CHECK(cache->view().exact.size == 70);
  CHECK(host.pool.free_pages() == 8);
  REQUIRE(cache->append(draft.k(), draft.v()));
  CHECK(cache->view().packed == 70);
  CHECK(cache->view().exact.size == 5);
  CHECK(host.pool.free_pages() == 6);
  cache->truncate(72);  // two drafted tokens were right
  CHECK(cache->size() == 72);
  CHECK(cache->view().packed == 70);
  cache->truncate(60);
  CHECK(cache->view().packed == 60);
  CHECK(cache->view().exact.size == 0);
  CHECK(host.pool.free_pages() == 7);
  cache->truncate(61);
  CHECK(cache->size() == 60);
  cache->reset();
  CHECK(cache->size() == 0);
  CHECK(host.pool.free_pages() == 8);
}

TEST_CASE("Without past_only an append is attended to quantized") {
  const QuantizedKvOptions options = small("kv8");
  KvHost host(options, 2);
  std::mt19937 random(1);
  auto cache = QuantizedKvCache::create(host.pool, options);
  const KvRows rows(65, 24, random);
  REQUIRE(cache->append(rows.k(), rows.v()));
  CHECK(cache->view().packed == 65);
  CHECK(cache->view().exact.size == 0);
  CHECK(cache->bytes().pages == 2 * host.pool.page_bytes());
  CHECK(cache->bytes().shared == 0);
}

TEST_CASE("Pages that lie wholly among the sinks are never acquired") {
  QuantizedKvOptions options = small("kv4", {.sinks = 70});
  options.largest_append = 71;
  KvHost host(options, 1);
  std::mt19937 random(1);
  auto cache = QuantizedKvCache::create(host.pool, options);
  const KvRows rows(71, 24, random);
  REQUIRE(cache->append(rows.k(), rows.v()));
  CHECK(cache->view().pages[0] == nullptr);
  CHECK(cache->view().pages[1] != nullptr);
}

TEST_CASE("A window gives pages back, and a rollback of the last append loses nothing") {
  const QuantizedKvOptions options = small("kv4_past", {.window = 64});
  KvHost host(options, 2);  // a page is given back before the next one is needed
  std::mt19937 random(1);
  auto cache = QuantizedKvCache::create(host.pool, options);
  KvRowModel expected(options, {});
  for (std::size_t step = 0; step < 10; ++step) {
    const KvRows rows(31, 24, random);
    REQUIRE(cache->append(rows.k(), rows.v()));
    expected.append(rows);
    cache->truncate(cache->size() - 3);
    expected.truncate(expected.size() - 3);
    expected.check(cache->view());
    CHECK(cache->view().first == (step < 3 ? 0 : 28 * step + 1 - 64));
  }
}

TEST_CASE("A fork shares pages, copies the one that is written, and both go their own way") {
  const QuantizedKvOptions options = small("kv4_past", {.sinks = 2});
  KvHost host(options, 6);
  std::mt19937 random(1);
  auto first = QuantizedKvCache::create(host.pool, options);
  KvRowModel first_rows(options, {});
  for (std::size_t i = 0; i < 3; ++i) {
    const KvRows rows(30 + i, 24, random);
    REQUIRE(first->append(rows.k(), rows.v()));
    first_rows.append(rows);
  }
  CHECK(host.pool.free_pages() == 5);  // 61 positions are past
  auto second = first->fork();
  REQUIRE(second);
  KvRowModel second_rows = first_rows;
  CHECK(host.pool.free_pages() == 5);
  CHECK(second->bytes().shared == host.pool.page_bytes());
  const KvRows mine(4, 24, random), yours(9, 24, random);
  REQUIRE(first->append(mine.k(), mine.v()));
  first_rows.append(mine);
  first_rows.check(first->view());
  second_rows.check(second->view());
  CHECK(host.pool.free_pages() == 3);  // a copy of the shared page, and a second page
  REQUIRE(second->append(yours.k(), yours.v()));
  second_rows.append(yours);
  first_rows.check(first->view());
  second_rows.check(second->view());
  CHECK(host.pool.free_pages() == 2);
  CHECK(second->bytes().shared == 0);
  *first = *std::move(second);  // the first sequence ends here
  CHECK(host.pool.free_pages() == 4);
  second_rows.check(first->view());
}

TEST_CASE("A cache lives in a ModelCache, and survives the move of its pool") {
  const QuantizedKvOptions options = small("kv4");
  KvHost host(options, 6);
  std::mt19937 random(1);
  std::vector<QuantizedKvCache> layers;
  for (int i = 0; i < 3; ++i) layers.push_back(*QuantizedKvCache::create(host.pool, options));
  const KvRows rows(3, 24, random);
  const cbq::KvPagePool moved = std::move(host.pool);
  for (QuantizedKvCache& layer : layers) REQUIRE(layer.append(rows.k(), rows.v()));
  CHECK(moved.free_pages() == 3);
  layers.erase(layers.begin());
  CHECK(moved.free_pages() == 4);
  CHECK(layers[1].size() == 3);
  layers.clear();
  CHECK(moved.free_pages() == 6);
}

TEST_CASE("A cache that cannot be is refused") {
  const QuantizedKvOptions good = small("kv4");
  KvHost host(good, 2);
  const auto code = [&host](const QuantizedKvOptions& options, const cbq::RowTransform& transform = {}) {
    const auto cache = QuantizedKvCache::create(host.pool, options, transform);
    REQUIRE_FALSE(cache);
    return cache.error().code;
  };
  const auto with = [&good](auto member, auto value) {
    QuantizedKvOptions options = good;
    options.*member = value;
    return options;
  };
  CHECK(code(with(&QuantizedKvOptions::heads, 0u)) == cbq::Errc::bad_shape);
  CHECK(code(with(&QuantizedKvOptions::heads, 3u)) == cbq::Errc::bad_shape);  // other pages
  CHECK(code(with(&QuantizedKvOptions::width, 0u)) == cbq::Errc::bad_shape);
  CHECK(code(with(&QuantizedKvOptions::width, 257u)) == cbq::Errc::bad_shape);
  CHECK(code(with(&QuantizedKvOptions::capacity, 0u)) == cbq::Errc::bad_argument);
  CHECK(code(with(&QuantizedKvOptions::largest_append, 0u)) == cbq::Errc::bad_argument);
  CHECK(code(with(&QuantizedKvOptions::scheme, cbq::KvScheme{.bits = 16})) == cbq::Errc::unsupported);
  CHECK(code(small("kv4_2d")) == cbq::Errc::bad_argument);
  std::vector<float> factors(24, 1.0f);
  CHECK(code(good, {.key_scales = factors.data()}) == cbq::Errc::bad_argument);
  CHECK(QuantizedKvCache::create(host.pool, small("kv4_2d"), {.key_scales = factors.data()}).has_value());
  factors[3] = 0.0f;
  CHECK(code(small("kv4_2d"), {.key_scales = factors.data()}) == cbq::Errc::bad_argument);
  factors[3] = std::numeric_limits<float>::infinity();
  CHECK(code(small("kv4_2d"), {.value_offsets = factors.data()}) == cbq::Errc::not_finite);
  constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
  CHECK(QuantizedKvCache::create(host.pool, with(&QuantizedKvOptions::largest_append, huge)).has_value());
  cbq::KvPagePool moved = std::move(host.pool);
  CHECK(code(good) == cbq::Errc::bad_shape);
}

TEST_CASE("A refused append leaves the cache as it was") {
  for (const char* scheme : {"kv4", "kv4_past", "kv3_2d_past_hadamard", "kv2_kivi_past"}) {
    CAPTURE(scheme);
    QuantizedKvOptions options = small(scheme, {.sinks = 2});
    options.capacity = 130;
    KvHost host(options, 4);
    std::mt19937 random(1);
    auto cache = QuantizedKvCache::create(host.pool, options, host.transform);
    REQUIRE(cache);
    KvRowModel expected(options, host.transform);
    for (const std::size_t count : {66u, 1u}) {
      const KvRows rows(count, 24, random);
      REQUIRE(cache->append(rows.k(), rows.v()));
      expected.append(rows);
    }
    const std::size_t free = host.pool.free_pages();
    const auto refuses = [&](const cbq::Status& done, cbq::Errc code) {
      REQUIRE_FALSE(done);
      CHECK(done.error().code == code);
      expected.check(cache->view());
      CHECK(host.pool.free_pages() == free);
    };
    const KvRows five(5, 24, random), wide(5, 25, random);
    refuses(cache->append(wide.k(), wide.v()), cbq::Errc::bad_shape);
    refuses(cache->append(five.k(), wide.v()), cbq::Errc::bad_shape);
    refuses(cache->append(five.k(), cbq::rows(five.v(), 0, 4)), cbq::Errc::bad_shape);
    const float* const memory = five.keys.data();
    for (const cbq::MatrixView<const float>& bad :
         {cbq::MatrixView<const float>{nullptr, 5, 24, 24}, {memory, 5, 24, 23}}) {
      refuses(cache->append(bad, five.v()), cbq::Errc::bad_shape);
      refuses(cache->append(five.k(), bad), cbq::Errc::bad_shape);
    }
    const KvRows many(71, 24, random), full(64, 24, random);
    refuses(cache->append(many.k(), many.v()), cbq::Errc::bad_shape);  // beyond largest_append
    refuses(cache->append(full.k(), full.v()), cbq::Errc::bad_shape);  // 67 + 64 > 130
    refuses(cache->append_at(66, five.k(), five.v()), cbq::Errc::bad_argument);
    refuses(cache->append_at(68, five.k(), five.v()), cbq::Errc::bad_argument);
    using Limits = std::numeric_limits<float>;
    for (const float bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), 1e6f}) {
      const cbq::Errc code = bad == 1e6f ? cbq::Errc::bad_argument : cbq::Errc::not_finite;
      KvRows rows = five;
      rows.keys[24 * 4 + 17] = bad;
      refuses(cache->append(rows.k(), rows.v()), code);
      if (bad != 1e6f) {
        CHECK(std::string(cache->append(rows.k(), rows.v()).error().where.c_str()) == "key of row 4, element 17");
      }
      rows = five;
      rows.values[3] = bad;
      refuses(cache->append(rows.k(), rows.v()), code);
    }
    REQUIRE(cache->append(cbq::rows(five.k(), 0, 0), cbq::rows(five.v(), 0, 0)));
    expected.check(cache->view());
    REQUIRE(cache->append_at(67, five.k(), five.v()));
    expected.append(five);
    expected.check(cache->view());
  }
}

TEST_CASE("Only creation and forks allocate, and every allocation that fails there is an error") {
  for (const char* scheme : {"kv3_2d_past_hadamard", "kv2_kivi_past"}) {
    const QuantizedKvOptions options = small(scheme, {.recent = 5, .sinks = 2});
    KvHost host(options, 4);
    std::mt19937 random(1);
    const KvRows rows(70, 24, random);
    std::size_t allocations = 0;
    for (bool failed = true; failed; ++allocations) {
      support::fail_allocation_after(allocations);
      const auto cache = QuantizedKvCache::create(host.pool, options, host.transform);
      failed = support::stop_failing_allocations();
      REQUIRE(cache.has_value() != failed);
      if (failed) CHECK(cache.error().code == cbq::Errc::out_of_memory);
    }
    CHECK(allocations > 5);
    auto cache = QuantizedKvCache::create(host.pool, options, host.transform);
    support::fail_allocation_after(0);
    for (const std::size_t count : {70u, 70u, 1u}) {
      const bool done = cache->append(cbq::rows(rows.k(), 0, count), cbq::rows(rows.v(), 0, count)).has_value();
      cache->truncate(cache->size() - 1);
      if (!done) FAIL("an append of " << count << " rows failed");
    }
    CHECK_FALSE(support::stop_failing_allocations());
    const std::size_t free = host.pool.free_pages();
    REQUIRE(free < 4);
    for (std::size_t count = 0; count < 5; ++count) {
      support::fail_allocation_after(count);
      const auto fork = cache->fork();
      REQUIRE(support::stop_failing_allocations());
      REQUIRE_FALSE(fork);
      CHECK(fork.error().code == cbq::Errc::out_of_memory);
      CHECK(cache->bytes().shared == 0);
    }
    cache->reset();
    CHECK(host.pool.free_pages() == 4);
  }
}

TEST_CASE("A freed sequence cannot be forked or appended to") {
  const QuantizedKvOptions options = small("kv4");
  KvHost host(options, 2);
  std::mt19937 random(1);
  const KvRows rows(3, 24, random);
  auto cache = QuantizedKvCache::create(host.pool, options);
  REQUIRE(cache->append(rows.k(), rows.v()));
  {
    const QuantizedKvCache taken = *std::move(cache);
    CHECK(taken.size() == 3);
  }
  CHECK(host.pool.free_pages() == 2);
  CHECK(cache->fork().error().code == cbq::Errc::bad_argument);
  CHECK(cache->append(rows.k(), rows.v()).error().code == cbq::Errc::bad_argument);
  CHECK(cache->append_at(0, rows.k(), rows.v()).error().code == cbq::Errc::bad_argument);
  CHECK(cache->size() == 0);
  CHECK(cache->capacity() == 0);
  CHECK(cache->view().size == 0);
  CHECK(cache->bytes().pages == 0);
  cache->truncate(0);
  cache->reset();
}

TEST_CASE("Layers attend to a cache as to its rows, whatever the policy and whoever shares its pages") {
  const QuantizedKvOptions all[] = {
      small("kv8_past"),
      small("kv8_2d_hadamard", {.recent = 30, .sinks = 70}),
      small("kv8_kivi_past", {.sinks = 4, .window = 100}),
  };
  for (QuantizedKvOptions options : all) {
    CAPTURE(cbq::kv_scheme_name(options.scheme).c_str());
    options.width = 32;
    KvHost host(options, 10);
    host.transform.hadamard = options.scheme.hadamard;
    std::mt19937 random(1);
    auto created = QuantizedKvCache::create(host.pool, options, host.transform);
    REQUIRE(created);
    std::vector<QuantizedKvCache> layers;
    layers.push_back(*std::move(created));
    cbq::ModelCache<QuantizedKvCache> model(std::move(layers));
    KvRowModel expected(options, host.transform);
    const cbq::SerialExecutor executor;
    cbq::ExecutionContext context(executor);
    const auto check = [&](QuantizedKvCache& cache, KvRowModel& model_rows, std::size_t count) {
      const KvRows rows(count, 64, random), q(count, 4 * 32, random);
      REQUIRE(cache.append(rows.k(), rows.v()));
      model_rows.append(rows);
      std::vector<float> out(count * q.columns);
      REQUIRE(cbq::attend(q.k(), cache, 0.05f, cbq::matrix_view(out.data(), count, q.columns), context));
      const std::vector<double> wanted = attention(model_rows, options, host.transform, q, 0.05f);
      double error = 0, size = 0;
      for (std::size_t i = 0; i < out.size(); ++i) {
        error += (static_cast<double>(out[i]) - wanted[i]) * (static_cast<double>(out[i]) - wanted[i]);
        size += wanted[i] * wanted[i];
      }
      // Queries and weights of 8 bits; with scales per channel, queries whose largest element took the largest scale.
      CHECK(std::sqrt(error / size) < (options.scheme.channel_keys ? 0.06 : 0.02));
    };
    for (const std::size_t count : {70u, 1u, 2u, 60u, 1u}) check(model.layer(0), expected, count);
    auto fork = model.layer(0).fork();
    REQUIRE(fork);
    KvRowModel forked = expected;
    model.truncate(128);
    expected.truncate(128);
    for (const std::size_t count : {1u, 65u}) check(model.layer(0), expected, count);
    for (const std::size_t count : {3u, 1u}) check(*fork, forked, count);
    CHECK(model.size() == 194);
    model.reset();
    CHECK(model.size() == 0);
  }
}
