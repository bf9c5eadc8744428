// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <string>

#include "commands.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

std::size_t parameter_count(const ModelConfig& config) {
  std::size_t count = 0;
  for (const MatrixModule& module : all_block_modules(config)) {
    count += module.outputs * module.inputs + (module.has_bias ? module.outputs : 0);
  }
  for (const FloatTensor& tensor : norm_tensors(config)) count += tensor.columns;
  for (const FloatTensor& tensor : embedding_tensors(config)) count += tensor.rows * tensor.columns;
  return count + (config.tied ? 1 : 2) * config.vocabulary * config.hidden;
}

// "F16 x 35, Q4_1 x 7": how the blocks' matrices are stored.
std::string storage_text(const ModelSource& source, const Model& model) {
  if (model.method() != "none") return model.scheme() + " (" + model.method() + ")";
  std::map<std::string, std::size_t> types;
  for (const MatrixModule& module : all_block_modules(source.config())) {
    if (const auto stored = source.find(module.name + ".weight")) ++types[stored->type];
  }
  std::string text;
  for (const auto& [type, count] : types) {
    if (!text.empty()) text += ", ";
    text += type + " x " + std::to_string(count);
  }
  return text;
}

}  // namespace

Status run(const InfoCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  const Result<LoadedModel> loaded = load_model(command.common.model);
  if (!loaded) return loaded.error();
  const Result<Tokenizer> tokenizer = loaded->source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  Report report = describe(command.common.model.path, *loaded, *machine);
  report.peak_memory_bytes = peak_memory_bytes();
  const ModelConfig& config = loaded->model.config();
  const std::size_t parameters = parameter_count(config);
  if (prints_text(command.common)) {
    std::FILE* out = console.out;
    (void)std::fprintf(out, "model         %s\n", command.common.model.path.c_str());
    (void)std::fprintf(out, "architecture  %s, %.4g M parameters, %zu layers, hidden %zu, intermediate %zu\n",
                       architecture_name(config.architecture), static_cast<double>(parameters) * 1e-6, config.layers,
                       config.hidden, config.intermediate);
    (void)std::fprintf(out, "attention     %zu heads, %zu for keys and values, width %zu; context %zu\n", config.heads,
                       config.kv_heads, config.head_width, config.context);
    (void)std::fprintf(out, "vocabulary    %zu tokens, embedding %s the head\n", config.vocabulary,
                       config.tied ? "tied to" : "apart from");
    (void)std::fprintf(out, "weights       %s, %.3f bits per weight\n",
                       storage_text(loaded->source, loaded->model).c_str(), loaded->bits_per_weight);
    (void)std::fprintf(out, "memory        file %s, matrices in memory %s\n", size_text(*report.file_bytes).c_str(),
                       size_text(loaded->model.weight_bytes()).c_str());
    (void)std::fprintf(out, "machine       %s, %zu threads\n", report.isa.c_str(), machine->threads);
  }
  cbq::Json json = to_json(report);
  json["architecture"] = architecture_name(config.architecture);
  json["parameters"] = parameters;
  json["layers"] = config.layers;
  json["hidden"] = config.hidden;
  json["vocabulary"] = config.vocabulary;
  json["context"] = config.context;
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
