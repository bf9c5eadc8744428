// SPDX-License-Identifier: Apache-2.0
#pragma once

// A layer of a model that drops tokens between its halves: attention runs on all tokens that are there and shows what
// the policy judges them by; the feed-forward layer and all layers behind run on those that stay. A policy may also
// lower the bits of activations of tokens that matter less (TokenLowering): the products stay one each, whatever the
// bits of their tokens. Cost beside what is saved: the policy's, and one copy of what stays.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/nn/block.hpp>
#include <cbq/nn/model_cache.hpp>
#include <cbq/nn/self_attention.hpp>
#include <cbq/prune.hpp>

namespace cbq {

/// Tokens of a call that are still there.
struct LiveTokens {
  MatrixView<float> hidden = {};          ///< theirs are the first rows
  std::span<std::uint32_t> indices = {};  ///< of each among the tokens of the call, ascending
  std::size_t past = 0;                   ///< tokens of the sequence before the call
  std::span<std::uint8_t> bits = {};      ///< of the activations of each; empty where the policy cannot lower them
};

inline namespace CBQ_ABI {

/// A block whose halves can be run apart.
template <class B>
concept PrunableBlock =
    TransformerBlock<B> && requires(const B& block, const HiddenStates& hidden, const typename B::Positions& embedding,
                                    const AttentionTokens& tokens, FloatKvCache& cache, ExecutionContext<>& context) {
      { block.forward_attention(hidden, embedding, tokens, cache, context) } -> std::same_as<Status>;
      { block.forward_mlp(hidden, context) } -> std::same_as<Status>;
      { block.attention().shape() } -> std::convertible_to<AttentionShape>;
    };

/// One pass of some tokens through the layers of a model.
template <PrunableBlock Block, class LayerCache, TokenPruning P, Executor E>
class PrunedPass {
 public:
  PrunedPass(const typename Block::Positions& embedding, ModelCache<LayerCache>& cache, const P& policy,
             ExecutionContext<E>& context) noexcept
      : embedding_(embedding), cache_(cache), policy_(policy), context_(context) {}

  /// Runs layer `i`; `live` becomes the tokens that stay. Errors of the block and of the policy; Errc::bad_argument
  /// where what it selects are no tokens.
  [[nodiscard]] Status forward(const Block& block, std::size_t i, LiveTokens& live) const noexcept {
    const Workspace::Frame frame(context_.workspace());
    const std::size_t tokens = live.indices.size();
    const MatrixView<float> hidden = rows(live.hidden, 0, tokens);
    const auto positions = context_.workspace().template take<std::uint32_t>(tokens);
    if (!positions) return positions.error();
    for (std::size_t t = 0; t < tokens; ++t) {
      const bool original = policy_.positions() == PrunedPositions::original;
      (*positions)[t] = static_cast<std::uint32_t>(original ? live.past + live.indices[t] : cache_.layer(i).size() + t);
    }
    const bool judged = policy_.drops(i, tokens) || lowers(i, tokens);
    if (!judged && bits_of(live).bits.empty())
      return block.forward(hidden, embedding_, *positions, cache_.layer(i), context_);
    const auto middle = context_.workspace().take_matrix(tokens, hidden.columns);
    const auto weights = context_.workspace().take_matrix(judged ? tokens : 0, block.attention().shape().heads);
    if (!middle || !weights) return Error{Errc::out_of_memory, "no memory for hidden states"};
    AttentionTokens shown(*positions);
    shown.bits = bits_of(live);
    if (judged) (policy_.importance() == Importance::first_token ? shown.first_weights : shown.column_sums) = *weights;
    const HiddenStates first{as_const(hidden), *middle};
    const Status attended = block.forward_attention(first, embedding_, shown, cache_.layer(i), context_);
    if (!attended) return attended;
    if (judged) {
      if (const Status done = judge(i, as_const(*weights), *middle, live); !done) return done;
    }
    const std::size_t left = live.indices.size();
    return block.forward_mlp({as_const(rows(*middle, 0, left)), rows(hidden, 0, left), bits_of(live)}, context_);
  }

 private:
  [[nodiscard]] bool lowers(std::size_t layer, std::size_t tokens) const noexcept {
    if constexpr (TokenLowering<P>) return policy_.lowers(layer, tokens);
    return false;
  }

  /// Grids of 4 bits are affine: a code more, and centred on what the token holds. Empty until a token is lowered, so
  /// that layers before that run as without the policy.
  [[nodiscard]] static TokenBits bits_of(const LiveTokens& live) noexcept {
    if (live.bits.empty()) return {};
    const std::span<const std::uint8_t> bits = live.bits.first(live.indices.size());
    for (const std::uint8_t one : bits) {
      if (one != 8) return {.bits = bits, .zero = Zero::affine};
    }
    return {};
  }

  /// Drops tokens and lowers bits as the policy says, of the rows of `middle` too.
  [[nodiscard]] Status judge(std::size_t layer, const MatrixView<const float>& weights, const MatrixView<float>& middle,
                             LiveTokens& live) const noexcept {
    const std::size_t tokens = live.indices.size();
    const auto importance = context_.workspace().template take<float>(tokens);
    const auto survivors = context_.workspace().template take<std::uint32_t>(tokens);
    const auto positions = context_.workspace().template take<std::uint32_t>(tokens);
    if (!importance || !survivors || !positions) return Error{Errc::out_of_memory, "no memory for tokens that stay"};
    sum_heads(weights, *importance);
    for (std::size_t t = 0; t < tokens; ++t) {
      (*positions)[t] = static_cast<std::uint32_t>(live.past + live.indices[t]);
    }
    PruningStep step = {layer, *importance, *positions, cache_.size()};
    if (policy_.drops(layer, tokens)) {
      const Result<std::size_t> left = policy_.select(step, *survivors);
      if (!left) return left.error();
      if (*left > tokens) {
        return Error{Errc::bad_argument, "a pruning policy selected more tokens than there are", "tokens", *left,
                     tokens};
      }
      const std::span<const std::uint32_t> stay = survivors->first(*left);
      if (const Status dropped = drop(step, stay, middle, live); !dropped) return dropped;
      gather_elements(stay, *importance);
      gather_elements(stay, *positions);
      step.importance = importance->first(stay.size());
      step.positions = positions->first(stay.size());
    }
    if constexpr (TokenLowering<P>) {
      const std::size_t left = live.indices.size();
      if (policy_.lowers(layer, left)) return policy_.lower(step, *survivors, live.bits.first(left));
    }
    return {};
  }

  /// Leaves the tokens `stay` of those that `step` is about.
  [[nodiscard]] Status drop(const PruningStep& step, std::span<const std::uint32_t> stay,
                            const MatrixView<float>& middle, LiveTokens& live) const noexcept {
    const std::size_t tokens = step.positions.size();
    if (const Status valid = check_survivors(stay, tokens); !valid) return valid;
    if (stay.empty()) return Error{Errc::bad_argument, "a pruning policy must leave some token"};
    for (std::size_t t = 0, next = 0; t < tokens; ++t) {
      if (next < stay.size() && stay[next] == t) {
        ++next;
      } else {
        cache_.drop(step.layer, step.positions[t]);
      }
    }
    gather_rows(stay, middle);
    gather_elements(stay, live.indices);
    if (!live.bits.empty()) gather_elements(stay, live.bits);
    live.indices = live.indices.first(stay.size());
    return {};
  }

  const typename Block::Positions& embedding_;
  ModelCache<LayerCache>& cache_;
  const P& policy_;
  ExecutionContext<E>& context_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
