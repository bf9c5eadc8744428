// SPDX-License-Identifier: Apache-2.0
#pragma once

// What dropping tokens costs, by three measures. A perplexity of the survivors alone, as Agile-Quant reports it, leaves
// out what the dropped tokens would have predicted: next to it stands that of the same tokens with nothing dropped. And
// where only the first half of each window is pruned, all tokens of the second half are measured, by both.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <cbq/prune/token_pruning.hpp>

#include "evaluation.hpp"

namespace cbq_llama {

/// Nats per predicted token, a mean over all of them.
struct NllMean {
  double mean = 0;
  std::optional<double> error;  ///< its standard error, from the means of the windows; nothing for a single one
};

struct PrunedEvaluation {
  NllMean survivors;          ///< tokens of the text behind those that are left at the end of a pruned window
  NllMean survivors_dense;    ///< the same predictions of the dense model
  NllMean suffix;             ///< all tokens of the second half of a window whose first half was pruned
  NllMean suffix_dense;       ///< the same predictions of the dense model
  NllMean suffix_difference;  ///< of the two
  double sparsity = 0;        ///< mean share of a window's tokens that layers did without
  double left = 0;            ///< share of them that the last layer left
  std::size_t windows = 0;
  std::size_t context = 0;
  double seconds = 0;
};

/// Evaluates a model on windows of tokens. Errors as evaluate(), and those of Session::forward_pruned().
[[nodiscard]] cbq::Result<PrunedEvaluation> evaluate_pruned(const Model& model, const cbq::ScheduledPruning& policy,
                                                            std::span<const std::int32_t> tokens,
                                                            const EvaluationOptions& options);

}  // namespace cbq_llama
