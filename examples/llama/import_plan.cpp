// SPDX-License-Identifier: Apache-2.0
#include "import_plan.hpp"

#include <algorithm>
#include <utility>

#include <unistd.h>

#include <cbq/io/awq.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/compressed_tensors_config.hpp>
#include <cbq/io/gptq_reader.hpp>
#include <cbq/io/int_quantized.hpp>
#include <cbq/io/weight_only_config.hpp>

#include "model_layout.hpp"

namespace cbq_llama {

using cbq::Checkpoint;
using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Json;
using cbq::Result;
using cbq::Status;
using cbq::TensorView;

namespace {

// Modules that have a tensor `ending` (of type `dtype`, if one is named).
std::vector<std::string_view> modules_with(const Checkpoint& files, std::string_view ending,
                                           const char* dtype = nullptr) {
  std::vector<std::string_view> modules;
  for (const TensorView& tensor : files.tensors()) {
    const bool fits = dtype == nullptr || std::string_view(cbq::dtype_name(tensor.dtype)) == dtype;
    if (fits && tensor.name.ends_with(ending))
      modules.push_back(tensor.name.substr(0, tensor.name.size() - ending.size()));
  }
  return modules;
}

Result<ImportPlan> plan_compressed_tensors(const Checkpoint& files, const Json& quantization) {
  const std::vector<std::string_view> packed = modules_with(files, ".weight_packed");
  const std::vector<std::string_view> integers = modules_with(files, ".weight", "I8");
  const Result<cbq::QuantizationRecord> record = cbq::parse_compressed_tensors(quantization, packed, integers);
  if (!record) return record.error();
  ImportPlan plan;
  for (std::size_t i = 0; i < record->modules.size(); ++i) {
    const cbq::ModuleScheme& entry = record->modules[i];
    const ForeignForm form = i < packed.size() ? ForeignForm::packed : ForeignForm::int_quantized;
    plan.modules.push_back({.name = entry.module, .scheme = entry.scheme, .ranges = entry.ranges, .form = form});
  }
  return plan;
}

// The matrix of the model that a module is.
Result<MatrixModule> matrix_of(const ModelSource& source, const std::string& name) {
  std::vector<MatrixModule> modules = all_block_modules(source.config());
  modules.push_back(head_module(source.config()));
  const auto found =
      std::find_if(modules.begin(), modules.end(), [&](const MatrixModule& m) { return m.name == name; });
  if (found != modules.end()) return *found;
  return Error{Errc::unsupported, "codes of a module that the model has not", name, source.path()};
}

// Groups of a module's scales: as the folder says, if that fits, or else as their number says.
Result<cbq::Grid> grouped(cbq::Grid grid, std::size_t groups, const MatrixModule& matrix, int declared) {
  const auto size = static_cast<std::size_t>(declared);
  const bool fits = declared != 0 && cbq::divide_up(matrix.inputs, size) == groups;
  if (!fits && groups == 1) return grid;
  if (!fits && (groups == 0 || matrix.inputs % groups != 0)) {
    return Error{Errc::bad_shape, "groups that do not fit the inputs", matrix.name, groups,
                 ErrorText(matrix.inputs) << " inputs"};
  }
  grid.granularity = cbq::Granularity::per_group;
  grid.group = fits ? declared : static_cast<int>(matrix.inputs / groups);
  return grid;
}

Status missing(const std::string& module) {
  return Error{Errc::bad_file, "a quantized module lacks a tensor", module, "", "qweight, qzeros and scales, matrices"};
}

// What the tensors of a GPTQ or AWQ module say of its grid; `module.name` and `module.form` are known.
Status read_shapes(const ModelSource& source, const cbq::WeightOnlyConfig& config, ForeignModule& module) {
  const Checkpoint& files = *source.checkpoint();
  const Result<MatrixModule> matrix = matrix_of(source, module.name);
  if (!matrix) return matrix.error();
  const TensorView* codes = files.find(module.name + ".qweight");
  const TensorView* zeros = files.find(module.name + ".qzeros");
  const TensorView* scales = files.find(module.name + ".scales");
  for (const TensorView* tensor : {codes, zeros, scales}) {
    if (tensor == nullptr || tensor->shape.rank != 2) return missing(module.name);
  }
  cbq::Grid grid = {.bits = 4};
  if (module.form == ForeignForm::gptq) {
    for (const int bits : {2, 3, 4, 8}) {
      if (codes->shape.sizes[0] == cbq::packed_words(matrix->inputs, bits)) grid.bits = bits;
    }
    const Result<cbq::SymmetricZeros> found = cbq::find_symmetric_zeros(*zeros, grid.bits, matrix->outputs);
    if (!found) return found.error();
    grid.zero = found->symmetric ? cbq::Zero::symmetric : cbq::Zero::affine;
    module.zeros = found->symmetric ? found->form : config.zeros;
  } else {
    grid.zero = cbq::are_awq_eights(*zeros) ? cbq::Zero::symmetric : cbq::Zero::affine;
  }
  const Result<cbq::Grid> whole = grouped(grid, scales->shape.sizes[0], *matrix, config.group);
  if (!whole) return whole.error();
  module.scheme.weight = *whole;
  return {};
}

Result<ImportPlan> plan_weights_only(const ModelSource& source, const Json& quantization, ForeignForm form) {
  const Result<cbq::WeightOnlyConfig> config =
      form == ForeignForm::gptq ? cbq::parse_gptq_config(quantization) : cbq::parse_awq_config(quantization);
  if (!config) return config.error();
  ImportPlan plan;
  std::size_t otherwise = 0;
  for (const std::string_view name : modules_with(*source.checkpoint(), ".qweight")) {
    ForeignModule module;
    module.name = name;
    module.form = form;
    if (const Status read = read_shapes(source, *config, module); !read) return read.error();
    if (form == ForeignForm::gptq && module.zeros != config->zeros) ++otherwise;
    plan.modules.push_back(std::move(module));
  }
  if (otherwise != 0) {
    plan.notes.push_back(std::to_string(otherwise) + " modules: zero points of symmetric weights, stored as " +
                         (config->zeros == cbq::GptqZeros::v1 ? "gptq_v2" : "gptq") +
                         " stores them, though checkpoint_format says otherwise");
  }
  return plan;
}

Status place(const ModelSource& source, ForeignModule& module) {
  const Result<MatrixModule> matrix = matrix_of(source, module.name);
  if (!matrix) return matrix.error();
  const Status runs = cbq::check_packed_scheme(module.scheme);
  if (!runs) return cbq::in_context(runs.error(), module.name);
  const bool weights_only = module.form == ForeignForm::gptq || module.form == ForeignForm::awq;
  const TensorView* scales = source.checkpoint()->find(module.name + (weights_only ? ".scales" : ".weight_scale"));
  if (scales == nullptr) return Error{Errc::bad_file, "a quantized module lacks its scales", module.name};
  using cbq::Dtype;
  const bool floats = scales->dtype == Dtype::f16 || scales->dtype == Dtype::bf16 || scales->dtype == Dtype::f32;
  if (!floats)
    return Error{Errc::bad_file, "scales are F16, BF16 or F32", scales->name, cbq::dtype_name(scales->dtype)};
  module.scales = scales->dtype;
  module.outputs = matrix->outputs;
  module.inputs = matrix->inputs;
  return {};
}

// Some programs write biases of zeros for models that have none.
Status find_left_out(const ModelSource& source, ImportPlan& plan) {
  for (const ForeignModule& module : plan.modules) {
    const Result<MatrixModule> matrix = matrix_of(source, module.name);
    if (!matrix) return matrix.error();
    const TensorView* bias = source.checkpoint()->find(module.name + ".bias");
    if (bias == nullptr || matrix->has_bias) continue;
    const bool zeros =
        std::all_of(bias->bytes.begin(), bias->bytes.end(), [](std::byte b) { return b == std::byte{0}; });
    if (!zeros) return Error{Errc::unsupported, "a bias that the model does not have", bias->name};
    plan.left_out.emplace_back(bias->name);
  }
  return {};
}

void list_float_modules(const ModelSource& source, ImportPlan& plan) {
  std::vector<MatrixModule> modules = all_block_modules(source.config());
  modules.push_back(head_module(source.config()));
  for (const MatrixModule& module : modules) {
    const bool codes = std::any_of(plan.modules.begin(), plan.modules.end(),
                                   [&](const ForeignModule& entry) { return entry.name == module.name; });
    if (!codes) plan.ignore.push_back(module.name);
  }
}

Result<ImportPlan> plan_method(const ModelSource& source, const Json& quantization) {
  // Early GPTQ folders do not name their method.
  const bool named = cbq::json_find(quantization, "quant_method") != nullptr;
  const Result<std::string_view> method =
      named ? cbq::json_string(quantization, "quant_method") : Result<std::string_view>("gptq");
  if (!method) return method.error();
  if (*method != "compressed-tensors" && *method != "gptq" && *method != "awq") {
    return Error{Errc::unsupported, "a quantization method that cbq does not read", "quant_method", *method,
                 "compressed-tensors, gptq or awq"};
  }
  Result<ImportPlan> plan =
      *method == "compressed-tensors"
          ? plan_compressed_tensors(*source.checkpoint(), quantization)
          : plan_weights_only(source, quantization, *method == "gptq" ? ForeignForm::gptq : ForeignForm::awq);
  if (plan) plan->method = *method;
  return plan;
}

// "quantization_config" of config.json, or quantize_config.json, where early GPTQ folders have it.
Result<Json> quantization_of(const ModelSource& source) {
  const Json* quantization = source.is_gguf() ? nullptr : cbq::json_find(source.json(), "quantization_config");
  if (quantization != nullptr && quantization->is_object()) return *quantization;
  const std::string early = source.path() + "/quantize_config.json";
  if (!source.is_gguf() && ::access(early.c_str(), F_OK) == 0) return cbq::read_json_file(early);
  return Error{Errc::bad_argument, "the model is in floating point", source.path(), "no quantization_config",
               "a quantized folder"};
}

}  // namespace

Result<ImportPlan> plan_import(const ModelSource& source) {
  if (!source.is_gguf() && cbq::has_cbq_quantization(source.json())) {
    return Error{Errc::bad_argument, "the model is in cbq's own form already", source.path()};
  }
  const Result<Json> quantization = quantization_of(source);
  if (!quantization) return quantization.error();
  Result<ImportPlan> plan = plan_method(source, *quantization);
  if (!plan) return cbq::in_context(plan.error(), source.path());
  if (plan->modules.empty()) return Error{Errc::bad_file, "no module has codes", source.path(), plan->method};
  for (ForeignModule& module : plan->modules) {
    if (const Status placed = place(source, module); !placed) return placed.error();
  }
  if (const Status found = find_left_out(source, *plan); !found) return found.error();
  list_float_modules(source, *plan);
  return plan;
}

std::vector<std::string_view> foreign_parts(ForeignForm form) {
  switch (form) {
    case ForeignForm::packed:
      return {".weight_packed",     ".weight_scale", ".weight_shape",
              ".weight_zero_point", ".input_scale",  ".input_zero_point"};
    case ForeignForm::gptq:
      return {".qweight", ".qzeros", ".scales", ".g_idx"};
    case ForeignForm::awq:
      return {".qweight", ".qzeros", ".scales"};
    case ForeignForm::int_quantized:
      break;
  }
  return {".weight", ".weight_scale", ".weight_zero_point", ".input_scale", ".input_zero_point"};
}

Result<cbq::StoredMatrix> read_foreign(const Checkpoint& files, const ForeignModule& module) {
  switch (module.form) {
    case ForeignForm::packed:
      return cbq::StoredMatrix::read(files, module.name, module.scheme.weight);
    case ForeignForm::gptq:
      return cbq::read_gptq(files, module.name, module.scheme.weight, module.inputs, module.zeros);
    case ForeignForm::awq:
      return cbq::read_awq(files, module.name, module.scheme.weight);
    case ForeignForm::int_quantized:
      break;
  }
  return cbq::read_int_quantized(files, module.name, module.scheme.weight);
}

}  // namespace cbq_llama
