// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include "commands.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

const char* what_rotates(Rotation rotation) {
  switch (rotation) {
    case Rotation::offline:
      return "offline: residual stream and value heads";
    case Rotation::full:
      return "full: residual stream, value heads, and the inputs of the last matrix of each block at run time";
    case Rotation::none:
      break;
  }
  return "none";
}

// Static activations.
void print_inputs(const QuantizationReport& report, std::FILE* out) {
  bool any = false;
  for (const ModuleReport& entry : report.modules) {
    if (!entry.inputs) continue;
    if (!any)
      (void)std::fprintf(out, "%-40s %11s %5s %9s %9s  channels by factor\n", "static input of", "step", "zero",
                         "plain", "error");
    any = true;
    const StaticInput& input = *entry.inputs;
    (void)std::fprintf(out, "%-40s %11.5g %5d %9.5f %9.5f ", entry.module.name.c_str(),
                       static_cast<double>(input.grid.scale), input.grid.zero, std::sqrt(input.plain_error),
                       std::sqrt(input.error));
    for (std::size_t i = 0; i < input.channels.size(); ++i) {
      if (input.channels[i] != 0) (void)std::fprintf(out, " %zu of 2^%zu", input.channels[i], i);
    }
    (void)std::fprintf(out, "\n");
  }
}

void explain(const QuantizationReport& report, const QuantizationOptions& options, std::FILE* out) {
  (void)std::fprintf(out, "rotation %s%s\n", what_rotates(report.rotation),
                     options.rotation ? "" : " (default: full where activations have 4 bits)");
  (void)std::fprintf(out, "%-40s %13s  %-16s %7s  %8s\n", "tensor", "shape", "scheme", "bits", "error");
  for (const ModuleReport& entry : report.modules) {
    const std::string shape = std::to_string(entry.module.outputs) + " x " + std::to_string(entry.module.inputs);
    (void)std::fprintf(out, "%-40s %13s  ", entry.module.name.c_str(), shape.c_str());
    if (entry.scheme) {
      (void)std::fprintf(out, "%-16s %7.3f  %8.5f\n", cbq::scheme_name(*entry.scheme).c_str(), entry.bits_per_weight,
                         entry.relative_error);
    } else {
      (void)std::fprintf(out, "%-16s %7.3f  %8s  %s\n", "float", entry.bits_per_weight, "-", entry.reason.c_str());
    }
  }
  print_inputs(report, out);
  (void)std::fprintf(out, "norms, biases and learned positions stay in floating point: they are small and cheap\n");
  (void)std::fprintf(out, "error: root of the squared error over the squared weights\n");
}

cbq::Json input_json(const StaticInput& input) {
  return {{"scale", input.grid.scale},
          {"zero", input.grid.zero},
          {"channels_by_exponent", input.channels},
          {"relative_error_without_factors", std::sqrt(input.plain_error)},
          {"relative_error", std::sqrt(input.error)}};
}

cbq::Json module_json(const ModuleReport& entry) {
  return {{"module", entry.module.name},
          {"static_input", entry.inputs ? input_json(*entry.inputs) : cbq::Json(nullptr)},
          {"outputs", entry.module.outputs},
          {"inputs", entry.module.inputs},
          {"scheme", entry.scheme ? cbq::Json(cbq::scheme_name(*entry.scheme).c_str()) : cbq::Json(nullptr)},
          {"bits_per_weight", entry.bits_per_weight},
          {"relative_error", entry.relative_error},
          {"reason", entry.reason.empty() ? cbq::Json(nullptr) : cbq::Json(entry.reason)}};
}

// Methods of the command line as those of quantize(): some are others with settings of their own.
void set_method(const QuantizeCommand& command, QuantizationOptions& options) {
  options.method = command.method;
  options.preprocessing = command.preprocessing;
  options.rotation = command.rotation;
  options.calibration = command.calibration;
  options.reconstruction = command.reconstruction;
  options.gptq = command.gptq;
  options.resume = command.resume ? Resume::yes : Resume::no;
  options.cache = command.cache;
  if (command.method == "smoothquant") {
    options.method = "rtn";
    options.preprocessing = Preprocessing::smoothquant;
  } else if (command.method == "adaround") {
    options.method = "cbq";
    options.reconstruction.windows = {.size = 1, .overlap = 0};
    options.reconstruction.logits_weight = 0;
    options.reconstruction.clip_rate = 0;
    options.reconstruction.rounding.method = cbq::RoundingMethod::ada;
  } else if (command.method == "agile") {
    options.method = command.agile.weights;
    options.method_name = "agile";
    options.rotation = command.rotation.value_or(Rotation::none);
    options.activations.percentile = command.agile.percentile;
    options.prune = command.prune;
  } else if (command.method == "wkvquant") {
    cbq::WindowOptions& windows = options.reconstruction.windows;
    windows.overlap = windows.size - 1;
    windows.ends = cbq::WindowEnds::shrinking;
    options.reconstruction.trained = cbq::TrainedBlocks::first;
    options.reconstruction.clip_rate = 0;
  }
}

// Makes activations per tensor where they are to be static.
Status fix_activations(const AgileArguments& agile, const NamedScheme& named, QuantizationOptions& options) {
  using cbq::ActivationRanges;
  if (named.trip && agile.ranges == ActivationRanges::dynamic) {
    return Error{Errc::bad_argument, "channel factors need static activations", "--activations", "dynamic"};
  }
  bool any = false;
  for (SchemeRule& rule : options.rules) {
    const cbq::Grid& grid = rule.scheme.activation;
    any = any || grid.bits != 16;
    if (grid.bits == 16 || grid.granularity == cbq::Granularity::per_group) continue;
    const bool fixed = grid.bits == 4 || named.trip || grid.granularity == cbq::Granularity::per_tensor;
    if (agile.ranges.value_or(fixed ? ActivationRanges::fixed : ActivationRanges::dynamic) == ActivationRanges::dynamic)
      continue;
    rule.scheme = cbq::with_tensor_activations(rule.scheme);
    options.activations.fixed = true;
  }
  if (named.trip && !options.activations.fixed) {
    return Error{Errc::bad_argument, "channel factors are for activations of 4 or 8 bits", "--scheme"};
  }
  if (!any) {
    return Error{Errc::bad_argument, "agile quantizes activations, and this leaves all in floating point", "--scheme"};
  }
  if (agile.ranges == ActivationRanges::fixed && !options.activations.fixed) {
    return Error{Errc::bad_argument, "activations per group have no static grid", "--activations", "static"};
  }
  if (agile.percentile && !options.activations.fixed) {
    return Error{Errc::bad_argument, "a percentile is of static activations, and all are dynamic", "--percentile"};
  }
  options.activations.largest_exponent = named.trip ? agile.largest_exponent : 0;
  return {};
}

// Whether calibration can drop tokens as it is told.
Status check_pruning(const QuantizationOptions& options) {
  if (options.prune.sparsity == 0) return {};
  if (!options.activations.fixed) {
    return Error{Errc::bad_argument, "calibration drops tokens for static activations, and all are dynamic", "--prune"};
  }
  if (options.preprocessing != Preprocessing::none || options.rotation != Rotation::none) {
    return Error{Errc::unsupported, "calibration that drops tokens is of a model as its files are", "--prune", "",
                 "no --preprocess and no --rotate"};
  }
  return {};
}

Status set_rules(const QuantizeCommand& command, QuantizationOptions& options) {
  options.rules = command.schemes;
  NamedScheme named;
  if (!command.scheme.empty()) {
    const Result<NamedScheme> parsed = parse_named_scheme(command.scheme);
    if (!parsed) return parsed.error();
    named = *parsed;
    options.rules.push_back({"*", named.scheme});
  }
  if (named.trip && command.method != "agile") {
    return Error{Errc::bad_argument, "channel factors go with --method agile", "--scheme", command.scheme};
  }
  return command.method == "agile" ? fix_activations(command.agile, named, options) : Status();
}

void print_memory(const MemoryEstimate& estimate, std::FILE* out) {
  (void)std::fprintf(
      out, "memory: %s at the peak: window %s, gradients %s, optimizer %s, activations %s, batch %s, rest %s\n",
      size_text(estimate.total()).c_str(), size_text(estimate.weights).c_str(), size_text(estimate.gradients).c_str(),
      size_text(estimate.optimizer).c_str(), size_text(estimate.activations).c_str(), size_text(estimate.batch).c_str(),
      size_text(estimate.rest).c_str());
  if (!estimate.spilled) return;
  (void)std::fprintf(out,
                     "memory: the budget leaves no room for activations: %s in temporary files beside the result\n",
                     size_text(estimate.spilled_bytes).c_str());
}

cbq::Json memory_json(const MemoryEstimate& estimate) {
  return {{"total", estimate.total()},       {"window", estimate.weights},          {"gradients", estimate.gradients},
          {"optimizer", estimate.optimizer}, {"activations", estimate.activations}, {"batch", estimate.batch},
          {"rest", estimate.rest},           {"spilled", estimate.spilled_bytes}};
}

// All windows, or those that did not go as planned.
void print_windows(const QuantizationReport& report, const QuantizeCommand& command, std::FILE* out) {
  for (const cbq::WindowReport& entry : report.windows) {
    if (!command.explain && !entry.kept_start && entry.restarts == 0) continue;
    const std::size_t first = entry.window.first, last = first + entry.window.count - 1;
    (void)std::fprintf(out, "blocks %zu to %zu: loss of hard codes %.4g -> %.4g", first, last, entry.loss_before,
                       entry.loss_after);
    if (entry.restarts != 0) {
      (void)std::fprintf(out, ", %zu restarts at lower rates after losses that were not finite", entry.restarts);
    }
    if (entry.kept_start) (void)std::fprintf(out, ", training did not lower it: kept the start");
    (void)std::fprintf(out, "\n");
  }
}

// Options that rounding to nearest has no use for.
void note_unused(const QuantizeCommand& command, const QuantizationOptions& options, std::FILE* err) {
  const bool calibrates =
      options.method != "rtn" || options.preprocessing != Preprocessing::none || options.activations.fixed;
  if (calibrates) return;
  if (!command.calibration.texts.empty()) {
    (void)std::fprintf(err, "cbq-llama: note: rounding to nearest needs no calibration text; %s is not read\n",
                       command.calibration.texts.front().c_str());
  }
  if (command.memory_budget != 0) {
    (void)std::fprintf(err, "cbq-llama: note: rounding to nearest does not calibrate; --memory-budget is not used\n");
  }
}

}  // namespace

Result<NamedScheme> parse_named_scheme(const std::string& name) {
  constexpr std::string_view part = "_trip", ending = "_asym";
  const std::size_t end = name.size() - (name.ends_with(ending) ? ending.size() : 0);
  const bool trip = std::string_view(name).substr(0, end).ends_with(part);
  std::string rest = name;
  if (trip) rest.erase(end - part.size(), part.size());
  const Result<cbq::Scheme> scheme = cbq::parse_scheme(rest.c_str());
  if (!scheme) return scheme.error();
  return NamedScheme{*scheme, trip};
}

Result<QuantizationOptions> quantization_options(const QuantizeCommand& command, const Machine& machine) {
  QuantizationOptions options;
  if (const Status done = set_rules(command, options); !done) return done.error();
  options.head_bits = command.head_bits;
  options.attention_bits = command.attention_bits;
  options.memory_budget = command.memory_budget;
  options.range = command.range;
  set_method(command, options);
  options.threads = machine.threads;
  if (const Status fits = check_pruning(options); !fits) return fits.error();
  return options;
}

cbq::Json window_json(const cbq::WindowReport& entry) {
  return {{"first_block", entry.window.first}, {"blocks", entry.window.count}, {"loss_before", entry.loss_before},
          {"loss_after", entry.loss_after},    {"restarts", entry.restarts},   {"kept_start", entry.kept_start}};
}

Status run(const QuantizeCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  const Stopwatch watch;
  const Result<ModelSource> source = open_source(command.common.model);
  if (!source) return source.error();
  if (const Status used = check_rules(source->config(), command.schemes); !used) {
    return cbq::in_context(used.error(), command.recipe);
  }
  Result<QuantizationOptions> options = quantization_options(command, *machine);
  if (!options) return options.error();
  note_unused(command, *options, console.err);
  std::optional<MemoryEstimate> memory;
  options->announce = [&](const MemoryEstimate& estimate) {
    memory = estimate;
    if (!prints_text(command.common)) return;
    print_memory(estimate, console.out);
    (void)std::fflush(console.out);
  };
  const Result<QuantizationReport> done = quantize(*source, command.output, *options);
  if (!done) return done.error();

  Report report;
  report.model = command.output;
  report.scheme = options->rules.size() == 1 ? cbq::scheme_name(options->rules[0].scheme).c_str() : "mixed";
  report.method = command.method;
  report.isa = cbq::isa_name(machine->isa);
  report.threads = machine->threads;
  report.bits_per_weight = done->bits_per_weight;
  report.file_bytes = done->file_bytes;
  report.peak_memory_bytes = peak_memory_bytes();
  report.calibration_tokens = done->calibration_tokens;
  report.seconds = watch.seconds();
  if (prints_text(command.common)) {
    print_windows(*done, command, console.out);
    if (command.explain) explain(*done, *options, console.out);
    (void)std::fprintf(console.out, "%s: %s, %.3f bits per weight (scales and zero points included), %s, %.2f s\n",
                       command.output.c_str(), report.scheme.c_str(), done->bits_per_weight,
                       size_text(done->file_bytes).c_str(), *report.seconds);
  }
  cbq::Json json = to_json(report);
  if (memory) json["memory_estimate"] = memory_json(*memory);
  json["rotation"] = rotation_name(done->rotation);
  if (!cbq::is_float(options->cache.scheme)) json["kv_scheme"] = cbq::kv_scheme_name(options->cache.scheme).c_str();
  for (const cbq::WindowReport& entry : done->windows) json["reconstruction"].push_back(window_json(entry));
  if (!done->windows.empty()) json["trained_parameters"] = done->trained_parameters;
  if (command.explain) {
    json["modules"] = cbq::Json::array();
    for (const ModuleReport& entry : done->modules) json["modules"].push_back(module_json(entry));
  }
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
