// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a call of attention does with its scores, beside softmax: their scale, biases that know positions (ALiBi), and
// weights that the caller wants to see, as token pruning does. Most calls need the scale alone, of which a float is
// enough.
//
//   P_h[t, j] = softmax over j of (scale q_t k_j + slope_h j),  o_t = sum_j P_h[t, j] v_j

#include <cstddef>
#include <span>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {  // also of the data: their constructors move floats, as each file's flags have it

/// What softmax weights are rounded to before they multiply values.
enum class SoftmaxWeights : unsigned char {
  exact,            ///< nothing; in integer attention, multiples of 2^-15
  log2,             ///< powers of two, 0 below 2^-15.5: the 4-bit quantizer of <cbq/quant/log2.hpp>
  log2_normalized,  ///< the same, and results are divided by the sum of the rounded weights
};

struct AttentionScores {
  // NOLINTNEXTLINE(google-explicit-constructor): a scale is all that most callers have to say.
  constexpr AttentionScores(float factor = 1.0f) noexcept : scale(factor) {}

  float scale;                         ///< multiplies scores, usually 1 / sqrt(width); see check_score_scale()
  std::span<const float> slopes = {};  ///< of ALiBi, one per query head; empty: none
  SoftmaxWeights weights = SoftmaxWeights::exact;
  MatrixView<float> first_weights = {};  ///< written where it has memory: P_h[t, 0], [tokens x heads]
  /// Likewise: sum of P_h[s, t] over the call's queries s; costs scores twice, and takes exact weights.
  MatrixView<float> column_sums = {};
};

/// Errc::bad_argument for a factor of scores that softmax cannot work with: NaN, infinite, not above 0 or so small that
/// its product with differences of scores is lost.
[[nodiscard]] constexpr Status check_score_scale(float scale) noexcept {
  if (is_finite(scale) && scale >= 0x1p-100f) return {};
  return Error{Errc::bad_argument, "the scale of scores must be finite and at least 2^-100", "scale"};
}

/// Whether scores fit `tokens` queries of `heads` heads. Errc::bad_shape, Errc::bad_argument (check_score_scale()).
[[nodiscard]] constexpr Status check_scores(const AttentionScores& scores, std::size_t tokens,
                                            std::size_t heads) noexcept {
  if (!scores.slopes.empty() && scores.slopes.size() != heads) {
    return Error{Errc::bad_shape, "attention has one slope per query head, or none", "slopes", scores.slopes.size(),
                 heads};
  }
  for (const float slope : scores.slopes) {
    const float relative = slope / scores.scale;
    if (relative >= -0x1p100f && relative <= 0x1p100f) continue;
    return Error{Errc::bad_argument, "a slope over the scale of scores must be a number up to 2^100", "slopes"};
  }
  for (const MatrixView<float>& to : {scores.first_weights, scores.column_sums}) {
    if (to.data == nullptr) continue;
    if (to.rows == tokens && to.columns == heads && (tokens <= 1 || to.stride >= heads)) continue;
    return Error{Errc::bad_shape, "weights that attention gives are tokens x heads", "first weights, column sums",
                 ErrorText(to.rows) << " x " << to.columns, ErrorText(tokens) << " x " << heads};
  }
  return check_score_scale(scores.scale);
}

/// Errc::unsupported where weights are to be given or rounded by attention that can do neither.
[[nodiscard]] constexpr Status check_exact_weights(const AttentionScores& scores) noexcept {
  const bool gives = scores.first_weights.data != nullptr || scores.column_sums.data != nullptr;
  if (!gives && scores.weights == SoftmaxWeights::exact) return {};
  return Error{Errc::unsupported, "attention over this cache has weights neither to give nor to round", "scores"};
}

}  // namespace CBQ_ABI
}  // namespace cbq
