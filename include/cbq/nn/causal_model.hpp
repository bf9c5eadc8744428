// SPDX-License-Identifier: Apache-2.0
#pragma once

// CausalModel<Block>: a decoder-only language model made of any block. forward_hidden() runs tokens through all layers
// and the final norm; logits() multiplies rows of that with the head, as many at once as the caller has memory for. The
// cache belongs to the caller, one per sequence. The same object computes prompts, single tokens and evaluation
// windows.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <cbq/nn/block.hpp>
#include <cbq/nn/embedding.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Keys and values of one sequence, layer by layer.
template <class LayerCache = FloatKvCache>
class ModelCache {
 public:
  ModelCache() = default;
  explicit ModelCache(std::vector<LayerCache> layers) noexcept : layers_(std::move(layers)) {}

  /// Positions in use.
  [[nodiscard]] std::size_t size() const noexcept { return layers_.empty() ? 0 : layers_.front().size(); }
  [[nodiscard]] std::size_t capacity() const noexcept { return layers_.empty() ? 0 : layers_.front().capacity(); }
  [[nodiscard]] std::size_t layers() const noexcept { return layers_.size(); }
  [[nodiscard]] LayerCache& layer(std::size_t index) noexcept { return layers_[index]; }
  /// Forgets all positions from `size` on.
  void truncate(std::size_t size) noexcept {
    for (LayerCache& layer : layers_) layer.truncate(size);
  }
  void reset() noexcept { truncate(0); }

 private:
  std::vector<LayerCache> layers_;
};

/// What a model is made of. `embedding` is absent where it is tied to the head.
template <TransformerBlock Block>
struct CausalModelParts {
  std::optional<typename Block::Linear> embedding;
  typename Block::Positions positions;
  std::vector<Block> blocks;
  typename Block::FinalNorm final_norm;
  typename Block::Linear head;
};

/// Ignores hidden states.
struct NoObserver {
  void operator()(std::size_t, const MatrixView<const float>&) const noexcept {}
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
  /// an error the cache is as before. Errors: bad_shape (cache full, shapes), bad_argument (token or position out of
  /// range), not_finite (where activations are quantized), out_of_memory.
  template <class LayerCache, Executor E, class Observer = NoObserver>
  [[nodiscard]] Status forward_hidden(std::span<const std::uint32_t> tokens, ModelCache<LayerCache>& cache,
                                      const MatrixView<float>& hidden, ExecutionContext<E>& context,
                                      const Observer& observer = {}) const noexcept {
    const std::size_t past = cache.size();
    if (cache.layers() != parts_.blocks.size()) {
      return Error{Errc::bad_shape, "the cache has another number of layers than the model", "cache", cache.layers(),
                   parts_.blocks.size()};
    }
    if (tokens.size() > shape().max_positions - (past < shape().max_positions ? past : shape().max_positions)) {
      return Error{Errc::bad_argument, "the tokens do not fit the model's context", "positions",
                   ErrorText(past) << " + " << tokens.size(), shape().max_positions};
    }
    const Status done = run(tokens, cache, hidden, context, observer);
    if (!done) cache.truncate(past);
    return done;
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

  template <class LayerCache, Executor E, class Observer>
  [[nodiscard]] Status run(std::span<const std::uint32_t> tokens, ModelCache<LayerCache>& cache,
                           const MatrixView<float>& hidden, ExecutionContext<E>& context,
                           const Observer& observer) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto positions = context.workspace().template take<std::uint32_t>(tokens.size());
    if (!positions) return positions.error();
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      (*positions)[t] = static_cast<std::uint32_t>(cache.size() + t);
    }
    if (const Status done = embed(embedding(), tokens, hidden, context); !done) return done;
    if (const Status done = parts_.positions.add_to(hidden, *positions); !done) return done;
    observer(std::size_t{0}, as_const(hidden));
    for (std::size_t i = 0; i < parts_.blocks.size(); ++i) {
      const Status done = parts_.blocks[i].forward(hidden, parts_.positions, *positions, cache.layer(i), context);
      if (!done) {
        Error error = done.error();
        ErrorText where;
        where << "layer " << i;
        if (!error.where.empty()) where << ", " << error.where.c_str();
        error.where = where;
        return error;
      }
      observer(i + 1, as_const(hidden));
    }
    return parts_.final_norm.forward(as_const(hidden), hidden, context);
  }

  Config config_;
  CausalModelParts<Block> parts_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
