// SPDX-License-Identifier: Apache-2.0
#pragma once

// BLOOM: layers as OPT's with GELU (tanh) and 4 * hidden intermediate elements, embeddings that pass a layer norm
// (CausalModelParts::embedding_norm), and ALiBi in place of positions: the score of a key loses slope_h per position
// between it and the query. Checkpoints fuse the projections of queries, keys and values, head by head; hosts take them
// apart by fused_projection_row().
//
//   slope_h = 2^(-8 (h + 1) / p) for h < p, the largest power of two up to the number of heads,
//             2^(-4 (2 (h - p) + 1) / p) beyond
//
// Scao et al., BLOOM, 2022; Press, Smith and Lewis, Train Short, Test Long (ALiBi), 2022.

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/nn/opt_block.hpp>

namespace cbq {

/// What a row of a fused projection makes.
enum class FusedPart : unsigned char { query, key, value };

/// The row of BLOOM's fused projection [heads x 3 x width] that is row `row` of its `part` [heads x width].
[[nodiscard]] constexpr std::size_t fused_projection_row(FusedPart part, std::size_t row, std::size_t width) noexcept {
  return (row / width * 3 + static_cast<std::size_t>(part)) * width + row % width;
}

inline namespace CBQ_ABI {

/// The slope of head `head` of `heads`; head < heads.
[[nodiscard]] inline float alibi_slope(std::size_t head, std::size_t heads) noexcept {
  const std::size_t power = std::bit_floor(heads);
  const double steps = static_cast<double>(head < power ? 2 * (head + 1) : 2 * (head - power) + 1);
  return static_cast<float>(std::exp2(-4.0 * steps / static_cast<double>(power)));
}

/// BLOOM's configuration; `intermediate` is 4 * hidden and `activation` gelu_tanh. The longest sequence is what the
/// host allows.
using BloomConfig = OptConfig;

/// Positions of a model that has none but ALiBi's distances.
class AlibiPositions {
 public:
  /// Distances are counted in what the cache holds.
  static constexpr PrunedPositions pruned_positions = PrunedPositions::compacted;

  /// Errc::bad_shape (no heads), Errc::out_of_memory.
  [[nodiscard]] static Result<AlibiPositions> create(const BloomConfig& config) noexcept {
    if (config.heads == 0) return Error{Errc::bad_shape, "attention has at least one head", "heads", config.heads};
    Result<AlignedBuffer<float>> slopes = AlignedBuffer<float>::allocate(config.heads);
    if (!slopes) return slopes.error();
    AlibiPositions positions;
    positions.slopes_ = *std::move(slopes);
    positions.max_positions_ = config.shape.max_positions;
    for (std::size_t h = 0; h < config.heads; ++h) positions.slopes_.data()[h] = alibi_slope(h, config.heads);
    return positions;
  }

  [[nodiscard]] std::size_t max_positions() const noexcept { return max_positions_; }
  [[nodiscard]] Status add_to(const MatrixView<float>&, std::span<const std::uint32_t>) const noexcept { return {}; }
  /// One per head.
  [[nodiscard]] std::span<const float> slopes() const noexcept { return {slopes_.data(), slopes_.size()}; }

 private:
  AlignedBuffer<float> slopes_;
  std::size_t max_positions_ = 0;
};

template <LinearOperator L>
using BloomBlockParts = OptBlockParts<L>;

template <LinearOperator L>
using BloomBlock = OptBlock<L, AlibiPositions>;

}  // namespace CBQ_ABI
}  // namespace cbq
