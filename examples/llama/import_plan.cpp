// SPDX-License-Identifier: Apache-2.0
#include "import_plan.hpp"

#include <algorithm>
#include <utility>

#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/compressed_tensors_config.hpp>
#include <cbq/io/int_quantized.hpp>

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

Status place(const ModelSource& source, const char* scale_part, ForeignModule& module) {
  const Result<MatrixModule> matrix = matrix_of(source, module.name);
  if (!matrix) return matrix.error();
  if (const Status runs = cbq::check_packed_scheme(module.scheme); !runs)
    return cbq::in_context(runs.error(), module.name);
  const TensorView* scales = source.checkpoint()->find(module.name + scale_part);
  if (scales == nullptr)
    return Error{Errc::bad_file, "a quantized module lacks a tensor", module.name, "", scale_part + 1};
  const bool floats =
      scales->dtype == cbq::Dtype::f16 || scales->dtype == cbq::Dtype::bf16 || scales->dtype == cbq::Dtype::f32;
  if (!floats)
    return Error{Errc::bad_file, "scales are F16, BF16 or F32", scales->name, cbq::dtype_name(scales->dtype)};
  module.scales = scales->dtype;
  module.outputs = matrix->outputs;
  module.inputs = matrix->inputs;
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

}  // namespace

Result<ImportPlan> plan_import(const ModelSource& source) {
  const Json* quantization = source.is_gguf() ? nullptr : cbq::json_find(source.json(), "quantization_config");
  if (quantization == nullptr || !quantization->is_object()) {
    return Error{Errc::bad_argument, "the model is in floating point", source.path(), "no quantization_config",
                 "a quantized folder"};
  }
  if (cbq::has_cbq_quantization(source.json())) {
    return Error{Errc::bad_argument, "the model is in cbq's own form already", source.path()};
  }
  const Result<std::string_view> method = cbq::json_string(*quantization, "quant_method");
  if (!method) return cbq::in_context(method.error(), "quantization_config");
  if (*method != "compressed-tensors") {
    return Error{Errc::unsupported, "a quantization method that cbq does not read", source.path(), *method,
                 "compressed-tensors"};
  }
  Result<ImportPlan> plan = plan_compressed_tensors(*source.checkpoint(), *quantization);
  if (!plan) return cbq::in_context(plan.error(), source.path());
  if (plan->modules.empty()) return Error{Errc::bad_file, "no module has codes", source.path(), *method};
  plan->method = *method;
  for (ForeignModule& module : plan->modules) {
    if (const Status placed = place(source, ".weight_scale", module); !placed) return placed.error();
  }
  list_float_modules(source, *plan);
  return plan;
}

std::vector<std::string_view> foreign_parts(ForeignForm form) {
  switch (form) {
    case ForeignForm::packed:
      return {".weight_packed",     ".weight_scale", ".weight_shape",
              ".weight_zero_point", ".input_scale",  ".input_zero_point"};
    case ForeignForm::int_quantized:
      break;
  }
  return {".weight", ".weight_scale", ".weight_zero_point", ".input_scale", ".input_zero_point"};
}

Result<cbq::StoredMatrix> read_foreign(const Checkpoint& files, const ForeignModule& module) {
  switch (module.form) {
    case ForeignForm::packed:
      return cbq::StoredMatrix::read(files, module.name, module.scheme.weight);
    case ForeignForm::int_quantized:
      break;
  }
  return cbq::read_int_quantized(files, module.name, module.scheme.weight);
}

}  // namespace cbq_llama
