// SPDX-License-Identifier: Apache-2.0
#pragma once

// TransformerBlock: what CausalModel needs of one layer of a model. A block works in place on the hidden states of some
// tokens, appends their keys and values to its cache, and gets from the model what all layers share: the positions'
// embedding.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/nn/norm.hpp>

namespace cbq {

/// The sizes that every decoder-only model has.
struct ModelShape {
  std::size_t vocabulary = 0;
  std::size_t hidden = 0;
  std::size_t layers = 0;
  std::size_t max_positions = 0;
};

/// Hidden states before and after half a block [tokens x hidden], in different memory.
struct HiddenStates {
  MatrixView<const float> from = {};
  MatrixView<float> to = {};
  TokenBits bits = {};  ///< of what the second half reads; the first has AttentionTokens
};

inline namespace CBQ_ABI {

/// How a model knows positions: `create` from the configuration happens outside; `add_to` adds learned positions to
/// embeddings, or does nothing where attention rotates. Where tokens that stay when others are dropped can have
/// positions of one kind only, a static member `pruned_positions` says which.
template <class P>
concept PositionEmbedding = std::movable<P> && requires(const P& positions, const MatrixView<float>& hidden,
                                                        std::span<const std::uint32_t> indices) {
  { positions.max_positions() } -> std::same_as<std::size_t>;
  { positions.add_to(hidden, indices) } -> std::same_as<Status>;
};

/// hidden [tokens x hidden] = block(hidden), in place.
template <class B>
concept TransformerBlock = std::movable<B> && LinearOperator<typename B::Linear> && Norm<typename B::FinalNorm> &&
                           PositionEmbedding<typename B::Positions> &&
                           requires(const B& block, const typename B::Config& config, const MatrixView<float>& hidden,
                                    const typename B::Positions& embedding, std::span<const std::uint32_t> positions,
                                    FloatKvCache& cache, ExecutionContext<>& context) {
                             { model_shape(config) } -> std::same_as<ModelShape>;
                             { block.make_cache(positions.size()) } -> std::same_as<Result<FloatKvCache>>;
                             { block.forward(hidden, embedding, positions, cache, context) } -> std::same_as<Status>;
                           };

}  // namespace CBQ_ABI
}  // namespace cbq
