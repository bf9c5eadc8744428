// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values of one sequence in all layers of a model. After token pruning layers hold different tokens: a token
// that layer i drops is in the caches of layers 0 to i, since its attention saw it, and in no other. So one number per
// token, how many layers hold it, says which tokens a layer has, in their order; it is kept once a prompt was pruned.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/prune/token_pruning.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class LayerCache = FloatKvCache>
class ModelCache {
 public:
  ModelCache() = default;
  explicit ModelCache(std::vector<LayerCache> layers) noexcept : layers_(std::move(layers)) {}

  /// Positions in use: tokens so far, dropped ones included, which the first layer has all.
  [[nodiscard]] std::size_t size() const noexcept { return layers_.empty() ? 0 : layers_.front().size(); }
  [[nodiscard]] std::size_t capacity() const noexcept { return layers_.empty() ? 0 : layers_.front().capacity(); }
  [[nodiscard]] std::size_t layers() const noexcept { return layers_.size(); }
  [[nodiscard]] LayerCache& layer(std::size_t index) noexcept { return layers_[index]; }
  /// Forgets all tokens from position `size` on.
  void truncate(std::size_t size) noexcept {
    for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].truncate(depths_.size() == 0 ? size : held(i, size));
    for (std::size_t p = size; p < depths_.size(); ++p) depths_[p] = static_cast<std::uint32_t>(layers_.size());
    if (size == 0) positions_ = PrunedPositions::original;
  }
  void reset() noexcept { truncate(0); }

  /// Makes ready for dropped tokens; `positions` holds until reset(). Errc::bad_argument where other positions hold,
  /// Errc::out_of_memory.
  [[nodiscard]] Status prepare_pruning(PrunedPositions positions) noexcept {
    if (size() != 0 && positions != positions_) {
      return Error{Errc::bad_argument, "tokens of a sequence have original positions, or all have compacted ones",
                   "positions"};
    }
    if (depths_.size() == 0) {
      Result<AlignedBuffer<std::uint32_t>> depths = AlignedBuffer<std::uint32_t>::allocate(capacity());
      if (!depths) return depths.error();
      depths_ = *std::move(depths);
      for (std::uint32_t& depth : depths_) depth = static_cast<std::uint32_t>(layers_.size());
    }
    positions_ = positions;
    return {};
  }
  /// Layers behind `layer` do without the token at a position.
  void drop(std::size_t layer, std::size_t position) noexcept {
    depths_[position] = static_cast<std::uint32_t>(layer + 1);
  }
  /// Whether a layer has the token at a position < size(). The tokens that it has lie in its cache in their order.
  [[nodiscard]] bool holds(std::size_t layer, std::size_t position) const noexcept {
    return depths_.size() == 0 || depths_[position] > layer;
  }
  [[nodiscard]] PrunedPositions positions() const noexcept { return positions_; }

 private:
  // How many of the first `size` tokens a layer has.
  [[nodiscard]] std::size_t held(std::size_t layer, std::size_t size) const noexcept {
    std::size_t count = 0;
    for (std::size_t p = 0; p < size && p < depths_.size(); ++p) count += depths_[p] > layer ? 1u : 0u;
    return count;
  }

  std::vector<LayerCache> layers_;
  AlignedBuffer<std::uint32_t> depths_;  // layers that hold a token, by position; empty: all
  PrunedPositions positions_ = PrunedPositions::original;
};

}  // namespace CBQ_ABI
}  // namespace cbq
