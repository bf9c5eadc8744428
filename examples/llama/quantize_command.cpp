// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <string>

#include "commands.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

void explain(const QuantizationReport& report, std::FILE* out) {
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
  (void)std::fprintf(out, "norms, biases and learned positions stay in floating point: they are small and cheap\n");
  (void)std::fprintf(out, "error: root of the squared error over the squared weights\n");
}

cbq::Json module_json(const ModuleReport& entry) {
  return {{"module", entry.module.name},
          {"outputs", entry.module.outputs},
          {"inputs", entry.module.inputs},
          {"scheme", entry.scheme ? cbq::Json(cbq::scheme_name(*entry.scheme).c_str()) : cbq::Json(nullptr)},
          {"bits_per_weight", entry.bits_per_weight},
          {"relative_error", entry.relative_error},
          {"reason", entry.reason.empty() ? cbq::Json(nullptr) : cbq::Json(entry.reason)}};
}

}  // namespace

Status run(const QuantizeCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  const Result<cbq::Scheme> scheme = cbq::parse_scheme(command.scheme.c_str());
  if (!scheme) return scheme.error();
  if (command.method == "rtn" && !command.reconstruction.calibration.empty()) {
    (void)std::fprintf(console.err, "cbq-llama: note: rounding to nearest needs no calibration text; %s is not read\n",
                       command.reconstruction.calibration.front().c_str());
  }
  const auto start = std::chrono::steady_clock::now();
  const Result<ModelSource> source = ModelSource::open(command.common.model.path, command.common.model.pre_tokenizer);
  if (!source) return source.error();
  QuantizationOptions options;
  options.rules = {{"*", *scheme}};
  options.head_bits = command.head_bits;
  options.range = command.range;
  options.method = command.method;
  options.reconstruction = command.reconstruction;
  options.threads = machine->threads;
  const Result<QuantizationReport> done = quantize(*source, command.output, options);
  if (!done) return done.error();

  Report report;
  report.model = command.output;
  report.scheme = cbq::scheme_name(*scheme).c_str();
  report.method = command.method;
  report.isa = cbq::isa_name(machine->isa);
  report.threads = machine->threads;
  report.bits_per_weight = done->bits_per_weight;
  report.file_bytes = done->file_bytes;
  report.peak_memory_bytes = peak_memory_bytes();
  report.calibration_tokens = done->calibration_tokens;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (prints_text(command.common)) {
    if (command.explain) explain(*done, console.out);
    (void)std::fprintf(console.out, "%s: %s, %.3f bits per weight (scales and zero points included), %s, %.2f s\n",
                       command.output.c_str(), report.scheme.c_str(), done->bits_per_weight,
                       size_text(done->file_bytes).c_str(), *report.seconds);
  }
  cbq::Json json = to_json(report);
  if (command.explain) {
    json["modules"] = cbq::Json::array();
    for (const ModuleReport& entry : done->modules) json["modules"].push_back(module_json(entry));
  }
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
