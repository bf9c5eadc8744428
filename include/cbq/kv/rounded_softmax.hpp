// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loop of attention for weights that are rounded to fixed grids: what a weight is rounded to depends on the sum of
// its whole row, so scores are computed twice, once for maximum and sum, once for weights. Otherwise as visit() of
// <cbq/kv/online_softmax.hpp>, with its sources: no matrix of scores exists. Up to 256 positions scores are computed
// once. Cost beside visit(): the scores and exp of a second pass, 3 operations per weight.
//
//   o = sum_j w_j v_j over 2^15, or over sum_j w_j;  w_j = 2^15 exp(c (s_j - m)) / l, rounded
//   (<cbq/kv/rounded_weights.hpp>)

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/kv/online_softmax.hpp>
#include <cbq/kv/rounded_weights.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

/// Rows of queries that see the first positions of a source.
struct RoundedRows {
  const std::size_t* visible = nullptr;  ///< [row] positions
  const float* scales = nullptr;         ///< [row] c > 0, in place of that of RowSums, whose biases are over these
  SoftmaxWeights kind = SoftmaxWeights::exact;
  float* first_weights = nullptr;  ///< of row 0: what the value of position 0 counts for; null: not wanted
  std::size_t first_step = 0;
};

/// Positions that row r sees of a block.
[[nodiscard]] constexpr std::size_t visible_in(const RoundedRows& rows, std::size_t r,
                                               const Positions& block) noexcept {
  const std::size_t visible = rows.visible[r];
  return visible <= block.first ? 0 : (visible < block.end ? visible : block.end) - block.first;
}

/// Replaces the scores of a block, before biases, by weights relative to the running maxima, and adds them to `totals`.
inline void weigh_block(const RoundedRows& rows, const RowSums& sums, const Positions& block, std::size_t columns,
                        float* scores, float* totals, Isa isa) noexcept {
  add_biases(sums.biases, sums.rows, {scores, block_positions, block.first, columns});
  for (std::size_t r = 0; r < sums.rows; ++r) {
    const std::size_t valid = visible_in(rows, r, block);
    softmax_block({.scores = scores + r * block_positions,
                   .stride = block_positions,
                   .rows = 1,
                   .columns = columns,
                   .valid = &valid,
                   .scale = rows.scales[r],
                   .maxima = sums.maxima + r,
                   .sums = totals + r},
                  isa);
  }
}

/// Sum of rounded weights, exact in any order.
[[nodiscard]] inline float sum_row(const float* weights, std::size_t columns) noexcept {
  using Floats = xsimd::batch<float>;
  Floats sum(0.0f);
  for (std::size_t i = 0; i < columns; i += Floats::size) sum += Floats::load_unaligned(weights + i);
  return xsimd::reduce_add(sum);
}

/// sums.values = sum of rounded weights times values; sums.sums what they are to be divided by, NaN where a score is.
/// Source as of visit(). Every row sees a position.
template <class Source>
void visit_rounded(const Source& source, const RoundedRows& rows, const RowSums& sums, Isa isa) noexcept {
  std::size_t all = 0;
  for (std::size_t r = 0; r < sums.rows; ++r) all = rows.visible[r] > all ? rows.visible[r] : all;
  alignas(64) float scores[block_rows * block_positions];
  float ignored[block_rows] = {};
  float firsts[block_rows] = {};
  float rounded[block_rows] = {};
  clear(sums);
  const auto block_at = [&](std::size_t begin) { return both({begin, begin + block_positions}, {0, all}); };
  const auto columns_of = [](const Positions& block) {
    return divide_up(block.end - block.first, Source::unit) * Source::unit;
  };
  for (std::size_t begin = 0; begin < all; begin += block_positions) {
    const Positions block = block_at(begin);
    source.scores(block, static_cast<float*>(scores));
    weigh_block(rows, sums, block, columns_of(block), scores, sums.sums, isa);
  }
  for (std::size_t begin = 0; begin < all; begin += block_positions) {
    const Positions block = block_at(begin);
    if (all > block_positions) {
      source.scores(block, static_cast<float*>(scores));
      weigh_block(rows, sums, block, columns_of(block), scores, ignored, isa);
    }
    for (std::size_t r = 0; r < sums.rows; ++r) {
      float* weights = scores + r * block_positions;
      round_weights({weights, columns_of(block), sums.sums[r], rows.kind}, isa);
      if (begin == 0) firsts[r] = *weights;
      if (rows.kind == SoftmaxWeights::log2_normalized) rounded[r] += sum_row(weights, columns_of(block));
    }
    source.add_values(block, static_cast<const float*>(scores), sums);
  }
  for (std::size_t r = 0; r < sums.rows; ++r) {
    // A row whose weights all round to 0 gives 0.
    const float whole = rows.kind == SoftmaxWeights::log2_normalized && rounded[r] > 0.0f ? rounded[r] : whole_weight;
    sums.sums[r] = is_finite(sums.sums[r]) ? whole : __builtin_nanf("");
    if (rows.first_weights != nullptr) rows.first_weights[r * rows.first_step] = firsts[r] / sums.sums[r];
  }
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
