// SPDX-License-Identifier: Apache-2.0
#include "evaluation.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include <cbq/core/bad_alloc.hpp>

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

// Rows of logits held at once: enough to fill a matmul, few enough for vocabularies of 100,000 and more.
constexpr std::size_t logit_rows = 128;

// The sums of one window; written by one worker.
struct WindowSums {
  Status status;
  double nll = 0;
  double squared_probability_error = 0;
  std::size_t agreements = 0;
};

// What one worker needs of one model.
struct Lane {
  Session session;
  std::vector<float> logits;

  static Result<Lane> create(const Model& model, const KvOptions& kv, const EvaluationOptions& options,
                             std::size_t threads) {
    Result<Session> session = Session::create(model, options.context, {threads, options.machine.isa}, kv);
    if (!session) return session.error();
    return Lane{*std::move(session), std::vector<float>(logit_rows * model.config().vocabulary)};
  }

  Status compute_logits(const MatrixView<const float>& hidden, std::size_t first, std::size_t count) {
    const MatrixView<float> out = cbq::matrix_view(logits.data(), count, logits.size() / logit_rows);
    return session.logits(cbq::rows(hidden, first, count), out);
  }
  [[nodiscard]] std::span<const float> row(std::size_t index) const {
    const std::size_t vocabulary = logits.size() / logit_rows;
    return std::span(logits).subspan(index * vocabulary, vocabulary);
  }
};

struct Worker {
  Lane model;
  std::optional<Lane> reference;
  const cbq::ScheduledPruning* low_bit_tokens;

  Result<MatrixView<const float>> forward(std::span<const std::int32_t> ids) {
    if (low_bit_tokens == nullptr) return model.session.forward(ids);
    const auto left = model.session.forward_pruned(ids, *low_bit_tokens);
    if (!left) return left.error();
    if (left->indices.size() == ids.size()) return left->hidden;
    return Error{Errc::unsupported, "all tokens of a window are measured, and some were dropped", "",
                 ErrorText(left->indices.size()) << " are left", ids.size()};
  }

  // Evaluates the window `ids`; `divergences` gets one KL per predicted token, or is empty.
  Status run(std::span<const std::int32_t> ids, WindowSums& sums, std::span<double> divergences) {
    model.session.reset();
    const Result<MatrixView<const float>> hidden = forward(ids);
    if (!hidden) return hidden.error();
    MatrixView<const float> reference_hidden;
    if (reference) {
      reference->session.reset();
      const Result<MatrixView<const float>> other = reference->session.forward(ids);
      if (!other) return other.error();
      reference_hidden = *other;
    }
    const std::size_t predicted = ids.size() - 1;
    for (std::size_t first = 0; first < predicted; first += logit_rows) {
      const std::size_t count = std::min(logit_rows, predicted - first);
      if (const Status ok = model.compute_logits(*hidden, first, count); !ok) return ok;
      if (reference) {
        if (const Status ok = reference->compute_logits(reference_hidden, first, count); !ok) return ok;
      }
      for (std::size_t i = 0; i < count; ++i) {
        const auto target = static_cast<std::size_t>(ids[first + i + 1]);
        const TokenScore score = score_token(model.row(i), target);
        if (!std::isfinite(score.nll)) {
          return Error{Errc::not_finite, "the model's logits are not finite", ErrorText("token ") << first + i};
        }
        sums.nll += score.nll;
        if (!reference) continue;
        const TokenScore wanted = score_token(reference->row(i), target);
        divergences[first + i] = divergence(reference->row(i), wanted, model.row(i), score);
        const double error = std::exp(-score.nll) - std::exp(-wanted.nll);
        sums.squared_probability_error += error * error;
        sums.agreements += score.top == wanted.top ? 1 : 0;
      }
    }
    return {};
  }
};

Status check_options(const Model& model, const Model* reference, const EvaluationOptions& options) {
  const std::size_t longest = model.config().context;
  if (options.context < 2 || options.context > longest) {
    return Error{Errc::bad_argument, "the model has no windows of this length", "context", options.context,
                 ErrorText("2 to ") << longest};
  }
  if (reference == nullptr) return {};
  if (reference->config().vocabulary != model.config().vocabulary) {
    return Error{Errc::bad_argument, "the reference model has another vocabulary", "",
                 ErrorText(reference->config().vocabulary) << " tokens", model.config().vocabulary};
  }
  if (options.context > reference->config().context) {
    return Error{Errc::bad_argument, "the reference model has no windows of this length", "context", options.context,
                 ErrorText("2 to ") << reference->config().context};
  }
  return {};
}

Divergence summarize(std::span<const WindowSums> windows, std::vector<double> divergences) {
  Divergence result;
  const auto tokens = static_cast<double>(divergences.size());
  double agreements = 0;
  for (const WindowSums& window : windows) {
    result.probability_error_rms += window.squared_probability_error;
    agreements += static_cast<double>(window.agreements);
  }
  result.probability_error_rms = std::sqrt(result.probability_error_rms / tokens);
  result.top1_agreement = agreements / tokens;
  for (const double value : divergences) result.kl_mean += value;
  result.kl_mean /= tokens;
  const auto rank = static_cast<std::ptrdiff_t>(std::ceil(0.99 * tokens)) - 1;
  std::nth_element(divergences.begin(), divergences.begin() + rank, divergences.end());
  result.kl_p99 = divergences[static_cast<std::size_t>(rank)];
  return result;
}

void summarize_nll(std::span<const WindowSums> windows, Evaluation& evaluation) {
  const auto count = static_cast<double>(windows.size());
  const double per_window = static_cast<double>(evaluation.tokens) / count;
  double sum = 0;
  for (const WindowSums& window : windows) sum += window.nll;
  evaluation.nll = sum / static_cast<double>(evaluation.tokens);
  evaluation.perplexity = std::exp(evaluation.nll);
  if (windows.size() < 2) return;
  double squares = 0;
  for (const WindowSums& window : windows) {
    const double difference = window.nll / per_window - evaluation.nll;
    squares += difference * difference;
  }
  evaluation.nll_stderr = std::sqrt(squares / (count - 1) / count);
}

}  // namespace

Result<Evaluation> evaluate(const Model& model, const Model* reference, std::span<const std::int32_t> tokens,
                            const EvaluationOptions& options) {
  if (const Status ok = check_options(model, reference, options); !ok) return ok.error();
  Evaluation evaluation;
  evaluation.windows = tokens.size() / options.context;
  if (evaluation.windows == 0) {
    return Error{Errc::bad_argument, "the text is shorter than one window", "", ErrorText(tokens.size()) << " tokens",
                 ErrorText("at least ") << options.context};
  }
  if (options.windows != 0) evaluation.windows = std::min(evaluation.windows, options.windows);
  const std::size_t predicted = options.context - 1;
  evaluation.tokens = evaluation.windows * predicted;

  const std::size_t threads = std::max<std::size_t>(1, options.machine.threads);
  const bool side_by_side = evaluation.windows >= 2 * threads;
  std::vector<Worker> workers;
  for (std::size_t i = 0; i < (side_by_side ? threads : 1); ++i) {
    Result<Lane> lane = Lane::create(model, options.kv, options, side_by_side ? 1 : threads);
    if (!lane) return lane.error();
    workers.push_back({*std::move(lane), std::nullopt, options.low_bit_tokens});
    if (reference == nullptr) continue;
    Result<Lane> other = Lane::create(*reference, {}, options, side_by_side ? 1 : threads);
    if (!other) return other.error();
    workers.back().reference = *std::move(other);
  }

  const Stopwatch watch;
  std::vector<WindowSums> sums(evaluation.windows);
  std::vector<double> divergences(reference != nullptr ? evaluation.tokens : 0);
  Progress progress(options.label, "tokens", evaluation.tokens);
  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> done = 0;
  std::atomic<bool> failed = false;
  make_executor(workers.size()).for_each_index(workers.size(), [&](std::size_t index) {
    for (std::size_t w = next++; w < sums.size() && !failed && interrupt_signal() == 0; w = next++) {
      const std::span<double> slots =
          divergences.empty() ? std::span<double>() : std::span(divergences).subspan(w * predicted, predicted);
      const auto window = tokens.subspan(w * options.context, options.context);
      const Status ok = cbq::bad_alloc_as_error("evaluate", [&] { return workers[index].run(window, sums[w], slots); });
      if (!ok) {
        failed = true;
        sums[w].status = ok;
      }
      const std::size_t finished = done += predicted;
      if (index == 0) progress.update(finished);
    }
  });
  if (const Status ok = check_interrupt(); !ok) return ok.error();
  for (std::size_t w = 0; w < sums.size(); ++w) {
    if (!sums[w].status) return cbq::in_context(sums[w].status.error(), "window " + std::to_string(w));
  }
  evaluation.seconds = watch.seconds();
  summarize_nll(sums, evaluation);
  if (reference != nullptr) evaluation.divergence = summarize(sums, std::move(divergences));
  return evaluation;
}

}  // namespace cbq_llama
