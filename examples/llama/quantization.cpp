// SPDX-License-Identifier: Apache-2.0
#include "quantization.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <utility>

#include <cbq/io/atomic_folder.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/stored_input_grid.hpp>
#include <cbq/nn/embedding.hpp>
#include <cbq/nn/self_attention.hpp>
#include <cbq/rounding/nearest.hpp>

#include "calibration.hpp"
#include "gptq.hpp"
#include "input_calibration.hpp"
#include "interrupt.hpp"
#include "memory_estimate.hpp"
#include "model.hpp"
#include "model_companions.hpp"
#include "model_rotation.hpp"
#include "preprocessing.hpp"
#include "progress.hpp"
#include "reconstruction.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Grid;
using cbq::MatrixView;
using cbq::QuantizedMatrix;
using cbq::Result;
using cbq::Scheme;
using cbq::Status;

bool matches(std::string_view pattern, std::string_view name) {
  constexpr std::size_t none = std::string_view::npos;
  std::size_t at = 0, star = none, taken = 0;  // the last star and the end of what it takes
  for (std::size_t i = 0; i < name.size();) {
    if (at < pattern.size() && pattern[at] == '*') {
      star = at++;
      taken = i;
    } else if (at < pattern.size() && pattern[at] == name[i]) {
      ++at;
      ++i;
    } else if (star != none) {
      at = star + 1;
      i = ++taken;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', at) == none;
}

namespace {

Status check_packable(const Scheme& scheme) {
  return cbq::visit_scheme(scheme, []<Scheme S>() -> Status { return {}; });
}

bool needs_calibration(const QuantizationOptions& options) {
  return options.method != "rtn" || options.preprocessing != Preprocessing::none || options.activations.fixed;
}

// Blocks that are calibrated quantize an input once for all quantized layers that read it. `plan` begins with the
// blocks' layers.
Status check_shared_inputs(const ModelConfig& config, const QuantizationOptions& options,
                           std::span<const ModuleReport> plan) {
  if (!needs_calibration(options)) return {};
  const std::size_t count = block_modules(config, 0).size();
  for (std::size_t i = 0; i < count * config.layers; ++i) {
    const ModuleReport& entry = plan[i];
    if (!entry.scheme) continue;
    const std::size_t reader = first_reader(i % count, config.architecture);
    const ModuleReport& first =
        *first_quantized_reader(plan.subspan(i - i % count, count), reader, config.architecture);
    if (entry.scheme->activation == first.scheme->activation) continue;
    return Error{Errc::unsupported, "layers with the same input need activations of the same grid", entry.module.name,
                 cbq::scheme_name(*entry.scheme).c_str(), cbq::scheme_name(*first.scheme).c_str()};
  }
  return {};
}

// The first rule that names the module, or nullptr.
const SchemeRule* rule_of(const QuantizationOptions& options, const MatrixModule& module) {
  for (const SchemeRule& rule : options.rules) {
    if (matches(rule.pattern, module.name)) return &rule;
  }
  return nullptr;
}

std::size_t weights_of(const MatrixModule& module) {
  return module.outputs * module.inputs;
}

// Bytes of the stored matrix `module` in all of its forms, and of its bias.
Result<std::size_t> stored_bytes(const ModelSource& source, const MatrixModule& module) {
  std::size_t bytes = 0;
  const auto packed = source.find(module.name + ".weight_packed");
  if (packed) {
    bytes += packed->bytes;
    for (const char* part : {".weight_scale", ".weight_zero_point"}) {
      if (const auto tensor = source.find(module.name + part)) bytes += tensor->bytes;
    }
  } else {
    const Result<StoredTensor> plain = source.tensor(module.name + ".weight");
    if (!plain) return plain.error();
    bytes += plain->bytes;
  }
  if (!module.has_bias) return bytes;
  const Result<StoredTensor> bias = source.tensor(module.name + ".bias");
  if (!bias) return bias.error();
  return bytes + bias->bytes;
}

std::vector<MatrixModule> counted_modules(const ModelConfig& config) {
  std::vector<MatrixModule> modules = all_block_modules(config);
  modules.push_back(embedding_module(config));
  if (!config.tied) modules.push_back(head_module(config));
  if (const FloatTensor positions = position_tensor(config); !positions.name.empty()) {
    const std::string name = positions.name.substr(0, positions.name.rfind('.'));
    modules.push_back({name, positions.rows, positions.columns, false});
  }
  return modules;
}

}  // namespace

Result<double> bits_per_weight(const ModelSource& source) {
  double bits = 0;
  double weights = 0;
  for (const MatrixModule& module : counted_modules(source.config())) {
    const Result<std::size_t> bytes = stored_bytes(source, module);
    if (!bytes) return bytes.error();
    bits += 8 * static_cast<double>(*bytes);
    weights += static_cast<double>(weights_of(module));
  }
  return bits / weights;
}

Status check_rules(const ModelConfig& config, std::span<const SchemeRule> rules) {
  std::vector<std::size_t> uses(rules.size()), matched(rules.size());
  for (const MatrixModule& module : all_block_modules(config)) {
    bool first = true;
    for (std::size_t i = 0; i < rules.size(); ++i) {
      if (!matches(rules[i].pattern, module.name)) continue;
      ++matched[i];
      uses[i] += first ? 1 : 0;
      first = false;
    }
  }
  for (std::size_t i = 0; i < rules.size(); ++i) {
    if (uses[i] != 0) continue;
    return Error{Errc::bad_argument,
                 matched[i] == 0 ? "a pattern that matches no linear layer of the blocks"
                                 : "a pattern whose layers all match earlier ones",
                 ErrorText("schemes[") << i << "].pattern", rules[i].pattern};
  }
  return {};
}

const char* rotation_name(Rotation rotation) {
  return rotation == Rotation::none ? "none" : rotation == Rotation::offline ? "offline" : "full";
}

Rotation rotation_of(const ModelConfig& config, const QuantizationOptions& options) {
  if (options.rotation) return *options.rotation;
  if (config.architecture == Architecture::bloom) return Rotation::none;
  for (const MatrixModule& module : all_block_modules(config)) {
    const SchemeRule* rule = rule_of(options, module);
    if (rule != nullptr && rule->scheme.activation.bits == 4) return Rotation::full;
  }
  return Rotation::none;
}

Result<std::vector<ModuleReport>> plan_quantization(const ModelConfig& config, const QuantizationOptions& options) {
  std::vector<ModuleReport> plan;
  Scheme first_scheme;
  if (const Result<Grid> heads = cbq::attention_grid(options.attention_bits); !heads) return heads.error();
  const auto add = [&](const MatrixModule& module, const Scheme& scheme, const char* reason) -> Status {
    ModuleReport entry;
    entry.module = module;
    if (scheme.weight.bits == 16) {
      entry.reason = reason;
    } else {
      if (const Status packable = check_packable(scheme); !packable) return packable;
      entry.scheme = scheme;
    }
    plan.push_back(std::move(entry));
    return {};
  };
  const Rotation rotation = rotation_of(config, options);
  if (config.architecture == Architecture::bloom && rotation != Rotation::none) {
    return Error{Errc::unsupported, "no rotation can be folded into embeddings that a norm follows", "--rotate",
                 rotation_name(rotation), "none, for BLOOM"};
  }
  for (const MatrixModule& module : all_block_modules(config)) {
    const SchemeRule* rule = rule_of(options, module);
    const Status added = add(module, rule != nullptr ? rule->scheme : Scheme{},
                             rule != nullptr ? "its scheme keeps the weights in floating point" : "no rule names it");
    if (!added) return added.error();
    if (plan.size() == 1 && rule != nullptr) first_scheme = rule->scheme;
    const bool down = module.name.ends_with(".down_proj") || module.name.ends_with(".fc2");
    if (down && rotation == Rotation::full) plan.back().rotation = cbq::InputRotation::hadamard;
  }
  if (const Status same = check_shared_inputs(config, options, plan); !same) return same.error();
  const Result<Scheme> head = cbq::head_scheme(options.head_bits, first_scheme);
  if (!head) return head.error();
  if (const Status added = add(embedding_module(config), *head, "--head-bits 16"); !added) return added.error();
  if (config.tied && rotation == Rotation::none) return plan;
  if (const Status added = add(head_module(config), *head, "--head-bits 16"); !added) return added.error();
  return plan;
}

Result<QuantizedMatrix> round_to_nearest(const FloatMatrix& weights, const Grid& grid,
                                         const QuantizationOptions& options) {
  const auto executor = make_executor(options.threads);
  if (options.range == RangeSearch::minmax) {
    return cbq::round_nearest(cbq::as_const(weights.view), grid, cbq::MinMaxRange{}, executor);
  }
  return cbq::round_nearest(cbq::as_const(weights.view), grid, cbq::MseRange{}, executor);
}

namespace {

// A float tensor of the result: the bytes of the source where it is a folder, otherwise float16 or float32.
class FloatCopy {
 public:
  static Result<FloatCopy> read(const ChangedWeights& weights, const FloatTensor& tensor, bool vector) {
    Result<FloatMatrix> values = weights.read_matrix(tensor.name, tensor.rows, tensor.columns);
    if (!values) return values.error();
    FloatCopy copy;
    copy.plan_.name = tensor.name;
    copy.plan_.shape = vector ? cbq::TensorShape{.rank = 1, .sizes = {tensor.columns}}
                              : cbq::TensorShape{.rank = 2, .sizes = {tensor.rows, tensor.columns}};
    copy.plan_.dtype = dtype_of(weights, tensor.name, vector);
    copy.values_ = *std::move(values);
    return copy;
  }

  static Result<FloatCopy> of(const std::string& name, std::span<const float> values) {
    auto memory = cbq::AlignedBuffer<float>::allocate(values.size());
    if (!memory) return memory.error();
    std::copy(values.begin(), values.end(), memory->begin());
    FloatCopy copy;
    copy.plan_ = {.name = name, .dtype = cbq::Dtype::f32, .shape = {.rank = 1, .sizes = {values.size()}}};
    copy.values_.memory = *std::move(memory);
    return copy;
  }

  [[nodiscard]] const cbq::TensorPlan& plan() const { return plan_; }

  static cbq::Dtype dtype_of(const ChangedWeights& weights, const std::string& name, bool vector) {
    // A head that was tied is stored as the embedding is.
    const std::string embedding = embedding_module(weights.config()).name + ".weight";
    const std::optional<StoredTensor> own = weights.source().find(name), tied = weights.source().find(embedding);
    const std::string_view type = own ? own->type : tied ? tied->type : "";
    const bool changed = weights.is_changed(name);
    if (type == "F32" || (vector && changed)) return cbq::Dtype::f32;
    if (type == "BF16" && !changed) return cbq::Dtype::bf16;
    if (vector && type != "F16") return cbq::Dtype::f32;
    // Matrices of other types come from quantized GGUF files; float16 holds their few digits, and more of changed ones
    // than bfloat16.
    return cbq::Dtype::f16;
  }

  [[nodiscard]] Status write(cbq::SafetensorsWriter& writer) const {
    const std::span<const float> values(values_.memory.data(), values_.memory.size());
    if (plan_.dtype == cbq::Dtype::f32) return writer.write(plan_.name, values);
    std::vector<std::uint16_t> narrow(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      narrow[i] = plan_.dtype == cbq::Dtype::f16 ? cbq::to_half(values[i]).bits : cbq::to_bfloat16(values[i]).bits;
      if ((plan_.dtype == cbq::Dtype::f16) && (narrow[i] & 0x7c00u) == 0x7c00u) {
        return Error{Errc::not_finite, "a number is too large for float16", plan_.name, ErrorText("element ") << i};
      }
    }
    return writer.write(plan_.name, std::span<const std::uint16_t>(narrow));
  }

 private:
  cbq::TensorPlan plan_;
  FloatMatrix values_;
};

// Everything that will be written into the safetensors file.
struct Content {
  struct Codes {
    std::string module;
    QuantizedMatrix matrix;
  };
  std::vector<Codes> codes;
  std::vector<FloatCopy> floats;

  [[nodiscard]] Status add_float(const ChangedWeights& source, const FloatTensor& tensor, bool vector) {
    Result<FloatCopy> copy = FloatCopy::read(source, tensor, vector);
    if (!copy) return copy.error();
    floats.push_back(*std::move(copy));
    return {};
  }
};

Status quantize_into(const ChangedWeights& source, ModuleReport& entry, const QuantizationOptions& options,
                     CodesByModule& calibrated, Content& content) {
  const MatrixModule& module = entry.module;
  if (module.has_bias) {
    if (const Status added = content.add_float(source, {module.name + ".bias", 1, module.outputs}, true); !added)
      return added;
  }
  if (!entry.scheme) {
    return content.add_float(source, {module.name + ".weight", module.outputs, module.inputs}, false);
  }
  const Result<FloatMatrix> weights = source.read_matrix(module.name + ".weight", module.outputs, module.inputs);
  if (!weights) return weights.error();
  auto done = calibrated.extract(module.name);
  Result<QuantizedMatrix> codes = done ? Result<QuantizedMatrix>(std::move(done.mapped()))
                                       : round_to_nearest(*weights, entry.scheme->weight, options);
  if (!codes) return cbq::in_context(codes.error(), module.name);
  const Result<double> error =
      cbq::quantization_error(cbq::as_const(weights->view), codes->view(), entry.scheme->weight);
  if (!error) return cbq::in_context(error.error(), module.name);
  entry.relative_error = std::sqrt(*error);
  content.codes.push_back({module.name, *std::move(codes)});
  return {};
}

Result<Content> quantize_all(const ChangedWeights& source, const QuantizationOptions& options, CodesByModule calibrated,
                             std::vector<ModuleReport>& plan) {
  Content content;
  std::size_t total = 0;
  for (const ModuleReport& entry : plan) total += weights_of(entry.module);
  Progress progress("quantizing", "weights", total);
  std::size_t done = 0;
  for (ModuleReport& entry : plan) {
    if (const Status ok = check_interrupt(); !ok) return ok.error();
    if (const Status ok = quantize_into(source, entry, options, calibrated, content); !ok) return ok.error();
    progress.update(done += weights_of(entry.module));
  }
  for (const FloatTensor& tensor : norm_tensors(source.config())) {
    if (const Status ok = content.add_float(source, tensor, true); !ok) return ok.error();
  }
  for (const FloatTensor& tensor : embedding_tensors(source.config())) {
    if (const Status ok = content.add_float(source, tensor, tensor.rows == 1); !ok) return ok.error();
  }
  return content;
}

Status add_smoothing(const ModelConfig& config, std::span<const cbq::KvSmoothing> layers, Content& content) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const SmoothingTensor& tensor : smoothing_tensors(config, i)) {
      const cbq::AlignedBuffer<float>& values = layers[i].*tensor.values;
      Result<FloatCopy> copy = FloatCopy::of(tensor.name, {values.data(), values.size()});
      if (!copy) return copy.error();
      content.floats.push_back(*std::move(copy));
    }
  }
  return {};
}

Status write_tensors(const std::string& path, const Content& content, std::span<const ModuleReport> modules) {
  std::vector<cbq::TensorPlan> plan;
  for (const Content::Codes& entry : content.codes) {
    const Grid& grid = entry.matrix.grid();
    if (const Status ok = cbq::plan_tensors(cbq::plan_of(entry.module, entry.matrix.view(), grid), plan); !ok)
      return ok;
  }
  for (const ModuleReport& entry : modules) {
    if (entry.inputs) cbq::plan_input_grid(entry.module.name, entry.scheme->activation, plan);
  }
  for (const FloatCopy& copy : content.floats) plan.push_back(copy.plan());
  Result<cbq::SafetensorsWriter> writer = cbq::SafetensorsWriter::create(path, plan);
  if (!writer) return writer.error();
  for (const Content::Codes& entry : content.codes) {
    if (const Status ok = check_interrupt(); !ok) return ok;
    const Status ok = cbq::write_quantized_matrix(*writer, entry.module, entry.matrix.view(), entry.matrix.grid());
    if (!ok) return ok;
  }
  for (const ModuleReport& entry : modules) {
    if (!entry.inputs) continue;
    const Status ok = cbq::write_input_grid(*writer, entry.module.name, entry.scheme->activation, entry.inputs->grid);
    if (!ok) return ok;
  }
  for (const FloatCopy& copy : content.floats) {
    if (const Status ok = check_interrupt(); !ok) return ok;
    if (const Status ok = copy.write(*writer); !ok) return ok;
  }
  return writer->commit();
}

Status write_config(const std::string& path, const ChangedWeights& weights, const QuantizationOptions& options,
                    const QuantizationReport& report) {
  const ModelSource& source = weights.source();
  cbq::Json config = source.is_gguf() ? to_json(source.config()) : source.json();
  if (weights.config().tied != source.config().tied) config["tie_word_embeddings"] = weights.config().tied;
  cbq::QuantizationRecord record;
  record.method = options.method_name.empty() ? options.method : options.method_name;
  record.head_bits = options.head_bits;
  record.notes["range"] = options.range == RangeSearch::mse ? "mse" : "minmax";
  record.notes["calibration_tokens"] = report.calibration_tokens;
  if (options.preprocessing != Preprocessing::none) {
    record.notes["preprocess"] = preprocessing_names[static_cast<std::size_t>(options.preprocessing)];
  }
  if (!options.method_name.empty()) record.notes["weights"] = options.method;
  if (options.activations.fixed) {
    if (options.activations.percentile) record.notes["percentile"] = *options.activations.percentile;
    record.notes["largest_exponent"] = options.activations.largest_exponent;
    if (options.prune.sparsity != 0) record.notes["prune"] = options.prune.sparsity;
  }
  if (options.attention_bits != 16) record.notes[attention_bits_key] = options.attention_bits;
  if (!cbq::is_float(options.cache.scheme)) {
    record.notes["kv_scheme"] = cbq::kv_scheme_name(options.cache.scheme).c_str();
  }
  if (report.rotation != Rotation::none) {
    record.notes["rotation"] = rotation_name(report.rotation);
    record.notes["rotation_seed"] = options.calibration.seed;
  }
  const std::string embedding = embedding_module(source.config()).name;
  for (const ModuleReport& entry : report.modules) {
    if (entry.rotation != cbq::InputRotation::none) {
      record.rotations.push_back({entry.module.name, cbq::hadamard_size(entry.module.inputs)});
    }
    const bool looked_up = entry.module.name == embedding;
    if (entry.scheme) {
      record.modules.push_back({entry.module.name, *entry.scheme,
                                looked_up ? cbq::ModuleKind::embedding : cbq::ModuleKind::linear,
                                entry.inputs ? cbq::ActivationRanges::fixed : cbq::ActivationRanges::dynamic});
    } else if (!looked_up) {
      record.ignore.push_back(entry.module.name);
    }
  }
  for (const auto& [module, clip] : report.clips) {
    if (clip != 1.0f) record.clips.push_back({module, clip});
  }
  // A tied head is a linear module without tensors of its own.
  if (weights.config().tied) record.ignore.push_back(head_module(source.config()).name);
  if (const Status ok = cbq::add_quantization(config, record); !ok) return ok;
  return cbq::write_file(path, cbq::json_text(config));
}

}  // namespace

Result<QuantizedMatrix> quantize_module(const ModelSource& source, const MatrixModule& module, const Grid& grid,
                                        const QuantizationOptions& options) {
  const Result<FloatMatrix> weights = source.read_matrix(module.name + ".weight", module.outputs, module.inputs);
  if (!weights) return weights.error();
  Result<QuantizedMatrix> codes = round_to_nearest(*weights, grid, options);
  if (!codes) return cbq::in_context(codes.error(), module.name);
  return codes;
}

namespace {

// What calibration made of a model.
struct Calibrated {
  explicit Calibrated(const ModelSource& source) : weights(source) {}
  ChangedWeights weights;
  CodesByModule codes;
};

Status rotate(const QuantizationOptions& options, Rotation rotation, ChangedWeights& weights) {
  return rotate_model(rotation, options.calibration.seed, make_executor(options.threads), weights);
}

// A learned clip of a static grid is a finer step, which other programs read as well.
void narrow_static_grids(ClipsByModule& clips, std::vector<ModuleReport>& plan) {
  for (ModuleReport& entry : plan) {
    const auto clip = clips.find(entry.module.name);
    if (!entry.inputs || clip == clips.end()) continue;
    entry.inputs->grid.scale *= clip->second;
    clips.erase(clip);
  }
}

Status calibrate(std::vector<ModuleReport>& plan, const std::string& output, const QuantizationOptions& options,
                 Calibrated& result, QuantizationReport& report) {
  const ModelSource& source = result.weights.source();
  const CalibrationSettings& settings = options.calibration;
  const Result<MemoryEstimate> memory = plan_memory(source.config(), plan, options);
  if (!memory) return memory.error();
  if (options.announce) options.announce(*memory);
  const Result<std::vector<std::int32_t>> ids = calibration_tokens(source, settings);
  if (!ids) return ids.error();
  report.calibration_tokens = ids->size();
  const CalibrationTokens tokens = {*ids, settings.sequence, memory->spilled ? checkpoint_path(output) : ""};
  if (options.preprocessing != Preprocessing::none) {
    if (const Status done = preprocess(plan, tokens, options, result.weights); !done) return done;
  }
  if (const Status done = rotate(options, report.rotation, result.weights); !done) return done;
  if (options.activations.fixed) {
    if (const Status done = calibrate_inputs(plan, tokens, options, result.weights); !done) return done;
  }
  if (options.method == "gptq") {
    Result<CodesByModule> codes = gptq_blocks(result.weights, plan, tokens, options);
    if (!codes) return codes.error();
    result.codes = *std::move(codes);
  } else if (reconstructs(options.method)) {
    Result<Reconstructed> done = reconstruct_blocks(result.weights, plan, tokens, checkpoint_path(output), options);
    if (!done) return done.error();
    result.codes = std::move(done->codes);
    report.windows = std::move(done->windows);
    report.clips = std::move(done->clips);
    narrow_static_grids(report.clips, plan);
    report.smoothing = std::move(done->smoothing);
    report.trained_parameters = done->trained_parameters;
  }
  return {};
}

}  // namespace

Result<QuantizationReport> quantize(const ModelSource& source, const std::string& output,
                                    const QuantizationOptions& options) {
  if (!source.is_gguf() && !cbq::packed_modules(*source.checkpoint()).empty()) {
    return Error{Errc::bad_argument, "the model is quantized already", source.path(), "", "a model in floating point"};
  }
  Result<std::vector<ModuleReport>> plan = plan_quantization(source.config(), options);
  if (!plan) return plan.error();
  const Result<bool> replaces = cbq::is_quantized_folder(output);
  if (!replaces) return replaces.error();
  const cbq::Existing existing = *replaces ? cbq::Existing::replace : cbq::Existing::refuse;
  // Before the work: a folder that cannot be written is better known early.
  Result<cbq::AtomicFolder> folder = cbq::AtomicFolder::create(output, existing);
  if (!folder) return folder.error();
  QuantizationReport report;
  report.rotation = rotation_of(source.config(), options);
  Calibrated calibrated(source);
  QuantizationOptions settled = options;
  if (settled.calibration.sequence == 0) {
    settled.calibration.sequence = std::min<std::size_t>(source.config().context, 2048);
  }
  const Status done = needs_calibration(options) ? calibrate(*plan, output, settled, calibrated, report)
                                                 : rotate(options, report.rotation, calibrated.weights);
  if (!done) return done.error();
  Result<Content> content = quantize_all(calibrated.weights, options, std::move(calibrated.codes), *plan);
  if (!content) return content.error();
  if (const Status ok = add_smoothing(source.config(), report.smoothing, *content); !ok) return ok.error();
  report.modules = *std::move(plan);
  if (const Status ok = write_tensors(folder->file("model.safetensors"), *content, report.modules); !ok)
    return ok.error();
  if (const Status ok = write_config(folder->file("config.json"), calibrated.weights, options, report); !ok)
    return ok.error();
  if (const Status ok = copy_companions(*folder, source); !ok) return ok.error();
  // Read before it takes the place of what is there.
  const Result<ModelSource> written = ModelSource::open(folder->path());
  if (!written) return written.error();
  report.file_bytes = written->file_bytes();
  const Result<double> bits = bits_per_weight(*written);
  if (!bits) return bits.error();
  report.bits_per_weight = *bits;
  for (ModuleReport& entry : report.modules) {
    const Result<std::size_t> bytes = stored_bytes(*written, entry.module);
    if (!bytes) return bytes.error();
    entry.bits_per_weight = 8 * static_cast<double>(*bytes) / static_cast<double>(weights_of(entry.module));
  }
  const std::string checkpoint = checkpoint_path(output);
  if (const Status ok = check_interrupt(); !ok) return ok.error();
  if (const Status same = source.check_unchanged(); !same) return same.error();
  if (const Status ok = folder->commit(); !ok) return ok.error();
  if (reconstructs(options.method)) (void)std::remove(checkpoint.c_str());
  return report;
}

}  // namespace cbq_llama
