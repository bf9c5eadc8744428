// SPDX-License-Identifier: Apache-2.0
#pragma once

// What attention over a quantized cache computes, as numbers: which positions of which source a query sees, and how a
// long context is cut. Sources in their order: sinks (exact), past (pages of codes, or floats that stand for them),
// exact rows. A span is 512 positions of the past, or of the exact rows; the last of the past takes the first exact
// ones with it. Every span is gathered by itself and they are merged in their order, whoever computes them: the result
// depends neither on the number of threads nor on other sequences. Nor, where pages are all that queries see, on how
// many tokens come at once; sinks and exact rows are multiplied by tiles whose order of sums depends on the number of
// rows, and sinks join the first span that any query of the call sees: there it changes the rounding.

#include <cstddef>
#include <span>

#include <cbq/core/view.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/kv_policy.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/online_softmax.hpp>
#include <cbq/kv/quantized_kv_view.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

inline constexpr std::size_t span_positions = 512;
static_assert(span_positions % block_positions == 0);

/// Whether a row sees what is stored as it is, or what decoding it alone would have found.
enum class Time : unsigned char { present, decoding };

/// Queries of one sequence, what they read and where the result goes.
struct Sequence {
  MatrixView<const float> q = {};
  MatrixView<float> out = {};
  float scale = 1.0f;
  QuantizedKvView cache = {};  ///< with Time::decoding all is past, and `exact` has all positions
  FloatKvView past = {};       ///< in place of the pages where it has positions
  Time time = Time::present;
  KvScheme scheme = {};  ///< these two only with Time::decoding
  KvPolicy policy = {};
  std::span<const float> slopes = {};  ///< of ALiBi, one per query head; empty: none
  // Derived by plan().
  KvKernels kernels = {};
  std::size_t heads = 0;  ///< of keys and values
  std::size_t width = 0;
  std::size_t group = 0;       ///< query heads per head
  std::size_t tiles = 0;       ///< of 16 rows, per head
  std::size_t past_begin = 0;  ///< first position of the first span
  std::size_t past_spans = 0;
  std::size_t spans = 0;
};

/// What a query sees of each source; exact rows counted from the first one stored.
struct Sight {
  Positions sinks = {};
  Positions past = {};
  Positions exact = {};
};

[[nodiscard]] constexpr std::size_t larger(std::size_t a, std::size_t b) noexcept {
  return a > b ? a : b;
}
[[nodiscard]] constexpr std::size_t smaller(std::size_t a, std::size_t b) noexcept {
  return a < b ? a : b;
}

/// What the query at `position` sees.
[[nodiscard]] constexpr Sight see(const Sequence& sequence, std::size_t position) noexcept {
  const QuantizedKvView& cache = sequence.cache;
  const std::size_t end = position + 1;
  if (sequence.time == Time::decoding) {
    const std::size_t packed =
        quantized_positions(sequence.scheme, sequence.policy, sequence.scheme.past_only ? position : end);
    const std::size_t sinks = smaller(sequence.policy.sinks, end);
    const std::size_t first = larger(first_visible(sequence.policy, position), sinks);
    return {{0, sinks}, {first, packed}, {larger(first, packed), end}};
  }
  const std::size_t window = first_visible({.window = cache.window}, position);
  const std::size_t first = larger(larger(cache.first, window), cache.sinks.size);
  Sight sight{{0, smaller(cache.sinks.size, end)}, {first, smaller(cache.packed, end)}, {}};
  if (end > cache.packed) sight.exact = {larger(first, cache.packed) - cache.packed, end - cache.packed};
  return sight;
}

/// Position of token `t` of the queries.
[[nodiscard]] constexpr std::size_t position_of(const Sequence& sequence, std::size_t t) noexcept {
  return sequence.cache.size - sequence.q.rows + t;
}

/// From the first to the last position of each source that any query sees.
[[nodiscard]] constexpr Sight extent(const Sequence& sequence) noexcept {
  Sight all;
  for (std::size_t t = 0; t < sequence.q.rows; ++t) {
    const Sight sight = see(sequence, position_of(sequence, t));
    all = {join(all.sinks, sight.sinks), join(all.past, sight.past), join(all.exact, sight.exact)};
  }
  return all;
}

/// Fills what derives from shapes; `all` is the extent.
constexpr void plan(Sequence& sequence, const Sight& all) noexcept {
  sequence.group = sequence.q.columns / (sequence.heads * sequence.width);
  sequence.tiles = divide_up(sequence.q.rows * sequence.group, block_rows);
  sequence.past_begin = all.past.first / span_positions * span_positions;
  sequence.past_spans = all.past.end == 0 ? 0 : divide_up(all.past.end - sequence.past_begin, span_positions);
  sequence.spans = larger(1, sequence.past_spans) + larger(1, divide_up(all.exact.end, span_positions)) - 1;
}

/// Rows of one tile and what they see, the same for every head. Row r is query head r % group of token r / group,
/// counted from first_row on.
struct Tile {
  std::size_t first_row = 0;
  std::size_t rows = 0;
  RowPositions sinks, past, exact;
};

[[nodiscard]] inline Tile tile_of(const Sequence& sequence, std::size_t index) noexcept {
  Tile tile;
  tile.first_row = index * block_rows;
  tile.rows = smaller(block_rows, sequence.q.rows * sequence.group - tile.first_row);
  for (std::size_t r = 0; r < tile.rows; ++r) {
    const Sight sight = see(sequence, position_of(sequence, (tile.first_row + r) / sequence.group));
    tile.sinks[r] = sight.sinks;
    tile.past[r] = sight.past;
    tile.exact[r] = sight.exact;
  }
  return tile;
}

/// Part of `seen` that lies in `span`.
inline void clip(const RowPositions& seen, std::size_t rows, const Positions& span, RowPositions& part) noexcept {
  for (std::size_t r = 0; r < rows; ++r) part[r] = both(seen[r], span);
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
