// SPDX-License-Identifier: Apache-2.0
#pragma once

// CausalModel<Block>: a decoder-only language model made of any block. forward_hidden() runs tokens through all layers
// and the final norm; logits() multiplies rows of that with the head, as many at once as the caller has memory for. The
// cache belongs to the caller, one per sequence. The same object computes prompts, single tokens and evaluation
// windows. forward_pruned() drops tokens of a prompt on the way, as a policy of the host's says; what follows the
// prompt is computed by forward_hidden() as ever.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <cbq/nn/block.hpp>
#include <cbq/nn/embedding.hpp>
#include <cbq/nn/model_cache.hpp>
#include <cbq/nn/pruned_layer.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// What a model is made of. `embedding` is absent where it is tied to the head.
template <TransformerBlock Block>
struct CausalModelParts {
  std::optional<typename Block::Linear> embedding;
  typename Block::Positions positions;
  std::vector<Block> blocks;
  typename Block::FinalNorm final_norm;
  typename Block::Linear head;
  std::optional<typename Block::FinalNorm> embedding_norm = std::nullopt;  ///< of embeddings, for BLOOM
};

/// Ignores hidden states.
struct NoObserver {
  void operator()(std::size_t, const MatrixView<const float>&) const noexcept {}
};

/// Where a pass with a pruning policy writes.
struct PrunedOutput {
  MatrixView<float> hidden = {};            ///< [tokens x hidden]; the first rows are those of the tokens that stay
  std::span<std::uint32_t> survivors = {};  ///< [tokens]; the first elements are their indices, ascending
};

template <TransformerBlock Block>
class CausalModel {
 public:
  using Linear = typename Block::Linear;
  using Config = typename Block::Config;

  /// Errc::bad_shape where the parts do not fit the configuration.
  [[nodiscard]] static Result<CausalModel> create(const Config& config, CausalModelParts<Block> parts) noexcept {
    const ModelShape shape = model_shape(config);
    if (parts.blocks.size() != shape.layers || parts.final_norm.width() != shape.hidden ||
        (parts.embedding_norm.has_value() && parts.embedding_norm->width() != shape.hidden) ||
        parts.positions.max_positions() < shape.max_positions) {
      return Error{Errc::bad_shape, "layers, final norm or positions do not fit the configuration", "model",
                   ErrorText(parts.blocks.size())
                       << ", " << parts.final_norm.width() << ", " << parts.positions.max_positions(),
                   ErrorText(shape.layers) << ", " << shape.hidden << ", " << shape.max_positions};
    }
    if (const Status ok = linear::check_linear(parts.head, "head", shape.vocabulary, shape.hidden); !ok)
      return ok.error();
    if (parts.embedding.has_value()) {
      const Status ok = linear::check_linear(*parts.embedding, "embedding", shape.vocabulary, shape.hidden);
      if (!ok) return ok.error();
    }
    return CausalModel(config, std::move(parts));
  }

  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] ModelShape shape() const noexcept { return model_shape(config_); }
  [[nodiscard]] const std::vector<Block>& blocks() const noexcept { return parts_.blocks; }
  [[nodiscard]] const Linear& head() const noexcept { return parts_.head; }
  /// The operator whose rows are the embedding: the head where they are tied.
  [[nodiscard]] const Linear& embedding() const noexcept {
    return parts_.embedding.has_value() ? *parts_.embedding : parts_.head;
  }
  [[nodiscard]] bool tied() const noexcept { return !parts_.embedding.has_value(); }

  /// An empty cache for `capacity` positions. Errc::out_of_memory, Errc::bad_shape.
  [[nodiscard]] Result<ModelCache<>> make_cache(std::size_t capacity) const {
    std::vector<FloatKvCache> layers;
    layers.reserve(parts_.blocks.size());
    for (const Block& block : parts_.blocks) {
      Result<FloatKvCache> cache = block.make_cache(capacity);
      if (!cache) return cache.error();
      layers.push_back(*std::move(cache));
    }
    return ModelCache<>(std::move(layers));
  }

  /// hidden [tokens x hidden] = final norm of the hidden states of `tokens`, which follow the positions in the cache
  /// and are appended to it. `observer(layer, hidden)` sees the embeddings (0) and the result of each block (1..). On
  /// an error the cache is as before, but for dynamic scales of an Int8KvCache, which may have widened (see its
  /// truncate()). Errors: bad_shape (cache full, shapes), bad_argument (token or position out of range), not_finite
  /// (where activations are quantized), out_of_memory.
  template <class LayerCache, Executor E, class Observer = NoObserver>
  [[nodiscard]] Status forward_hidden(std::span<const std::uint32_t> tokens, ModelCache<LayerCache>& cache,
                                      const MatrixView<float>& hidden, ExecutionContext<E>& context,
                                      const Observer& observer = {}) const noexcept {
    const std::size_t past = cache.size();
    if (const Status fits = check_room(tokens.size(), cache); !fits) return fits;
    const Status done = run(tokens, cache, hidden, context, observer);
    if (!done) cache.truncate(past);
    return done;
  }

  /// The same for the tokens that stay where `policy` drops some; returns their number. Layers behind a drop have no
  /// cache entries of dropped tokens. Errors as forward_hidden(), of the policy, and Errc::unsupported for caches whose
  /// attention does not show weights, and for positions that the model cannot have (PositionEmbedding);
  /// Errc::bad_argument where the cache holds other positions than the policy's.
  template <class LayerCache, Executor E, TokenPruning P>
    requires PrunableBlock<Block>
  [[nodiscard]] Result<std::size_t> forward_pruned(std::span<const std::uint32_t> tokens, ModelCache<LayerCache>& cache,
                                                   const PrunedOutput& out, const P& policy,
                                                   ExecutionContext<E>& context) const noexcept {
    const std::size_t past = cache.size();
    if (const Status fits = check_room(tokens.size(), cache); !fits) return fits.error();
    if (out.survivors.size() < tokens.size()) {
      return Error{Errc::bad_shape, "tokens need room for their index each", "survivors", out.survivors.size(),
                   tokens.size()};
    }
    if (const Status able = check_positions(policy.positions()); !able) return able.error();
    if (const Status ready = cache.prepare_pruning(policy.positions()); !ready) return ready.error();
    LiveTokens live{out.hidden, out.survivors.first(tokens.size()), past};
    const Status done = run_pruned(tokens, live, cache, policy, context);
    if (done) return live.indices.size();
    cache.truncate(past);
    return done.error();
  }

  /// logits [rows x vocabulary] = head of `hidden` [rows x hidden]. Errors of the head.
  template <Executor E>
  [[nodiscard]] Status logits(const MatrixView<const float>& hidden, const MatrixView<float>& logits,
                              ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    LinearInput input(hidden);
    return parts_.head.forward(input, {logits}, context);
  }

 private:
  CausalModel(const Config& config, CausalModelParts<Block> parts) noexcept
      : config_(config), parts_(std::move(parts)) {}

  template <class LayerCache>
  [[nodiscard]] Status check_room(std::size_t tokens, const ModelCache<LayerCache>& cache) const noexcept {
    const std::size_t past = cache.size();
    const std::size_t most = shape().max_positions;
    if (cache.layers() != parts_.blocks.size()) {
      return Error{Errc::bad_shape, "the cache has another number of layers than the model", "cache", cache.layers(),
                   parts_.blocks.size()};
    }
    if (tokens > most - (past < most ? past : most)) {
      return Error{Errc::bad_argument, "the tokens do not fit the model's context", "positions",
                   ErrorText(past) << " + " << tokens, most};
    }
    return {};
  }

  [[nodiscard]] static Status check_positions([[maybe_unused]] PrunedPositions positions) noexcept {
    if constexpr (requires { Block::Positions::pruned_positions; }) {
      if (positions != Block::Positions::pruned_positions) {
        return Error{Errc::unsupported, "tokens of this model cannot have such positions once some are dropped",
                     "positions"};
      }
    }
    return {};
  }

  /// hidden = embeddings of tokens from position `past` on.
  template <Executor E>
  [[nodiscard]] Status begin(std::span<const std::uint32_t> tokens, std::size_t past, const MatrixView<float>& hidden,
                             ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto positions = context.workspace().template take<std::uint32_t>(tokens.size());
    if (!positions) return positions.error();
    for (std::size_t t = 0; t < tokens.size(); ++t) (*positions)[t] = static_cast<std::uint32_t>(past + t);
    if (const Status done = embed(embedding(), tokens, hidden, context); !done) return done;
    if (const Status done = parts_.positions.add_to(hidden, *positions); !done) return done;
    if (!parts_.embedding_norm.has_value()) return {};
    return parts_.embedding_norm->forward(as_const(hidden), hidden, context);
  }

  template <class LayerCache, Executor E, class Observer>
  [[nodiscard]] Status run(std::span<const std::uint32_t> tokens, ModelCache<LayerCache>& cache,
                           const MatrixView<float>& hidden, ExecutionContext<E>& context,
                           const Observer& observer) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const std::size_t past = cache.size();
    const auto positions = context.workspace().template take<std::uint32_t>(tokens.size());
    if (!positions) return positions.error();
    if (const Status done = begin(tokens, past, hidden, context); !done) return done;
    observer(std::size_t{0}, as_const(hidden));
    for (std::size_t i = 0; i < parts_.blocks.size(); ++i) {
      const bool original = cache.positions() == PrunedPositions::original;
      const std::size_t first = original ? past : cache.layer(i).size();
      for (std::size_t t = 0; t < tokens.size(); ++t) (*positions)[t] = static_cast<std::uint32_t>(first + t);
      const Status done = parts_.blocks[i].forward(hidden, parts_.positions, *positions, cache.layer(i), context);
      if (!done) return in_layer(done.error(), i);
      observer(i + 1, as_const(hidden));
    }
    return parts_.final_norm.forward(as_const(hidden), hidden, context);
  }

  template <class LayerCache, Executor E, TokenPruning P>
  [[nodiscard]] Status run_pruned(std::span<const std::uint32_t> tokens, LiveTokens& live,
                                  ModelCache<LayerCache>& cache, const P& policy,
                                  ExecutionContext<E>& context) const noexcept {
    if (const Status done = begin(tokens, live.past, live.hidden, context); !done) return done;
    const Workspace::Frame frame(context.workspace());
    if constexpr (TokenLowering<P>) {
      const auto bits = context.workspace().template take<std::uint8_t>(tokens.size());
      if (!bits) return bits.error();
      live.bits = *bits;
    }
    for (std::uint8_t& bits : live.bits) bits = 8;
    for (std::size_t t = 0; t < tokens.size(); ++t) live.indices[t] = static_cast<std::uint32_t>(t);
    const PrunedPass<Block, LayerCache, P, E> pass(parts_.positions, cache, policy, context);
    for (std::size_t i = 0; i < parts_.blocks.size(); ++i) {
      const Status done = pass.forward(parts_.blocks[i], i, live);
      if (!done) return in_layer(done.error(), i);
    }
    const MatrixView<float> left = rows(live.hidden, 0, live.indices.size());
    return parts_.final_norm.forward(as_const(left), left, context);
  }

  static Error in_layer(Error error, std::size_t layer) noexcept {
    ErrorText where;
    where << "layer " << layer;
    if (!error.where.empty()) where << ", " << error.where.c_str();
    error.where = where;
    return error;
  }

  Config config_;
  CausalModelParts<Block> parts_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
