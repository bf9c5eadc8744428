// SPDX-License-Identifier: Apache-2.0
#pragma once

// One layer of an OPT model with do_layer_norm_before (all sizes but 350M), written once over the linear operator:
//
//   h += W_o attention(W_q n, W_k n, W_v n) + b_o,  n = layernorm(h)        h += W_2 relu(W_1 layernorm(h) + b_1) + b_2
//
// Zhang et al., OPT, 2022. Positions are learned and added to the embeddings; checkpoints store them with an offset
// of 2. BLOOM's layers (<cbq/nn/bloom_block.hpp>) are the same but for their positions.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/nn/block.hpp>
#include <cbq/nn/mlp.hpp>
#include <cbq/nn/self_attention.hpp>
#include <cbq/prune/token_pruning.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// An OPT model's configuration, as in config.json.
struct OptConfig {
  ModelShape shape = {};
  std::size_t intermediate = 0;
  std::size_t heads = 0;
  Activation activation = Activation::relu;
  float norm_epsilon = 1e-5f;
  Grid head_grid = {};  ///< of queries, keys and values; see attention_grid()
};

[[nodiscard]] constexpr ModelShape model_shape(const OptConfig& config) noexcept {
  return config.shape;
}

/// Heads of an OPT model: all have keys and values of their own.
[[nodiscard]] constexpr AttentionShape attention_shape(const OptConfig& config) noexcept {
  return {config.heads, config.heads, config.heads == 0 ? 0 : config.shape.hidden / config.heads};
}

/// Learned positions: position p is row p + 2 of the checkpoint's table.
class LearnedPositions {
 public:
  static constexpr std::size_t offset = 2;
  /// Hidden states contain them: they stay what they were.
  static constexpr PrunedPositions pruned_positions = PrunedPositions::original;

  /// Copies a table [2 + max_positions x hidden]. Errc::bad_shape, Errc::out_of_memory.
  template <Element T>
  [[nodiscard]] static Result<LearnedPositions> create(const MatrixView<const T>& table) noexcept {
    if (table.rows <= offset || table.columns == 0) {
      return Error{Errc::bad_shape, "a table of learned positions has more than 2 rows", "positions", table.rows};
    }
    const Result<std::size_t> size = checked_product(table.rows, table.columns);
    if (!size) return size.error();
    Result<AlignedBuffer<float>> memory = AlignedBuffer<float>::allocate(*size);
    if (!memory) return memory.error();
    LearnedPositions positions;
    positions.memory_ = *std::move(memory);
    positions.table_ = matrix_view<const float>(positions.memory_.data(), table.rows, table.columns);
    for (std::size_t r = 0; r < table.rows; ++r) {
      to_float_row(row(table, r), table.columns, positions.memory_.data() + r * table.columns);
    }
    return positions;
  }

  [[nodiscard]] std::size_t max_positions() const noexcept { return table_.rows - offset; }
  [[nodiscard]] std::size_t width() const noexcept { return table_.columns; }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size() * sizeof(float); }

  /// Adds the position of each row. Errc::bad_shape, Errc::bad_argument.
  [[nodiscard]] Status add_to(const MatrixView<float>& hidden,
                              std::span<const std::uint32_t> positions) const noexcept {
    if (hidden.columns != table_.columns || hidden.rows != positions.size()) {
      return Error{Errc::bad_shape, "learned positions do not have the width of the model", "positions", table_.columns,
                   hidden.columns};
    }
    for (std::size_t t = 0; t < hidden.rows; ++t) {
      if (positions[t] >= max_positions()) {
        return Error{Errc::bad_argument, "a position lies beyond the model's context", "position", positions[t],
                     ErrorText("below ") << max_positions()};
      }
      const float* learned = row(table_, positions[t] + offset);
      float* values = row(hidden, t);
      for (std::size_t i = 0; i < hidden.columns; ++i) values[i] += learned[i];
    }
    return {};
  }

 private:
  AlignedBuffer<float> memory_;
  MatrixView<const float> table_ = {};
};

template <LinearOperator L>
struct OptBlockParts {
  LayerNorm attention_norm;
  AttentionParts<L> attention;
  LayerNorm mlp_norm;
  PlainMlpParts<L> mlp;
};

template <LinearOperator L, PositionEmbedding P = LearnedPositions>
class OptBlock {
 public:
  using Linear = L;
  using Config = OptConfig;
  using FinalNorm = LayerNorm;
  using Positions = P;

  /// Errc::bad_shape where a part does not fit the configuration, Errc::unsupported.
  [[nodiscard]] static Result<OptBlock> create(const OptConfig& config, OptBlockParts<L> parts) noexcept {
    const std::size_t hidden = config.shape.hidden;
    const AttentionShape shape = attention_shape(config);
    if (parts.attention_norm.width() != hidden || parts.mlp_norm.width() != hidden ||
        shape.heads * shape.width != hidden) {
      return Error{Errc::bad_shape, "norms and heads do not have the width of the model", "norms, heads * width",
                   ErrorText(parts.attention_norm.width())
                       << ", " << parts.mlp_norm.width() << ", " << shape.heads * shape.width,
                   hidden};
    }
    if (const Status ok = linear::check_linear(parts.mlp.first, "first projection", config.intermediate, hidden); !ok) {
      return ok.error();
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(shape.width)));
    Result<SelfAttention<L>> attention =
        SelfAttention<L>::create(shape, hidden, scale, std::move(parts.attention), config.head_grid);
    if (!attention) return attention.error();
    Result<PlainMlp<L>> mlp = PlainMlp<L>::create(hidden, config.activation, std::move(parts.mlp));
    if (!mlp) return mlp.error();
    return OptBlock(std::move(parts.attention_norm), *std::move(attention), std::move(parts.mlp_norm), *std::move(mlp));
  }

  [[nodiscard]] const SelfAttention<L>& attention() const noexcept { return attention_; }
  [[nodiscard]] const PlainMlp<L>& mlp() const noexcept { return mlp_; }
  [[nodiscard]] Result<FloatKvCache> make_cache(std::size_t capacity) const noexcept {
    return FloatKvCache::create(attention_.shape().kv_heads, attention_.shape().width, capacity);
  }

  /// hidden [tokens x hidden] in place; the tokens' keys and values are appended to the cache. Errors of the parts.
  template <class Cache, Executor E>
  [[nodiscard]] Status forward(const MatrixView<float>& hidden, const Positions& embedding,
                               std::span<const std::uint32_t> positions, Cache& cache,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto middle = context.workspace().take_matrix(hidden.rows, hidden.columns);
    if (!middle) return middle.error();
    const Status attended = forward_attention({as_const(hidden), *middle}, embedding, positions, cache, context);
    if (!attended) return attended;
    return forward_mlp({as_const(*middle), hidden}, context);
  }

  /// The first half: to = from + attention(norm(from)); the tokens' keys and values are appended to the cache.
  template <class Cache, Executor E>
  [[nodiscard]] Status forward_attention(const HiddenStates& hidden, const Positions& embedding,
                                         const AttentionTokens& tokens, Cache& cache,
                                         ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto normed = context.workspace().take_matrix(hidden.from.rows, hidden.from.columns);
    if (!normed) return normed.error();
    if (const Status done = attention_norm_.forward(hidden.from, *normed, context); !done) return done;
    AttentionTokens placed = tokens;
    if constexpr (requires { embedding.slopes(); }) placed.slopes = embedding.slopes();
    return attention_.forward(as_const(*normed), {hidden.to, hidden.from}, nullptr, placed, cache, context);
  }

  /// The second half: to = from + mlp(norm(from)).
  template <Executor E>
  [[nodiscard]] Status forward_mlp(const HiddenStates& hidden, ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto normed = context.workspace().take_matrix(hidden.from.rows, hidden.from.columns);
    if (!normed) return normed.error();
    if (const Status done = mlp_norm_.forward(hidden.from, *normed, context); !done) return done;
    return mlp_.forward(as_const(*normed), {hidden.to, hidden.from}, context, hidden.bits);
  }

 private:
  OptBlock(LayerNorm attention_norm, SelfAttention<L> attention, LayerNorm mlp_norm, PlainMlp<L> mlp) noexcept
      : attention_norm_(std::move(attention_norm)),
        attention_(std::move(attention)),
        mlp_norm_(std::move(mlp_norm)),
        mlp_(std::move(mlp)) {}

  LayerNorm attention_norm_;
  SelfAttention<L> attention_;
  LayerNorm mlp_norm_;
  PlainMlp<L> mlp_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
