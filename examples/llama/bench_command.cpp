// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <utility>

#include "commands.hpp"
#include "speed.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::array<std::pair<Operation, const char*>, 5> operations = {{
    {Operation::attention_projections, "attention_projections"},
    {Operation::mlp_projections, "mlp_projections"},
    {Operation::head, "head"},
    {Operation::cache_writes, "cache_writes"},
    {Operation::attention, "attention"},
}};

double seconds_of(const PhaseTimes& phase, Operation operation) {
  return phase.operations.seconds[static_cast<std::size_t>(operation)];
}

// What neither linear operators nor caches account for: norms, rotary positions, activation functions.
double rest_of(const PhaseTimes& phase) {
  double rest = phase.total;
  for (const auto& [operation, name] : operations) rest -= seconds_of(phase, operation);
  return rest;
}

void print_profile(const char* title, const PhaseTimes& phase, std::FILE* out) {
  (void)std::fprintf(out, "%-12s", title);
  for (const auto& [operation, name] : operations) {
    (void)std::fprintf(out, " %s %.1f %%,", name, 100 * seconds_of(phase, operation) / phase.total);
  }
  (void)std::fprintf(out, " norms and the rest %.1f %%\n", 100 * rest_of(phase) / phase.total);
}

cbq::Json profile_json(const PhaseTimes& phase) {
  cbq::Json json = {{"seconds", phase.total}, {"rest", rest_of(phase)}};
  for (const auto& [operation, name] : operations) json[name] = seconds_of(phase, operation);
  return json;
}

}  // namespace

Status run(const BenchCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  if (command.runs == 0 || command.prompt_tokens + command.new_tokens == 0) {
    return Error{Errc::bad_argument, "nothing to measure", "runs and tokens", 0, "at least 1"};
  }
  Profile profile;
  LoadOptions load;
  load.profile = command.profile ? &profile : nullptr;
  load.packed_cache = {command.common.packed_cache, machine->threads, console.err};
  const Stopwatch watch;
  const Result<LoadedModel> loaded = load_model(command.common.model, load);
  const double load_seconds = watch.seconds();
  if (!loaded) return loaded.error();
  SpeedOptions options;
  options.prompt_tokens = command.prompt_tokens;
  options.new_tokens = command.new_tokens;
  options.runs = command.runs;
  options.machine = *machine;
  const Result<KvSetup> kv = KvSetup::create(command.kv, *loaded, *machine);
  if (!kv) return kv.error();
  options.kv = kv->options();
  const auto pruning = pruning_of(command.prune, loaded->model.config(), loaded->model.activation_bits());
  if (!pruning) return pruning.error();
  options.pruning = *pruning;
  const Result<Speed> speed = measure_speed(loaded->model, load.profile, options);
  if (!speed) return speed.error();

  Report report = describe(command.common.model.path, *loaded, *machine);
  kv->describe(report);
  report.seed = options.seed;
  if (command.prompt_tokens != 0) report.prompt_tokens_per_second = speed->prompt_tokens_per_second;
  if (command.new_tokens != 0) report.new_tokens_per_second = speed->new_tokens_per_second;
  report.seconds = speed->prompt.total + speed->generation.total;
  report.peak_memory_bytes = peak_memory_bytes();
  if (prints_text(command.common)) {
    std::FILE* out = console.out;
    (void)std::fprintf(out, "model       %s (%s, %.3f bits per weight)\n", report.model.c_str(), report.scheme.c_str(),
                       *report.bits_per_weight);
    (void)std::fprintf(out, "cache       %s\n", kv_text(report).c_str());
    (void)std::fprintf(out, "loaded      in %.1f ms\n", 1000 * load_seconds);
    (void)std::fprintf(out, "prompt      %.1f tokens/s (%zu tokens)\n", speed->prompt_tokens_per_second,
                       command.prompt_tokens);
    (void)std::fprintf(out, "new tokens  %.1f tokens/s (%zu tokens after the prompt)\n", speed->new_tokens_per_second,
                       command.new_tokens);
    (void)std::fprintf(out, "run         medians of %zu, %zu threads, %s", command.runs, machine->threads,
                       report.isa.c_str());
    if (report.peak_memory_bytes) {
      (void)std::fprintf(out, ", peak memory %s", size_text(*report.peak_memory_bytes).c_str());
    }
    (void)std::fprintf(out, "\n");
    if (command.profile) {
      print_profile("prompt", speed->prompt, out);
      print_profile("new tokens", speed->generation, out);
    }
  }
  cbq::Json json = to_json(report);
  json["load_seconds"] = load_seconds;
  json["prompt_tokens"] = command.prompt_tokens;
  json["new_tokens"] = command.new_tokens;
  json["prune"] = command.prune.sparsity;
  if (command.profile) {
    json["profile"] = {{"prompt", profile_json(speed->prompt)}, {"new_tokens", profile_json(speed->generation)}};
  }
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
