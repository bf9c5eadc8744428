// SPDX-License-Identifier: Apache-2.0
#include "ablation.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include <cbq/io/atomic_file.hpp>
#include <cbq/reconstruct/checkpoint.hpp>

#include "evaluation.hpp"
#include "kv_setup.hpp"
#include "prompt_pruning.hpp"
#include "reconstruction.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Json;
using cbq::Result;
using cbq::Status;

namespace {

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : " ") + part;
  return text;
}

// One line of JSON.
std::string line_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Size and time of the last change of a file.
Result<std::string> stamp_of(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) return cbq::system_error("cannot ask for the file's size", path, errno);
  return path + " " + std::to_string(status.st_size) + " " + std::to_string(status.st_mtim.tv_sec) + "." +
         std::to_string(status.st_mtim.tv_nsec);
}

// The files of a model, in order: the file itself, or those of its folder.
std::vector<std::string> model_files(const std::string& model) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(model, ignored)) return {model};
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(model, ignored)) {
    const std::string kind = entry.path().extension().string();
    if (kind == ".json" || kind == ".safetensors" || kind == ".model") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

Result<AblationResults> AblationResults::open(std::string path) {
  AblationResults results(std::move(path));
  if (::access(results.path_.c_str(), F_OK) != 0) return results;
  const Result<std::string> text = read_text(results.path_);
  if (!text) return text.error();
  for (std::size_t at = 0; at < text->size();) {
    const std::size_t end = std::min(text->find('\n', at), text->size());
    Result<Json> json = cbq::parse_json(std::string_view(*text).substr(at, end - at));
    at = end + 1;
    if (!json) continue;
    const Result<std::string_view> key = cbq::json_string(*json, "key");
    if (!key) continue;
    const std::string name(*key);
    if (results.results_.insert_or_assign(name, *std::move(json)).second) results.order_.push_back(name);
  }
  return results;
}

const Json* AblationResults::find(const std::string& key) const {
  const auto found = results_.find(key);
  return found == results_.end() ? nullptr : &found->second;
}

Status AblationResults::add(const std::string& key, Json result) {
  result["key"] = key;
  if (results_.insert_or_assign(key, std::move(result)).second) order_.push_back(key);
  std::string text;
  for (const std::string& name : order_) text += line_of(results_.at(name));
  return cbq::write_file(path_, text);
}

QuantizedRow::~QuantizedRow() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Result<Ablation> Ablation::create(const AblateCommand& command) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  Result<ModelSource> source = open_source(command.common.model);
  if (!source) return source.error();
  Ablation ablation(command, *std::move(source), *machine);
  if (const Status done = ablation.read_stamps(); !done) return done.error();
  if (const Status done = ablation.read_texts(); !done) return done.error();
  if (command.items.empty()) return ablation;
  Result<std::vector<TokenizedItem>> items = read_items(command.items, ablation.source_);
  if (!items) return items.error();
  ablation.items_ = *std::move(items);
  return ablation;
}

Status Ablation::read_stamps() {
  std::vector<std::string> paths = model_files(command_.common.model.path);
  paths.insert(paths.end(), command_.texts.begin(), command_.texts.end());
  paths.insert(paths.end(), command_.calibration.begin(), command_.calibration.end());
  if (!command_.items.empty()) paths.push_back(command_.items);
  for (const std::string& path : paths) {
    Result<std::string> stamp = stamp_of(path);
    if (!stamp) return stamp.error();
    stamps_.push_back(*std::move(stamp));
  }
  return {};
}

Status Ablation::read_texts() {
  const Result<Tokenizer> tokenizer = source_.tokenizer();
  if (!tokenizer) return tokenizer.error();
  for (const std::string& path : command_.texts) {
    const Result<std::string> text = read_text(path);
    if (!text) return text.error();
    Result<std::vector<std::int32_t>> tokens = tokenizer->encode(*text);
    if (!tokens) return cbq::in_context(tokens.error(), path);
    if (tokens->size() < command_.context) {
      return Error{Errc::bad_argument, "the text is shorter than one window", path, tokens->size(), command_.context};
    }
    texts_.push_back({path, *std::move(tokens)});
  }
  return {};
}

std::vector<std::string> Ablation::arguments(const AblationRow& row) const {
  std::vector<std::string> all = {"--scheme", row.scheme, "--seed", std::to_string(row.seed), "--head-bits", "16"};
  if (!command_.calibration.empty()) all.push_back("--calibration");
  all.insert(all.end(), command_.calibration.begin(), command_.calibration.end());
  if (command_.steps != 0) all.insert(all.end(), {"--steps", std::to_string(command_.steps)});
  const std::vector<std::string> common = split_options(command_.options);
  all.insert(all.end(), common.begin(), common.end());
  all.insert(all.end(), row.options.begin(), row.options.end());
  return all;
}

std::string Ablation::key(const AblationRow& row) const {
  return key(row, row.run);
}

std::string Ablation::key(const AblationRow& row, const std::vector<std::string>& run) const {
  Json what = {{"model", command_.common.model.path},
               {"pre_tokenizer", command_.common.model.pre_tokenizer},
               {"files", stamps_},
               {"context", command_.context},
               {"windows", command_.windows},
               {"texts", command_.texts},
               {"items", command_.items}};
  if (!row.scheme.empty()) what["arguments"] = arguments(row);
  if (!run.empty()) what["run"] = run;
  const std::string text = line_of(what);
  char digits[32] = {};
  (void)std::snprintf(digits, sizeof digits, "%016llx",
                      static_cast<unsigned long long>(cbq::hash_bytes(std::as_bytes(std::span(text)))));
  return digits;
}

Status Ablation::check(const AblationRow& row) const {
  const Result<PerplexityCommand> run = command_.parse_run(row.run);
  if (!run) return cbq::in_context(run.error(), row.name);
  if (row.scheme.empty()) return {};
  const Result<QuantizeCommand> command = command_.parse(arguments(row));
  if (!command) return cbq::in_context(command.error(), row.name);
  const Result<QuantizationOptions> options = quantization_options(*command, machine_);
  return options ? Status() : Status(cbq::in_context(options.error(), row.name));
}

Status Ablation::quantize_row(const AblationRow& row, QuantizedRow& quantized) const {
  const std::string& output = quantized.path();
  Json& result = quantized.figures;
  const Result<QuantizeCommand> command = command_.parse(arguments(row));
  if (!command) return command.error();
  Result<QuantizationOptions> options = quantization_options(*command, machine_);
  if (!options) return options.error();
  options->resume = Resume::yes;
  result["resumed"] = ::access(checkpoint_path(output).c_str(), F_OK) == 0;
  const bool fresh = restart_peak_memory();
  const Stopwatch watch;
  const Result<QuantizationReport> done = quantize(source_, output, *options);
  if (!done) return done.error();
  result["seconds"] = watch.seconds();
  if (const auto bytes = peak_memory_bytes(); fresh && bytes) result["peak_memory_bytes"] = *bytes;
  result["bits_per_weight"] = done->bits_per_weight;
  result["file_bytes"] = done->file_bytes;
  result["calibration_tokens"] = done->calibration_tokens;
  result["trained_parameters"] = done->trained_parameters;
  result["reconstruction"] = Json::array();
  for (const cbq::WindowReport& entry : done->windows) result["reconstruction"].push_back(window_json(entry));
  return {};
}

Status Ablation::measure_texts(const LoadedModel& loaded, const Model* reference, const AblationRow& row,
                               Json& result) const {
  const Result<PerplexityCommand> run = command_.parse_run(row.run);
  if (!run) return run.error();
  const Result<KvSetup> kv = KvSetup::create(run->kv, loaded, machine_);
  if (!kv) return kv.error();
  const Model& model = loaded.model;
  const auto tokens = pruning_of(run->prune, model.config(), model.activation_bits());
  if (!tokens) return tokens.error();
  EvaluationOptions options;
  options.context = command_.context;
  options.windows = command_.windows;
  options.machine = machine_;
  options.kv = kv->options();
  options.kv.operators = run->operators;
  options.kv.use = KvUse::teacher_forcing;
  if (*tokens) options.low_bit_tokens = &**tokens;
  if (run->kv.scheme != KvArguments().scheme) {
    Report report;
    kv->describe(report);
    result["kv_bytes_per_token"] = report.kv_bytes_per_token.value_or(0);
  }
  for (const Text& text : texts_) {
    const Result<Evaluation> done = evaluate(model, reference, text.tokens, options);
    if (!done) return cbq::in_context(done.error(), text.path);
    Json entry = {{"text", text.path},        {"perplexity", done->perplexity},
                  {"nll", done->nll},         {"nll_stderr", done->nll_stderr.value_or(0)},
                  {"windows", done->windows}, {"tokens", done->tokens}};
    if (done->divergence) {
      entry["kl_mean"] = done->divergence->kl_mean;
      entry["kl_p99"] = done->divergence->kl_p99;
      entry["top1_agreement"] = done->divergence->top1_agreement;
    }
    result["texts"].push_back(std::move(entry));
  }
  return {};
}

Status Ablation::measure(const std::string& path, const AblationRow& row, Json& result) const {
  const Result<PerplexityCommand> run = command_.parse_run(row.run);
  if (!run) return run.error();
  const Result<LoadedModel> reference = load_model(command_.common.model);
  if (!reference) return reference.error();
  std::optional<LoadedModel> other;
  if (!row.scheme.empty()) {
    LoadOptions options;
    options.operators = run->operators;
    Result<LoadedModel> loaded = load_model({path, {}}, options);
    if (!loaded) return loaded.error();
    other.emplace(*std::move(loaded));
  } else {
    result["bits_per_weight"] = reference->bits_per_weight;
    result["file_bytes"] = reference->source.file_bytes();
  }
  const LoadedModel& loaded = other ? *other : *reference;
  const bool is_reference = row.scheme.empty() && row.run.empty();
  const Status done = measure_texts(loaded, is_reference ? nullptr : &reference->model, row, result);
  if (!done) return done;
  if (items_.empty() || !row.run.empty()) return {};  // choices know of no caches and no bits of tokens
  const Result<ChoiceResult> chosen = choose(loaded.model, items_, {.machine = machine_});
  if (!chosen) return chosen.error();
  result["items"] = items_.size();
  result["accuracy"] = chosen->accuracy;
  result["accuracy_stderr"] = chosen->standard_error;
  result["chosen"] = chosen->chosen;
  return {};
}

Result<Json> Ablation::run(const AblationRow& row, const std::string& work, std::unique_ptr<QuantizedRow>& last) const {
  Json result = {{"model", command_.common.model.path},
                 {"name", row.name},
                 {"scheme", row.scheme},
                 {"seed", row.seed},
                 {"context", command_.context},
                 {"isa", cbq::isa_name(machine_.isa)},
                 {"threads", machine_.threads},
                 {"texts", Json::array()}};
  if (!row.run.empty()) result["run"] = joined(row.run);
  std::string path = command_.common.model.path;
  if (!row.scheme.empty()) {
    result["options"] = joined(arguments(row));
    const std::string name = key(row, {});
    if (!last || last->key() != name) {
      last.reset();
      auto quantized = std::make_unique<QuantizedRow>(name, work + "/" + name);
      if (const Status done = quantize_row(row, *quantized); !done) return done.error();
      last = std::move(quantized);
    }
    result.update(last->figures);
    path = last->path();
  }
  if (const Status done = measure(path, row, result); !done) return done.error();
  return result;
}

}  // namespace cbq_llama
