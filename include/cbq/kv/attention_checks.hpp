// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whether shapes fit and a cache has all that queries see, before anything is computed: what follows checks nothing.

#include <cstddef>

#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/kv/attention.hpp>
#include <cbq/kv/attention_spans.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

[[nodiscard]] inline Error misfit(const Sequence& sequence, const char* what) noexcept {
  return Error{Errc::bad_shape, what, "q, out, positions",
               ErrorText(sequence.q.rows) << " x " << sequence.q.columns << ", " << sequence.out.rows << " x "
                                          << sequence.out.columns << ", " << sequence.cache.size,
               ErrorText(sequence.heads) << " heads of " << sequence.width};
}

/// Whether `floats` has `positions` positions of the sequence's heads.
[[nodiscard]] inline bool holds(const FloatKvView& floats, const Sequence& sequence, std::size_t positions) noexcept {
  return positions == 0 || (floats.keys != nullptr && floats.values != nullptr && floats.heads == sequence.heads &&
                            floats.width == sequence.width && floats.size >= positions);
}

/// Whether the cache has `positions` exact positions behind the packed ones.
[[nodiscard]] inline bool holds_exact(const Sequence& sequence, std::size_t positions) noexcept {
  const KvRow& newest = sequence.cache.newest;
  if (newest.key == nullptr) return holds(sequence.cache.exact, sequence, positions);
  return positions <= 1 && newest.value != nullptr && newest.columns == sequence.heads * sequence.width;
}

[[nodiscard]] inline Status check_shapes(const Sequence& sequence) noexcept {
  const std::size_t columns = sequence.q.columns;
  if (sequence.width == 0 || columns % sequence.width != 0) return misfit(sequence, "attention needs whole heads");
  const AttentionShape shape{columns / sequence.width, sequence.heads, sequence.width};
  if (const Status valid = check_attention(shape); !valid) return valid;
  if (sequence.out.rows != sequence.q.rows || sequence.out.columns != columns ||
      sequence.q.rows > sequence.cache.size) {
    return misfit(sequence, "attention needs a result of the shape of the queries, and cached keys");
  }
  if (sequence.q.rows > 1 && (sequence.q.stride < columns || sequence.out.stride < columns)) {
    return Error{Errc::bad_shape, "rows of queries and of results must not overlap", "q, out",
                 ErrorText("strides ") << sequence.q.stride << ", " << sequence.out.stride, columns};
  }
  AttentionScores scores(sequence.scale);
  scores.slopes = sequence.slopes;
  return check_scores(scores, sequence.q.rows, shape.heads);
}

/// Whether every query sees its own position. After a rollback into what the window had given back, it would see
/// nothing, or sinks alone, and the result would be NaN, or wrong.
[[nodiscard]] inline Status check_own_positions(const Sequence& sequence) noexcept {
  const QuantizedKvView& cache = sequence.cache;
  if (sequence.time == Time::decoding) return {};
  const std::size_t own = larger(position_of(sequence, 0), cache.sinks.size);
  if (own >= cache.size || own >= cache.first) return {};
  return Error{Errc::bad_argument, "the position of a query was given back with its window", "position", own,
               ErrorText("at least ") << cache.first};
}

/// Whether the cache has what queries see, of which `all` is the extent.
[[nodiscard]] inline Status check_sources(const Sequence& sequence, const Sight& all) noexcept {
  const QuantizedKvView& cache = sequence.cache;
  if (const Status own = check_own_positions(sequence); !own) return own;
  const FloatKvView& sinks = sequence.time == Time::decoding ? cache.exact : cache.sinks;
  if (!holds_exact(sequence, all.exact.end) || !holds(sinks, sequence, all.sinks.end)) {
    return misfit(sequence, "the cache lacks exact positions that queries see");
  }
  if (sequence.past.size != 0) {
    if (holds(sequence.past, sequence, all.past.end)) return {};
    return misfit(sequence, "the cache lacks past positions that queries see");
  }
  if (all.past.end > cache.packed || (all.past.end != 0 && cache.pages == nullptr)) {
    return misfit(sequence, "the cache lacks past positions that queries see");
  }
  for (std::size_t p = all.past.first / kv_page_positions; p < divide_up(all.past.end, kv_page_positions); ++p) {
    if (cache.pages[p] == nullptr) {
      return Error{Errc::bad_argument, "the cache lacks a page that queries see", "page", p};
    }
  }
  return {};
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
