// SPDX-License-Identifier: Apache-2.0

// Runs baselines and ablations one after another and writes what they measured: results.jsonl as they come, then
// results.md and the plots.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <cbq/io/atomic_file.hpp>

#include "ablation.hpp"
#include "ablation_report.hpp"
#include "commands.hpp"
#include "interrupt.hpp"
#include "preprocessing.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Json;
using cbq::Result;
using cbq::Status;

namespace {

std::string title_of(const AblationRow& row) {
  if (row.scheme.empty()) return row.name;
  return row.scheme + " " + row.name + ", seed " + std::to_string(row.seed);
}

std::string work_folder(const AblateCommand& command) {
  return command.output + "/.ablate-work";
}

Status create_folder(const std::string& path) {
  std::error_code failure;
  std::filesystem::create_directories(path, failure);
  if (failure) return cbq::system_error("cannot create a folder", path, failure.value());
  return {};
}

double figure(const Json& json, const char* name) {
  const Result<double> value = cbq::json_number(json, name);
  return value ? *value : 0.0;
}

void print_result(const AblationRow& row, const Json& result, std::FILE* out) {
  (void)std::fprintf(out, "%-52s", title_of(row).c_str());
  for (const Json& text : result.at("texts")) {
    (void)std::fprintf(out, "  perplexity %.3f", figure(text, "perplexity"));
    if (text.contains("kl_mean")) (void)std::fprintf(out, ", KL %.5f", figure(text, "kl_mean"));
  }
  if (result.contains("accuracy")) (void)std::fprintf(out, "  choices %.1f %%", 100 * figure(result, "accuracy"));
  if (result.contains("seconds")) (void)std::fprintf(out, "  %.1f s", figure(result, "seconds"));
  (void)std::fprintf(out, "\n");
  (void)std::fflush(out);
}

void print_plan(const Ablation& ablation, const AblationResults& results, const std::vector<AblationRow>& rows,
                std::FILE* out) {
  for (const AblationRow& row : rows) {
    const char* const state = results.find(ablation.key(row)) == nullptr ? "" : "done";
    std::string options;
    for (const std::string& option : row.options) options += " " + option;
    if (!row.run.empty()) options += " | run with";
    for (const std::string& option : row.run) options += " " + option;
    (void)std::fprintf(out, "%-4s  %-52s %s\n", state, title_of(row).c_str(), options.c_str());
  }
}

// The map of outlier channels before and after CFP, on a few sequences of the calibration text.
Status draw_outliers(const AblateCommand& command, const Ablation& ablation, const std::string& scheme,
                     const std::string& path) {
  QuantizationOptions options;
  const Result<NamedScheme> parsed = parse_named_scheme(scheme);
  if (!parsed) return parsed.error();
  options.rules = {{"*", parsed->scheme}};
  options.head_bits = 16;
  options.preprocessing = Preprocessing::cfp;
  options.threads = ablation.machine().threads;
  options.calibration.texts = command.calibration;
  options.calibration.samples = 16;
  options.calibration.sequence = std::min<std::size_t>(command.context, ablation.source().config().context);
  const Result<std::vector<std::int32_t>> ids = calibration_tokens(ablation.source(), options.calibration);
  if (!ids) return ids.error();
  const CalibrationTokens tokens = {*ids, options.calibration.sequence};
  const auto plan = plan_quantization(ablation.source().config(), options);
  if (!plan) return plan.error();
  ChangedWeights weights(ablation.source());
  const auto before = input_sizes(tokens, options, weights);
  if (!before) return before.error();
  if (const Status done = preprocess(*plan, tokens, options, weights); !done) return done;
  const auto after = input_sizes(tokens, options, weights);
  if (!after) return after.error();
  return cbq::write_file(path, outlier_plot(*before, *after, base_name(command.common.model.path)));
}

// Runs what is not there yet; results in the order of the rows, null where a row failed.
Result<std::vector<Json>> run_rows(const AblateCommand& command, const Ablation& ablation, AblationResults& results,
                                   const std::vector<AblationRow>& rows, const Console& console) {
  std::vector<Json> all;
  std::unique_ptr<QuantizedRow> last;
  for (const AblationRow& row : rows) {
    const std::string key = ablation.key(row);
    if (const Json* const known = results.find(key)) {
      all.push_back(*known);
      continue;
    }
    Result<Json> result = ablation.run(row, work_folder(command), last);
    if (!result) {
      const Errc code = result.error().code;
      if (code == Errc::interrupted || code == Errc::io || code == Errc::out_of_memory) return result.error();
      std::string message;
      cbq::append_message(message, result.error());
      (void)std::fprintf(console.err, "cbq-llama: %s: %s\n", title_of(row).c_str(), message.c_str());
      all.emplace_back(nullptr);
      continue;
    }
    if (prints_text(command.common)) print_result(row, *result, console.out);
    if (const Status done = results.add(key, *result); !done) return done.error();
    all.push_back(*std::move(result));
  }
  return all;
}

Status write_report(const AblateCommand& command, const Ablation& ablation, const std::vector<AblationRow>& rows,
                    const std::vector<Json>& results) {
  const std::string folder = command.output + "/";
  const std::string model = base_name(command.common.model.path);
  const std::vector<AblationOutcome> outcomes = gather(rows, results);
  if (const Status done = cbq::write_file(folder + "results.md", ablation_table(outcomes)); !done) return done;
  if (const Status done = cbq::write_file(folder + "perplexity.svg", perplexity_plot(outcomes, model)); !done)
    return done;
  if (const std::string plot = window_plot(outcomes, model); !plot.empty()) {
    if (const Status done = cbq::write_file(folder + "windows.svg", plot); !done) return done;
  }
  const std::vector<std::string> schemes = schemes_of(outcomes);
  if (command.calibration.empty() || schemes.empty()) return {};
  return draw_outliers(command, ablation, schemes.front(), folder + "outliers.svg");
}

// Whether rows give such names: a key, and perhaps an ending.
bool is_of_row(const std::string& name) {
  constexpr std::size_t digits = 16;
  const std::size_t end = std::min(name.find_first_not_of("0123456789abcdef"), name.size());
  return end == digits && (name.size() == digits || name[digits] == '.');
}

// Removes what killed runs left; the folder stays while it holds what rows can resume, or what others put there.
void tidy(const std::string& work) {
  std::error_code ignored;
  std::vector<std::filesystem::path> left;
  for (const auto& entry : std::filesystem::directory_iterator(work, ignored)) {
    const std::filesystem::path& path = entry.path();
    if (is_of_row(path.filename().string()) && path.extension() != ".checkpoint") left.push_back(path);
  }
  for (const std::filesystem::path& path : left) (void)std::filesystem::remove_all(path, ignored);
  (void)std::filesystem::remove(work, ignored);
}

}  // namespace

Status run(const AblateCommand& command, const Console& console) {
  const Result<Ablation> ablation = Ablation::create(command);
  if (!ablation) return ablation.error();
  const std::vector<AblationRow> rows = ablation_rows(command.selection);
  if (rows.size() < 2) return Error{Errc::bad_argument, "no row has such a name (--list prints them)", "--only"};
  for (const AblationRow& row : rows) {
    if (const Status understood = ablation->check(row); !understood) return understood;
  }
  Result<AblationResults> results = AblationResults::open(command.output + "/results.jsonl");
  if (!results) return results.error();
  if (command.list) {
    print_plan(*ablation, *results, rows, console.out);
    return {};
  }
  if (const Status done = create_folder(work_folder(command)); !done) return done;
  const Result<std::vector<Json>> all = run_rows(command, *ablation, *results, rows, console);
  if (!all) return all.error();
  if (const Status done = write_report(command, *ablation, rows, *all); !done) return done;
  tidy(work_folder(command));
  Json json = {{"model", command.common.model.path}, {"results", *all}};
  if (const Status done = write_json(command.common, json, console); !done) return done;
  const auto failed = static_cast<std::size_t>(std::count(all->begin(), all->end(), Json(nullptr)));
  if (failed == 0) return {};
  return Error{Errc::bad_argument, "not all rows could be run", command.output,
               ErrorText(failed) << " of " << rows.size() << " failed"};
}

}  // namespace cbq_llama
