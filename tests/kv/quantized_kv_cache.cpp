// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/quantized_kv_cache.hpp>

#include <catch2/catch_all.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support/guarded.hpp"
#include "support/kv_row_model.hpp"

namespace {

using cbq::QuantizedKvCache;
using cbq::QuantizedKvOptions;
using support::KvRowModel;
using support::KvRows;

/// A pool in memory between forbidden pages, and factors.
struct Host {
  Host(const QuantizedKvOptions& options, std::size_t pages)
      : page_bytes(cbq::kv_layout(options.scheme, options.heads, options.width)->page_bytes),
        memory((pages * page_bytes + 4095) / 4096 * 4096, support::Edge::end),
        pool(*cbq::KvPagePool::create(memory.span().first(pages * page_bytes), page_bytes)) {
    if (!options.scheme.smoothed) return;
    std::mt19937 random(3);
    std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
    for (std::size_t i = 0; i < 5 * options.heads * options.width; ++i) factors.push_back(uniform(random));
    const float* from = factors.data();
    const std::size_t columns = options.heads * options.width;
    transform = {.key_scales = from,
                 .key_offsets = from + columns,
                 .value_scales = from + 2 * columns,
                 .value_offsets = from + 3 * columns,
                 .key_weights = from + 4 * columns,
                 .refinements = 2};
  }

  std::size_t page_bytes;
  support::Guarded<std::byte> memory;
  cbq::KvPagePool pool;
  std::vector<float> factors;
  cbq::RowTransform transform;
};

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
  Host host_;
  std::mt19937 random_;
  std::vector<Pair> all_;
  std::size_t refused_ = 0;
  std::size_t largest_ = 0;
};

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
