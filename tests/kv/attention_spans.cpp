// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/attention_spans.hpp>

#include <catch2/catch_test_macros.hpp>
#include <vector>

using namespace cbq;
using attention::Positions;
using attention::Sequence;
using attention::Sight;

namespace {

Sequence sequence_of(const QuantizedKvView& cache, std::size_t tokens, std::size_t group) {
  Sequence sequence{.cache = cache};
  sequence.q.rows = tokens;
  sequence.heads = 2;
  sequence.width = 8;
  sequence.q.columns = sequence.heads * group * sequence.width;
  return sequence;
}

bool in(const Positions& range, std::size_t p) {
  return p >= range.first && p < range.end;
}

}  // namespace

TEST_CASE("Every visible position is seen once, in the source that holds it, by the tile and span it belongs to") {
  QuantizedKvView caches[] = {{.packed = 1, .size = 1},
                              {.packed = 0, .size = 40},
                              {.packed = 1500, .size = 1500},
                              {.packed = 1536, .size = 1537},
                              {.packed = 600, .window = 100, .size = 700},
                              {.packed = 1200, .first = 520, .window = 600, .size = 1203},
                              {.packed = 100, .size = 1300}};
  for (QuantizedKvView& cache : caches) {
    for (const std::size_t sinks : {0u, 3u}) {
      for (const std::size_t tokens : {1u, 3u, 40u}) {
        if (tokens > cache.size || sinks > cache.packed) continue;
        cache.sinks.size = sinks;
        Sequence sequence = sequence_of(cache, tokens, 3);
        plan(sequence, extent(sequence));
        CAPTURE(cache.packed, cache.size, cache.window, sinks, tokens, sequence.spans, sequence.past_spans);
        CHECK(sequence.tiles == (tokens * 3 + 15) / 16);
        for (std::size_t t = 0; t < tokens; ++t) {
          const std::size_t own = cache.size - tokens + t;
          const attention::Tile tile = attention::tile_of(sequence, (t * 3 + 1) / 16);
          const std::size_t r = (t * 3 + 1) % 16;
          REQUIRE(r < tile.rows);
          for (std::size_t p = 0; p < cache.size; ++p) {
            const bool visible =
                p <= own && (p < sinks || (p >= cache.first && (cache.window == 0 || p + cache.window > own)));
            const bool past = p >= sinks && p < cache.packed;
            REQUIRE(in(tile.sinks[r], p) == (visible && p < sinks));
            REQUIRE(in(tile.past[r], p) == (visible && past));
            REQUIRE((p >= cache.packed && in(tile.exact[r], p - cache.packed)) == (visible && p >= cache.packed));
            if (!visible) continue;
            if (past) {
              REQUIRE(p >= sequence.past_begin);
              REQUIRE((p - sequence.past_begin) / attention::span_positions < sequence.past_spans);
            } else if (p >= cache.packed) {
              const std::size_t joint = sequence.past_spans == 0 ? 0 : sequence.past_spans - 1;
              REQUIRE(joint + (p - cache.packed) / attention::span_positions < sequence.spans);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("While decoding is simulated, queries see what the policy had quantized by then") {
  const KvPolicy policy{.recent = 20, .sinks = 2, .window = 150};
  for (const bool past_only : {false, true}) {
    Sequence sequence = sequence_of({.packed = 300, .size = 300}, 300, 1);
    sequence.time = attention::Time::decoding;
    sequence.scheme = {.bits = 4, .past_only = past_only};
    sequence.policy = policy;
    for (std::size_t own = 0; own < 300; ++own) {
      const std::size_t eligible = past_only ? own : own + 1;
      const Sight sight = see(sequence, own);
      for (std::size_t p = 0; p < 300; ++p) {
        const bool visible = p <= own && (p < 2 || p + 150 > own);
        const bool quantized = p >= 2 && (p / 64 + 1) * 64 + 20 <= eligible;
        REQUIRE(in(sight.past, p) == (visible && quantized));
        REQUIRE((in(sight.exact, p) || in(sight.sinks, p)) == (visible && !quantized));
        REQUIRE_FALSE((in(sight.exact, p) && in(sight.sinks, p)));
      }
    }
  }
}
