// SPDX-License-Identifier: Apache-2.0
#include "pruned_evaluation.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "interrupt.hpp"
#include "progress.hpp"
#include "scores.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Rows of logits held at once.
constexpr std::size_t logit_rows = 128;

using Losses = std::vector<double>;

// Losses of the tokens that follow those of rows of hidden states, by the index of the token that predicts.
class Scorer {
 public:
  Scorer(Session& session, std::size_t vocabulary)
      : session_(session), vocabulary_(vocabulary), logits_(logit_rows * vocabulary) {}

  // Row r of `hidden` is that of token indices[r] of the window; the window's last token predicts nothing.
  Status score(const MatrixView<const float>& hidden, std::span<const std::uint32_t> indices,
               std::span<const std::int32_t> window, Losses& losses) {
    std::size_t count = indices.size();
    if (count != 0 && indices.back() + 1 == window.size()) --count;
    for (std::size_t first = 0; first < count; first += logit_rows) {
      const std::size_t some = std::min(logit_rows, count - first);
      const Status done =
          session_.logits(rows(hidden, first, some), cbq::matrix_view(logits_.data(), some, vocabulary_));
      if (!done) return done;
      for (std::size_t r = 0; r < some; ++r) {
        const std::size_t token = indices[first + r];
        const std::span<const float> row = std::span(logits_).subspan(r * vocabulary_, vocabulary_);
        losses[token] = score_token(row, static_cast<std::size_t>(window[token + 1])).nll;
        if (std::isfinite(losses[token])) continue;
        return Error{Errc::not_finite, "the model's logits are not finite", ErrorText("token ") << token};
      }
    }
    return {};
  }

 private:
  Session& session_;
  std::size_t vocabulary_;
  std::vector<float> logits_;
};

// A mean over tokens, and how far the windows' means are apart.
class Mean {
 public:
  void add(const Losses& losses, std::span<const std::uint32_t> tokens) {
    double sum = 0;
    for (const std::uint32_t token : tokens) sum += losses[token];
    sums_.push_back(sum);
    counts_.push_back(static_cast<double>(tokens.size()));
  }

  [[nodiscard]] NllMean result() const {
    double sum = 0, count = 0;
    for (std::size_t w = 0; w < sums_.size(); ++w) {
      sum += sums_[w];
      count += counts_[w];
    }
    NllMean nll{sum / count, std::nullopt};
    if (sums_.size() < 2) return nll;
    double squares = 0;
    for (std::size_t w = 0; w < sums_.size(); ++w) {
      const double difference = sums_[w] / counts_[w] - nll.mean;
      squares += difference * difference;
    }
    const auto windows = static_cast<double>(sums_.size());
    nll.error = std::sqrt(squares / (windows - 1) / windows);
    return nll;
  }

 private:
  std::vector<double> sums_;
  std::vector<double> counts_;
};

std::vector<std::uint32_t> range(std::size_t first, std::size_t end) {
  std::vector<std::uint32_t> indices;
  for (std::size_t i = first; i < end; ++i) indices.push_back(static_cast<std::uint32_t>(i));
  return indices;
}

class Evaluator {
 public:
  Evaluator(Session session, const cbq::ScheduledPruning& policy, std::size_t context, std::size_t vocabulary)
      : session_(std::move(session)),
        scorer_(session_, vocabulary),
        policy_(policy),
        all_(range(0, context)),
        suffix_(range(context / 2, context)) {}

  Status add(std::span<const std::int32_t> window) {
    Losses dense(window.size()), pruned(window.size()), suffix(window.size());
    session_.reset();
    const auto hidden = session_.forward(window);
    if (!hidden) return hidden.error();
    if (const Status scored = scorer_.score(*hidden, all_, window, dense); !scored) return scored;
    if (const Status scored = add_survivors(window, dense, pruned); !scored) return scored;

    session_.reset();
    const auto prefix = session_.forward_pruned(window.first(suffix_.front()), policy_);
    if (!prefix) return prefix.error();
    const auto rest = session_.forward(window.subspan(suffix_.front()));
    if (!rest) return rest.error();
    if (const Status scored = scorer_.score(*rest, suffix_, window, suffix); !scored) return scored;
    const auto predicting = std::span(suffix_).first(suffix_.size() - 1);
    suffix_mean_.add(suffix, predicting);
    suffix_dense_.add(dense, predicting);
    for (std::size_t t = 0; t < dense.size(); ++t) suffix[t] -= dense[t];
    difference_.add(suffix, predicting);
    return {};
  }

  void summarize(PrunedEvaluation& evaluation) const {
    evaluation.survivors = survivors_mean_.result();
    evaluation.survivors_dense = survivors_dense_.result();
    evaluation.suffix = suffix_mean_.result();
    evaluation.suffix_dense = suffix_dense_.result();
    evaluation.suffix_difference = difference_.result();
    const auto windows = static_cast<double>(evaluation.windows);
    evaluation.sparsity = sparsity_ / windows;
    evaluation.left = left_ / windows;
  }

 private:
  Status add_survivors(std::span<const std::int32_t> window, const Losses& dense, Losses& pruned) {
    session_.reset();
    const auto left = session_.forward_pruned(window, policy_);
    if (!left) return left.error();
    if (const Status scored = scorer_.score(left->hidden, left->indices, window, pruned); !scored) return scored;
    // The last token is protected, and predicts nothing.
    const auto predicting = left->indices.first(left->indices.size() - 1);
    survivors_mean_.add(pruned, predicting);
    survivors_dense_.add(dense, predicting);
    sparsity_ += left->sparsity;
    left_ += static_cast<double>(left->indices.size()) / static_cast<double>(window.size());
    return {};
  }

  Session session_;
  Scorer scorer_;
  const cbq::ScheduledPruning& policy_;
  std::vector<std::uint32_t> all_;
  std::vector<std::uint32_t> suffix_;
  Mean survivors_mean_, survivors_dense_, suffix_mean_, suffix_dense_, difference_;
  double sparsity_ = 0;
  double left_ = 0;
};

}  // namespace

Result<PrunedEvaluation> evaluate_pruned(const Model& model, const cbq::ScheduledPruning& policy,
                                         std::span<const std::int32_t> tokens, const EvaluationOptions& options) {
  if (options.context < 4 || options.context > model.config().context) {
    return Error{Errc::bad_argument, "the model has no windows of this length", "context", options.context,
                 ErrorText("4 to ") << model.config().context};
  }
  PrunedEvaluation evaluation;
  evaluation.context = options.context;
  evaluation.windows = tokens.size() / options.context;
  if (evaluation.windows == 0) {
    return Error{Errc::bad_argument, "the text is shorter than one window", "", ErrorText(tokens.size()) << " tokens",
                 ErrorText("at least ") << options.context};
  }
  if (options.windows != 0) evaluation.windows = std::min(evaluation.windows, options.windows);
  Result<Session> session = Session::create(model, options.context, options.machine, options.kv);
  if (!session) return session.error();
  const Stopwatch watch;
  Evaluator evaluator(*std::move(session), policy, options.context, model.config().vocabulary);
  Progress progress(options.label, "windows", evaluation.windows);
  for (std::size_t w = 0; w < evaluation.windows; ++w) {
    if (const Status go = check_interrupt(); !go) return go.error();
    const Status added = evaluator.add(tokens.subspan(w * options.context, options.context));
    if (!added) return cbq::in_context(added.error(), "window " + std::to_string(w));
    progress.update(w + 1);
  }
  evaluation.seconds = watch.seconds();
  evaluator.summarize(evaluation);
  return evaluation;
}

}  // namespace cbq_llama
