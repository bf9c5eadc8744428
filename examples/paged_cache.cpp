// SPDX-License-Identifier: Apache-2.0

// A cache of quantized keys and values in pages of the host's memory: two sequences that share a prompt and then differ
// in length, decoded in one batch; drafted tokens that are rolled back; a sequence that is saved and loaded.

#include <algorithm>
#include <cbq/core/aligned.hpp>
#include <cbq/kv.hpp>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr std::size_t query_heads = 8;
constexpr std::size_t heads = 2;
constexpr std::size_t width = 64;
constexpr std::size_t prompt_tokens = 200;

/// Rows of one layer's queries, keys and values, as a model would compute them.
struct Rows {
  std::vector<float> q, k, v;
  std::size_t count = 0;

  Rows(std::size_t rows, std::mt19937& random)
      : q(rows * query_heads * width), k(rows * heads * width), v(k.size()), count(rows) {
    std::normal_distribution<float> normal;
    for (auto* x : {&q, &k, &v}) {
      for (float& value : *x) value = normal(random);
    }
  }
  [[nodiscard]] auto queries() const { return cbq::matrix_view(q.data(), count, query_heads * width); }
  [[nodiscard]] auto keys() const { return cbq::matrix_view(k.data(), count, heads * width); }
  [[nodiscard]] auto values() const { return cbq::matrix_view(v.data(), count, heads * width); }
};

/// Appends one token to each sequence and attends for all of them in one call.
cbq::Status decode(std::vector<cbq::QuantizedKvCache>& sequences, std::mt19937& random,
                   cbq::ExecutionContext<cbq::SerialExecutor>& context) {
  const Rows rows(sequences.size(), random);  // one row per sequence, as the projections of a batch give them
  std::vector<float> out(rows.q.size());
  const auto result = cbq::matrix_view(out.data(), rows.count, query_heads * width);
  std::vector<cbq::AttentionItem> items;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const cbq::Status done = sequences[i].append(cbq::rows(rows.keys(), i, 1), cbq::rows(rows.values(), i, 1));
    if (!done) return done;
    items.push_back({.q = cbq::rows(rows.queries(), i, 1),
                     .cache = sequences[i].view(),
                     .scale = 1 / std::sqrt(static_cast<float>(width)),
                     .out = cbq::rows(result, i, 1)});
  }
  return cbq::attend_batch(items, context);
}

void report(const char* what, const cbq::KvPagePool& pool, const std::vector<cbq::QuantizedKvCache>& sequences) {
  std::printf("%-22s %zu of %zu pages;", what, pool.size() - pool.free_pages(), pool.size());
  for (const cbq::QuantizedKvCache& cache : sequences) std::printf(" %zu positions", cache.size());
  std::printf("\n");
}

cbq::Status run() {
  const cbq::QuantizedKvOptions options{.scheme = *cbq::parse_kv_scheme("kv4_past_hadamard"),
                                        .policy = {.sinks = 4},
                                        .heads = heads,
                                        .width = width,
                                        .capacity = 1024,
                                        .largest_append = prompt_tokens};
  const auto layout = cbq::kv_layout(options.scheme, options.heads, options.width);
  if (!layout) return layout.error();
  constexpr std::size_t pages = 12;
  auto memory = cbq::AlignedBuffer<std::byte>::allocate(pages * layout->page_bytes);  // any memory on 64 bytes
  if (!memory) return memory.error();
  auto pool = cbq::KvPagePool::create({memory->data(), memory->size()}, layout->page_bytes);
  if (!pool) return pool.error();

  // A prompt of 200 tokens. All of it is current, so it is exact until the next append.
  std::mt19937 random(1);
  const Rows prompt(prompt_tokens, random);
  auto first = cbq::QuantizedKvCache::create(*pool, options);
  if (!first) return first.error();
  if (const cbq::Status done = first->append(prompt.keys(), prompt.values()); !done) return done;
  std::vector<cbq::QuantizedKvCache> sequences;
  sequences.push_back(*std::move(first));
  const cbq::SerialExecutor executor;
  cbq::ExecutionContext context(executor);
  if (const cbq::Status done = decode(sequences, random, context); !done) return done;
  report("prompt and a token", *pool, sequences);

  // Another continuation of the same prompt shares its pages until one of both writes to the last of them.
  auto second = sequences[0].fork();
  if (!second) return second.error();
  sequences.push_back(*std::move(second));
  report("forked", *pool, sequences);
  for (int i = 0; i < 3; ++i) {
    if (const cbq::Status done = decode(sequences, random, context); !done) return done;
  }
  report("decoded in one batch", *pool, sequences);

  // Five drafted tokens, of which the model accepts two. None of them was quantized yet.
  const std::size_t before = sequences[1].size();
  const Rows draft(5, random);
  if (const cbq::Status done = sequences[1].append(draft.keys(), draft.values()); !done) return done;
  sequences[1].truncate(before + 2);
  if (const cbq::Status done = decode(sequences, random, context); !done) return done;
  report("drafted, rolled back", *pool, sequences);

  // The first sequence goes to bytes, its pages back to the pool, and it comes back.
  const auto size = cbq::saved_sequence_size(sequences[0]);
  if (!size) return size.error();
  std::vector<std::byte> bytes(*size);
  if (const cbq::Status done = cbq::save_sequence(sequences[0], bytes); !done) return done;
  sequences[0].reset();
  report("saved and reset", *pool, sequences);
  if (const cbq::Status done = cbq::load_sequence(bytes, sequences[0]); !done) return done;
  report("loaded", *pool, sequences);
  if (const cbq::Status done = decode(sequences, random, context); !done) return done;

  sequences.clear();
  if (pool->free_pages() != pool->size()) return cbq::Error{cbq::Errc::bad_argument, "a page was lost"};
  return {};
}

}  // namespace

int main() {
  const cbq::Status done = run();
  if (done) return 0;
  std::fprintf(stderr, "%s: %s\n", done.error().where.c_str(), done.error().what);
  return 1;
}
