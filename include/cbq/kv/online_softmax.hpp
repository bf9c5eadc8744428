// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loop of attention, whatever keys and values are stored as: some rows of queries visit the positions of a source
// in blocks of 256, with a running maximum, so that no matrix of scores ever exists. A source says what the scores of a
// block are and adds weighted values; several sources may follow one another. Results of different positions merge:
// long contexts are cut into spans whose results are merged in order. Blocks begin at multiples of 256, so what a row
// gets from a source does not depend on the other rows of its tile. Cost beside the source's: one exp per row and
// position; 16 KiB of stack.
//
//   m = max(m1, m2)   l = l1 exp(c (m1 - m)) + l2 exp(c (m2 - m))   o likewise   result = o / l

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/gemm/float_panels.hpp>
#include <cbq/kv/softmax.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

inline constexpr std::size_t block_positions = 256;
inline constexpr std::size_t block_rows = 16;
inline constexpr std::size_t most_width = 256;

/// Positions [first, end); none where end <= first.
struct Positions {
  std::size_t first = 0;
  std::size_t end = 0;
};

/// Positions of `a` that are in `b`.
[[nodiscard]] constexpr Positions both(const Positions& a, const Positions& b) noexcept {
  return {a.first > b.first ? a.first : b.first, a.end < b.end ? a.end : b.end};
}

/// What every row of a tile sees of one source.
using RowPositions = Positions[block_rows];

/// From the first to the last position of `a` and `b`; first and end are 0 where there are none.
[[nodiscard]] constexpr Positions join(const Positions& a, const Positions& b) noexcept {
  if (b.end <= b.first) return a;
  if (a.end <= a.first) return b;
  return {a.first < b.first ? a.first : b.first, a.end > b.end ? a.end : b.end};
}

/// From the first to the last position that any row sees.
[[nodiscard]] inline Positions cover(const RowPositions& seen, std::size_t rows) noexcept {
  Positions all;
  for (std::size_t r = 0; r < rows; ++r) all = join(all, seen[r]);
  return all;
}

/// Biases of ALiBi: a row adds slope * (position - own position) to the score of a position.
struct RowBiases {
  const float* slopes = nullptr;  ///< [rows], over the scale of scores; null: no biases
  const float* own = nullptr;     ///< [rows], counted as the source at hand counts
};

/// Rows of queries and what they have gathered so far: maxima, sums and unnormalized values [rows x stride].
struct RowSums {
  std::size_t rows = 0;
  float scale = 1.0f;  ///< of scores; > 0
  float* maxima = nullptr;
  float* sums = nullptr;
  float* values = nullptr;
  std::size_t stride = 0;  ///< width of the values, padded to a multiple of 16
  RowBiases biases = {};
};

/// Nothing gathered yet.
inline void clear(const RowSums& sums) noexcept {
  for (std::size_t r = 0; r < sums.rows; ++r) {
    sums.maxima[r] = -__builtin_inff();
    sums.sums[r] = 0.0f;
  }
  __builtin_memset(sums.values, 0, sums.rows * sums.stride * sizeof(float));
}

/// Memory of RowSums on the stack.
struct RowSumsMemory {
  alignas(64) float values[block_rows * most_width];
  float maxima[block_rows];
  float sums[block_rows];
};

[[nodiscard]] inline RowSums row_sums(RowSumsMemory& memory, std::size_t rows, std::size_t stride,
                                      float scale) noexcept {
  return {rows, scale, memory.maxima, memory.sums, memory.values, stride};
}

/// Scores of positions first, first + 1, ... of some rows.
struct ScoredPositions {
  float* scores = nullptr;  ///< [rows x stride]
  std::size_t stride = 0;
  std::size_t first = 0;
  std::size_t count = 0;  ///< a multiple of 16
};

/// Adds the rows' biases, if they have any.
inline void add_biases(const RowBiases& biases, std::size_t rows, const ScoredPositions& positions) noexcept {
  using Floats = xsimd::batch<float>;
  if (biases.slopes == nullptr) return;
  float steps[Floats::size];
  for (std::size_t i = 0; i < Floats::size; ++i) steps[i] = static_cast<float>(i);
  const Floats lanes = Floats::load_unaligned(steps);
  for (std::size_t r = 0; r < rows; ++r) {
    float* scores = positions.scores + r * positions.stride;
    const Floats slope(biases.slopes[r]);
    for (std::size_t i = 0; i < positions.count; i += Floats::size) {
      const Floats distance = Floats(static_cast<float>(positions.first + i) - biases.own[r]) + lanes;
      (Floats::load_unaligned(scores + i) + slope * distance).store_unaligned(scores + i);
    }
  }
}

/// Adds what the rows see of a source. Source: `unit` positions that it computes together (16 or 64),
/// scores(Positions, float* [rows x 256]), add_values(Positions, const float* weights, const RowSums&); both get
/// positions that begin at a unit, and weights of 0 where a row sees nothing, up to the end of the last unit.
template <class Source>
void visit(const Source& source, const RowPositions& seen, const RowSums& sums, Isa isa) noexcept {
  const Positions all = cover(seen, sums.rows);
  if (all.end == 0) return;
  alignas(64) float scores[block_rows * block_positions];
  std::size_t first[block_rows];
  std::size_t valid[block_rows];
  for (std::size_t begin = all.first / block_positions * block_positions; begin < all.end; begin += block_positions) {
    Positions block = both({all.first / Source::unit * Source::unit, all.end}, {begin, begin + block_positions});
    source.scores(block, static_cast<float*>(scores));
    for (std::size_t r = 0; r < sums.rows; ++r) {
      const Positions own = both(seen[r], block);
      first[r] = own.end <= own.first ? 0 : own.first - block.first;
      valid[r] = own.end <= own.first ? 0 : own.end - block.first;
    }
    const std::size_t columns = divide_up(block.end - block.first, Source::unit) * Source::unit;
    add_biases(sums.biases, sums.rows, {scores, block_positions, block.first, columns});
    softmax_block({.scores = scores,
                   .stride = block_positions,
                   .rows = sums.rows,
                   .columns = columns,
                   .valid = valid,
                   .first = first,
                   .scale = sums.scale,
                   .maxima = sums.maxima,
                   .sums = sums.sums,
                   .values = sums.values,
                   .value_stride = sums.stride,
                   .value_columns = sums.stride},
                  isa);
    source.add_values(block, static_cast<const float*>(scores), sums);
  }
}

/// Adds what the same rows gathered from other positions.
inline void merge(const RowSums& into, const RowSums& from) noexcept {
  using Floats = xsimd::batch<float>;
  for (std::size_t r = 0; r < into.rows; ++r) {
    if (from.sums[r] == 0.0f) continue;  // saw nothing
    const float old = into.maxima[r];
    const float best = old > from.maxima[r] ? old : from.maxima[r];
    const float keep = into.sums[r] == 0.0f ? 0.0f : __builtin_expf((old - best) * into.scale);
    const float take = __builtin_expf((from.maxima[r] - best) * into.scale);
    into.maxima[r] = best;
    into.sums[r] = into.sums[r] * keep + from.sums[r] * take;
    float* values = into.values + r * into.stride;
    const float* added = from.values + r * from.stride;
    const Floats keeps(keep), takes(take);
    for (std::size_t i = 0; i < into.stride; i += Floats::size) {
      const Floats sum = Floats::load_unaligned(values + i) * keeps + Floats::load_unaligned(added + i) * takes;
      sum.store_unaligned(values + i);
    }
  }
}

/// out [width] = what row r gathered, over its sum. A row that saw nothing becomes NaN.
inline void normalize(const RowSums& sums, std::size_t r, float* out, std::size_t width) noexcept {
  using Floats = xsimd::batch<float>;
  const float inverse = 1.0f / sums.sums[r];
  const float* values = sums.values + r * sums.stride;
  std::size_t i = 0;
  for (; width - i >= Floats::size; i += Floats::size) {
    (Floats::load_unaligned(values + i) * Floats(inverse)).store_unaligned(out + i);
  }
  for (; i < width; ++i) out[i] = values[i] * inverse;
}

/// to[r * step] = softmax weight of the source's position 0 for row r, once all that the row sees was gathered.
template <class Source>
void write_first_weights(const Source& source, const RowSums& sums, float* to, std::size_t step) noexcept {
  alignas(64) float scores[block_rows * block_positions];
  source.scores({0, 1}, static_cast<float*>(scores));
  add_biases(sums.biases, sums.rows, {scores, block_positions, 0, Source::unit});
  for (std::size_t r = 0; r < sums.rows; ++r) {
    const float difference = scores[r * block_positions] - sums.maxima[r];
    to[r * step] = __builtin_expf(difference * sums.scale) / sums.sums[r];
  }
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
