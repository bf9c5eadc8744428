// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "evaluation.hpp"
#include "pruned_evaluation.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

void print(const Report& report, const PerplexityCommand& command, const std::string& text, std::FILE* out) {
  (void)std::fprintf(out, "model       %s (%s, %.3f bits per weight, %s)\n", report.model.c_str(),
                     report.scheme.c_str(), *report.bits_per_weight, size_text(*report.file_bytes).c_str());
  (void)std::fprintf(out, "cache       %s\n", kv_text(report).c_str());
  (void)std::fprintf(out, "text        %s: %zu windows of %zu tokens, %zu predicted\n", text.c_str(), *report.windows,
                     *report.context, *report.tokens);
  (void)std::fprintf(out, "perplexity  %.4f (nll %.5f", *report.perplexity, *report.nll);
  if (report.nll_stderr) (void)std::fprintf(out, ", standard error %.5f", *report.nll_stderr);
  (void)std::fprintf(out, ")\n");
  if (report.kl_mean) {
    (void)std::fprintf(out, "reference   %s: KL %.5f mean, %.4f at the 99th percentile, top-1 agreement %.2f %%, ",
                       command.reference.c_str(), *report.kl_mean, *report.kl_p99, 100 * *report.top1_agreement);
    (void)std::fprintf(out, "probability error %.4f rms\n", *report.probability_error_rms);
  }
  (void)std::fprintf(out, "run         %.2f s", *report.seconds);
  if (report.prompt_tokens_per_second) (void)std::fprintf(out, ", %.0f tokens/s", *report.prompt_tokens_per_second);
  (void)std::fprintf(out, ", %zu threads, %s", *report.threads, report.isa.c_str());
  if (report.peak_memory_bytes)
    (void)std::fprintf(out, ", peak memory %s", size_text(*report.peak_memory_bytes).c_str());
  (void)std::fprintf(out, "\n");
}

void print(const Report& report, const PrunedEvaluation& pruned, const std::string& text, std::FILE* out) {
  (void)std::fprintf(out, "model       %s (%s, %.3f bits per weight)\n", report.model.c_str(), report.scheme.c_str(),
                     *report.bits_per_weight);
  (void)std::fprintf(out, "text        %s: %zu windows of %zu tokens\n", text.c_str(), pruned.windows, pruned.context);
  (void)std::fprintf(out, "pruned      layers do without %.2f %% of a window's tokens, %.2f %% are left at the end\n",
                     100 * pruned.sparsity, 100 * pruned.left);
  const auto line = [&](const char* name, const NllMean& nll, const char* what) {
    (void)std::fprintf(out, "%-11s perplexity %.4f (nll %.5f", name, std::exp(nll.mean), nll.mean);
    if (nll.error) (void)std::fprintf(out, ", standard error %.5f", *nll.error);
    (void)std::fprintf(out, "), %s\n", what);
  };
  line("survivors", pruned.survivors, "tokens after those that are left");
  line("  dense", pruned.survivors_dense, "the same tokens, nothing pruned");
  line("suffix", pruned.suffix, "second half of each window, first half pruned");
  line("  dense", pruned.suffix_dense, "the same tokens, nothing pruned");
  (void)std::fprintf(out, "difference  suffix nll %+.5f", pruned.suffix_difference.mean);
  if (pruned.suffix_difference.error) {
    (void)std::fprintf(out, ", standard error %.5f", *pruned.suffix_difference.error);
  }
  (void)std::fprintf(out, "\nrun         %.2f s, %zu threads, %s\n", *report.seconds, *report.threads,
                     report.isa.c_str());
}

cbq::Json nll_json(const NllMean& nll) {
  return {{"nll", nll.mean},
          {"perplexity", std::exp(nll.mean)},
          {"nll_stderr", nll.error ? cbq::Json(*nll.error) : cbq::Json(nullptr)}};
}

Status write_pruned(const PerplexityCommand& command, const PrunedEvaluation& pruned, const std::string& text,
                    Report report, const Console& console) {
  report.windows = pruned.windows;
  report.context = pruned.context;
  report.seconds = pruned.seconds;
  report.peak_memory_bytes = peak_memory_bytes();
  if (prints_text(command.common)) print(report, pruned, text, console.out);
  cbq::Json json = to_json(report);
  json["pruning"] = {{"sparsity", pruned.sparsity},
                     {"left", pruned.left},
                     {"survivors", nll_json(pruned.survivors)},
                     {"survivors_dense", nll_json(pruned.survivors_dense)},
                     {"suffix", nll_json(pruned.suffix)},
                     {"suffix_dense", nll_json(pruned.suffix_dense)},
                     {"suffix_nll_difference", pruned.suffix_difference.mean}};
  return write_json(command.common, json, console);
}

// The text named on the command line, else the one beside the model, else the one beside the reference.
Result<std::string> text_path(const PerplexityCommand& command) {
  if (!command.text.empty()) return command.text;
  Result<std::string> beside = default_text(command.common.model.path);
  if (beside || command.reference.empty()) return beside;
  return default_text(command.reference);
}

}  // namespace

Status run(const PerplexityCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  const Result<std::string> path = text_path(command);
  if (!path) return path.error();
  const Result<std::string> text = read_text(*path);
  if (!text) return text.error();
  LoadOptions load;
  load.operators = command.operators;
  load.packed_cache = {command.common.packed_cache, machine->threads, console.err};
  const Result<LoadedModel> loaded = load_model(command.common.model, load);
  if (!loaded) return loaded.error();
  const Result<Tokenizer> tokenizer = loaded->source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  const Result<std::vector<std::int32_t>> tokens = tokenizer->encode(*text);
  if (!tokens) return cbq::in_context(tokens.error(), *path);
  std::optional<LoadedModel> reference;
  if (!command.reference.empty()) {
    Result<LoadedModel> other = load_model({command.reference, {}, command.common.model.mode});
    if (!other) return other.error();
    reference.emplace(*std::move(other));
  }
  const Result<KvSetup> kv = KvSetup::create(command.kv, *loaded, *machine);
  if (!kv) return kv.error();
  EvaluationOptions options;
  options.kv = kv->options();
  options.kv.operators = command.operators;
  options.kv.use = KvUse::teacher_forcing;
  options.context = command.context;
  options.windows = command.windows;
  options.machine = *machine;
  const auto pruning = pruning_of(command.prune, loaded->model.config(), loaded->model.activation_bits());
  if (!pruning) return pruning.error();
  if (reference && command.prune.sparsity != 0) {
    return Error{Errc::unsupported, "what pruning costs is measured against the same model: no reference",
                 "--reference"};
  }
  if (*pruning && reference) {
    options.low_bit_tokens = &**pruning;
  } else if (*pruning) {
    const Result<PrunedEvaluation> pruned = evaluate_pruned(loaded->model, **pruning, *tokens, options);
    if (!pruned) return pruned.error();
    Report report = describe(command.common.model.path, *loaded, *machine);
    kv->describe(report);
    return write_pruned(command, *pruned, *path, std::move(report), console);
  }
  const Result<Evaluation> evaluation =
      evaluate(loaded->model, reference ? &reference->model : nullptr, *tokens, options);
  if (!evaluation) return evaluation.error();

  Report report = describe(command.common.model.path, *loaded, *machine);
  kv->describe(report);
  report.perplexity = evaluation->perplexity;
  report.nll = evaluation->nll;
  report.nll_stderr = evaluation->nll_stderr;
  report.windows = evaluation->windows;
  report.tokens = evaluation->tokens;
  report.context = command.context;
  report.seconds = evaluation->seconds;
  if (evaluation->divergence) {
    report.kl_mean = evaluation->divergence->kl_mean;
    report.kl_p99 = evaluation->divergence->kl_p99;
    report.top1_agreement = evaluation->divergence->top1_agreement;
    report.probability_error_rms = evaluation->divergence->probability_error_rms;
  } else {
    report.prompt_tokens_per_second = static_cast<double>(evaluation->windows * command.context) / evaluation->seconds;
  }
  report.peak_memory_bytes = peak_memory_bytes();
  if (prints_text(command.common)) print(report, command, *path, console.out);
  return write_json(command.common, to_json(report), console);
}

}  // namespace cbq_llama
