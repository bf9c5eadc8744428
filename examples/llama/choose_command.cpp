// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "commands.hpp"
#include "multiple_choice.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

void print(const Report& report, const ChooseCommand& command, const ChoiceResult& result, std::FILE* out) {
  (void)std::fprintf(out, "model       %s (%s, %.3f bits per weight, %s)\n", report.model.c_str(),
                     report.scheme.c_str(), *report.bits_per_weight, size_text(*report.file_bytes).c_str());
  (void)std::fprintf(out, "items       %s: %zu, chance %.1f %%\n", command.items.c_str(), result.chosen.size(),
                     100 * result.chance);
  (void)std::fprintf(out, "accuracy    %.2f %% (standard error %.2f %%; likelihoods not divided by lengths: %.2f %%)\n",
                     100 * result.accuracy, 100 * result.standard_error, 100 * result.accuracy_of_sums);
  (void)std::fprintf(out, "run         %.2f s, %zu threads, %s\n", result.seconds, *report.threads, report.isa.c_str());
}

}  // namespace

Status run(const ChooseCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  LoadOptions load;
  load.operators = command.operators;
  load.packed_cache = {command.common.packed_cache, machine->threads, console.err};
  const Result<LoadedModel> loaded = load_model(command.common.model, load);
  if (!loaded) return loaded.error();
  const Result<std::vector<TokenizedItem>> items = read_items(command.items, loaded->source);
  if (!items) return items.error();
  const Result<ChoiceResult> result = choose(loaded->model, *items, {.machine = *machine});
  if (!result) return result.error();

  Report report = describe(command.common.model.path, *loaded, *machine);
  report.seconds = result->seconds;
  report.peak_memory_bytes = peak_memory_bytes();
  if (prints_text(command.common)) print(report, command, *result, console.out);
  cbq::Json json = to_json(report);
  json["items"] = result->chosen.size();
  json["accuracy"] = result->accuracy;
  json["accuracy_stderr"] = result->standard_error;
  json["accuracy_of_sums"] = result->accuracy_of_sums;
  json["chance"] = result->chance;
  json["right_log_likelihood"] = result->right_log_likelihood;
  json["chosen"] = result->chosen;
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
