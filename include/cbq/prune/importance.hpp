// SPDX-License-Identifier: Apache-2.0
#pragma once

// How important a token is, from the weights of attention in the layer at hand. A token that looks at the first one,
// where models put the attention that they have no other use for, has little to say: the more it does, the more it
// matters in the end (Agile-Quant). Sums of columns, what all queries give to a token, favour early tokens, which the
// causal mask shows to more queries. Cost: one addition per token and head.
//
//   first_token   I_t = sum_h P_h[t, 0]        column_sums   I_t = sum_h sum_(s >= t) P_h[s, t]
//
// Shen et al., Agile-Quant, 2023.

#include <cstddef>
#include <span>

#include <cbq/core/view.hpp>

namespace cbq {

enum class Importance : unsigned char { first_token, column_sums };

inline namespace CBQ_ABI {

/// importance[t] = sum over heads of weights[t, h], in their order; one element per row of `weights`.
inline void sum_heads(const MatrixView<const float>& weights, std::span<float> importance) noexcept {
  for (std::size_t t = 0; t < weights.rows; ++t) {
    float sum = 0.0f;
    for (std::size_t h = 0; h < weights.columns; ++h) sum += row(weights, t)[h];
    importance[t] = sum;
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
