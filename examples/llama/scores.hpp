// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the logits of one position say about the token that follows, and how far two models' logits are apart. Sums are
// of float lanes in short pieces, added in double; two or three passes over the vocabulary.
//
//   nll = log sum exp x - x[target]
//   KL(p || q) = sum p (log p - log q) = E_p[x - y] - (log sum exp x - log sum exp y)

#include <cstddef>
#include <span>

namespace cbq_llama {

/// One model's prediction of one token.
struct TokenScore {
  double log_sum = 0;   ///< log sum exp of the logits; NaN when a logit is
  double nll = 0;       ///< negative log-likelihood of the target, in nats
  std::size_t top = 0;  ///< the likeliest token, the first of equals
};

/// `target` < logits.size().
[[nodiscard]] TokenScore score_token(std::span<const float> logits, std::size_t target);

/// KL divergence from `reference` to `logits` in nats, given the scores of both.
[[nodiscard]] double divergence(std::span<const float> reference, const TokenScore& reference_score,
                                std::span<const float> logits, const TokenScore& score);

/// The index of the largest logit, the first of equals; 0 when there is none.
[[nodiscard]] std::size_t likeliest(std::span<const float> logits);

}  // namespace cbq_llama
