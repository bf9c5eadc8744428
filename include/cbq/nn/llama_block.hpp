// SPDX-License-Identifier: Apache-2.0
#pragma once

// One layer of a LLaMA model, written once over the linear operator:
//
//   h += W_o attention(rotary(W_q n), rotary(W_k n), W_v n),  n = rmsnorm(h)        h += swiglu(rmsnorm(h))
//
// Touvron et al., LLaMA, 2023. Biases, where a checkpoint has them, belong to the operators.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/nn/block.hpp>
#include <cbq/nn/mlp.hpp>
#include <cbq/nn/self_attention.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// A LLaMA model's configuration, as in config.json. `head_width` is head_dim, or hidden / heads.
struct LlamaConfig {
  ModelShape shape = {};
  std::size_t intermediate = 0;
  AttentionShape attention = {};
  float norm_epsilon = 1e-5f;
  RotaryConfig rotary = {};
  Grid head_grid = {};  ///< of queries, keys and values; see attention_grid()
};

[[nodiscard]] constexpr ModelShape model_shape(const LlamaConfig& config) noexcept {
  return config.shape;
}

/// Positions of a model whose attention rotates queries and keys.
class RotaryPositions {
 public:
  /// Errors as RotaryTable::create().
  [[nodiscard]] static Result<RotaryPositions> create(const LlamaConfig& config) noexcept {
    Result<RotaryTable> table = RotaryTable::create(config.rotary, config.attention.width, config.shape.max_positions);
    if (!table) return table.error();
    RotaryPositions positions;
    positions.table_ = *std::move(table);
    return positions;
  }
  [[nodiscard]] std::size_t max_positions() const noexcept { return table_.positions(); }
  [[nodiscard]] Status add_to(const MatrixView<float>&, std::span<const std::uint32_t>) const noexcept { return {}; }
  [[nodiscard]] const RotaryTable& table() const noexcept { return table_; }

 private:
  RotaryTable table_;
};

template <LinearOperator L>
struct LlamaBlockParts {
  RmsNorm attention_norm;
  AttentionParts<L> attention;
  RmsNorm mlp_norm;
  GatedMlpParts<L> mlp;
};

template <LinearOperator L>
class LlamaBlock {
 public:
  using Linear = L;
  using Config = LlamaConfig;
  using FinalNorm = RmsNorm;
  using Positions = RotaryPositions;

  /// Errc::bad_shape where a part does not fit the configuration, Errc::unsupported.
  [[nodiscard]] static Result<LlamaBlock> create(const LlamaConfig& config, LlamaBlockParts<L> parts) noexcept {
    const std::size_t hidden = config.shape.hidden;
    if (parts.attention_norm.width() != hidden || parts.mlp_norm.width() != hidden) {
      return Error{Errc::bad_shape, "a norm does not have the width of the model", "norm",
                   ErrorText(parts.attention_norm.width()) << ", " << parts.mlp_norm.width(), hidden};
    }
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.attention.width)));
    Result<SelfAttention<L>> attention =
        SelfAttention<L>::create(config.attention, hidden, scale, std::move(parts.attention), config.head_grid);
    if (!attention) return attention.error();
    Result<GatedMlp<L>> mlp = GatedMlp<L>::create(hidden, config.intermediate, std::move(parts.mlp));
    if (!mlp) return mlp.error();
    return LlamaBlock(std::move(parts.attention_norm), *std::move(attention), std::move(parts.mlp_norm),
                      *std::move(mlp));
  }

  [[nodiscard]] const SelfAttention<L>& attention() const noexcept { return attention_; }
  [[nodiscard]] const GatedMlp<L>& mlp() const noexcept { return mlp_; }
  [[nodiscard]] Result<FloatKvCache> make_cache(std::size_t capacity) const noexcept {
    return FloatKvCache::create(attention_.shape().kv_heads, attention_.shape().width, capacity);
  }

  /// hidden [tokens x hidden] in place; the tokens' keys and values are appended to the cache. Errors of the parts.
  template <class Cache, Executor E>
  [[nodiscard]] Status forward(const MatrixView<float>& hidden, const RotaryPositions& rotary,
                               std::span<const std::uint32_t> positions, Cache& cache,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto middle = context.workspace().take_matrix(hidden.rows, hidden.columns);
    if (!middle) return middle.error();
    const Status attended = forward_attention({as_const(hidden), *middle}, rotary, positions, cache, context);
    if (!attended) return attended;
    return forward_mlp({as_const(*middle), hidden}, context);
  }

  /// The first half: to = from + attention(norm(from)); the tokens' keys and values are appended to the cache.
  template <class Cache, Executor E>
  [[nodiscard]] Status forward_attention(const HiddenStates& hidden, const RotaryPositions& rotary,
                                         const AttentionTokens& tokens, Cache& cache,
                                         ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto normed = context.workspace().take_matrix(hidden.from.rows, hidden.from.columns);
    if (!normed) return normed.error();
    if (const Status done = attention_norm_.forward(hidden.from, *normed, context); !done) return done;
    return attention_.forward(as_const(*normed), {hidden.to, hidden.from}, &rotary.table(), tokens, cache, context);
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
  LlamaBlock(RmsNorm attention_norm, SelfAttention<L> attention, RmsNorm mlp_norm, GatedMlp<L> mlp) noexcept
      : attention_norm_(std::move(attention_norm)),
        attention_(std::move(attention)),
        mlp_norm_(std::move(mlp_norm)),
        mlp_(std::move(mlp)) {}

  RmsNorm attention_norm_;
  SelfAttention<L> attention_;
  RmsNorm mlp_norm_;
  GatedMlp<L> mlp_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
