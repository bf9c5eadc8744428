// SPDX-License-Identifier: Apache-2.0
#pragma once

// Perplexity of a model on a text, and its divergence from a reference model on the same windows. The tokens are cut
// into windows of `context` that do not overlap; each predicts its last context - 1 tokens; the tail is dropped.
//
// Windows run side by side, one thread each, or one after another with all threads where there are few of them. Sums
// are added window by window in double: the same digits for any number of threads.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include <cbq/core/result.hpp>
#include <cbq/prune/token_pruning.hpp>

#include "model.hpp"
#include "threads.hpp"

namespace cbq_llama {

struct EvaluationOptions {
  std::size_t context = 512;
  std::size_t windows = 0;  ///< at most this many from the start of the text; 0 means all
  Machine machine = {};
  KvOptions kv = {};                 ///< of `model`; the reference keeps floats
  std::string label = "evaluating";  ///< of the progress line
  /// Gives some tokens of a window fewer bits, as those of a prompt, and drops none; null: no tokens.
  const cbq::ScheduledPruning* low_bit_tokens = nullptr;
};

/// How far a model is from a reference; means over all predicted tokens.
struct Divergence {
  double kl_mean = 0;                ///< KL(reference || model), nats per token
  double kl_p99 = 0;                 ///< its 99th percentile
  double top1_agreement = 0;         ///< share of tokens with the same favourite
  double probability_error_rms = 0;  ///< root mean square error of the probability of the token that follows
};

struct Evaluation {
  double nll = 0;  ///< nats per predicted token
  double perplexity = 0;
  std::optional<double> nll_stderr;  ///< over the means of the windows; nothing for a single one
  std::size_t windows = 0;
  std::size_t tokens = 0;  ///< predicted
  double seconds = 0;
  std::optional<Divergence> divergence;
};

/// Evaluates `model` on tokens; with `reference` (may be null) its divergence too. Errc::bad_argument (context, a text
/// shorter than one window, models of different vocabularies), Errc::not_finite, Errc::out_of_memory,
/// Errc::unsupported (a policy that drops tokens), Errc::interrupted.
[[nodiscard]] cbq::Result<Evaluation> evaluate(const Model& model, const Model* reference,
                                               std::span<const std::int32_t> tokens, const EvaluationOptions& options);

}  // namespace cbq_llama
