// SPDX-License-Identifier: Apache-2.0
#include "export_plan.hpp"

#include <map>
#include <numeric>
#include <utility>

#include <cbq/io/awq.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/compressed_tensors_config.hpp>
#include <cbq/io/refined_groups.hpp>
#include <cbq/io/weight_only_config.hpp>

#include "kv_smoothing_files.hpp"
#include "model_layout.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::Status;

namespace {

const char* name_of(ExportFormat format) {
  return export_format_names[static_cast<std::size_t>(format)];
}

// What no form has words for.
Status check_sayable(const ModelSource& source, const cbq::QuantizationRecord& record, const ExportOptions& options) {
  if (source.config().architecture == Architecture::bloom) {
    return Error{Errc::unsupported, "BLOOM's fused projection is taken apart here, which other programs do not read",
                 source.path(), architecture_name(source.config().architecture)};
  }
  for (const cbq::ModuleRotation& rotation : record.rotations) {
    return Error{Errc::unsupported, "its input is rotated as the model runs, which the form cannot say",
                 rotation.module, name_of(options.format), "a model quantized with --rotate none or offline"};
  }
  for (const cbq::ModuleClip& clip : record.clips) {
    return Error{Errc::unsupported, "its activations are clipped by a learned factor, which the form cannot say",
                 clip.module, name_of(options.format), "activations without learned clips"};
  }
  return {};
}

void note_left_out(const ModelSource& source, const cbq::QuantizationRecord& record, ExportPlan& plan) {
  for (const auto& [key, what] : {std::pair{"attention_bits", "queries, keys and values on a grid"},
                                  std::pair{"kv_scheme", "the quantized cache that the model was trained for"}}) {
    const cbq::Json* value = cbq::json_find(record.notes, key);
    if (value != nullptr) plan.notes.push_back(std::string(key) + " " + value->dump() + " left out: " + what);
  }
  if (source.find(smoothing_tensors(source.config(), 0).front().name)) {
    plan.notes.push_back("smoothing of keys and values left out: it belongs to cbq's caches");
  }
}

Result<ExportedModule> describe(const cbq::Checkpoint& files, const cbq::ModuleScheme& entry) {
  const Result<cbq::StoredTensors> tensors = cbq::find_stored(files, entry.module, entry.scheme.weight);
  if (!tensors) return tensors.error();
  return ExportedModule{entry.module, tensors->outputs,    tensors->inputs,        entry.scheme,
                        entry.ranges, entry.scheme.weight, tensors->scales->dtype, ModuleForm::half};
}

bool has_codes(const ExportedModule& module) {
  return module.form != ModuleForm::half;
}

bool is_ragged(const ExportedModule& module) {
  const cbq::Grid& grid = module.scheme.weight;
  return grid.granularity == cbq::Granularity::per_group && module.inputs % static_cast<std::size_t>(grid.group) != 0;
}

// Gives the module groups of `group` inputs, which divide the ones it has.
Status refine(ExportedModule& module, std::size_t group) {
  constexpr std::size_t smallest = 8;
  if (group < smallest) {
    return Error{Errc::unsupported, "groups that divide the inputs would be too short", module.name,
                 ErrorText(module.inputs) << " inputs", ErrorText("a multiple of ") << smallest};
  }
  module.grid.granularity = cbq::Granularity::per_group;
  module.grid.group = static_cast<int>(group);
  return {};
}

Status plan_compressed_tensors(ExportPlan& plan) {
  for (ExportedModule& module : plan.modules) {
    if (!has_codes(module)) continue;
    module.form = cbq::is_int_quantized(module.scheme) ? ModuleForm::int_quantized : ModuleForm::packed;
    if (!is_ragged(module)) continue;
    if (module.scheme.activation.granularity == cbq::Granularity::per_group) {
      return Error{Errc::unsupported, "groups of activations that do not divide the inputs", module.name,
                   ErrorText(module.inputs) << " inputs", ErrorText("groups of ") << module.scheme.activation.group};
    }
    const Status refined = refine(module, cbq::dividing_group(module.scheme.weight, module.inputs, module.inputs));
    if (!refined) return refined;
  }
  return {};
}

// Modules of one grid keep one group length, which divides the inputs of all of them.
Status plan_gptq(const ExportOptions& options, ExportPlan& plan) {
  bool affine = false;
  for (ExportedModule& module : plan.modules) {
    if (!has_codes(module)) continue;
    affine = affine || module.grid.zero == cbq::Zero::affine;
    std::size_t group = 0;
    for (const ExportedModule& other : plan.modules) {
      const bool same = has_codes(other) && other.scheme.weight == module.scheme.weight;
      if (same) group = std::gcd(group, cbq::dividing_group(other.scheme.weight, other.inputs, other.inputs));
    }
    const bool grouped = module.grid.granularity == cbq::Granularity::per_group;
    if (grouped && group != static_cast<std::size_t>(module.grid.group)) {
      if (const Status refined = refine(module, group); !refined) return refined;
    }
    if (const Status fits = cbq::check_gptq(matrix_plan(module)); !fits) return fits;
  }
  plan.gptq_zeros = options.gptq_zeros.value_or(affine ? cbq::GptqZeros::v2 : cbq::GptqZeros::v1);
  if (affine && !options.gptq_zeros) {
    plan.notes.push_back("checkpoint_format gptq_v2: v1 has no word for zero points of 0");
  }
  return {};
}

// One group length for all modules.
Status plan_awq(ExportPlan& plan) {
  constexpr std::size_t longest = 128;  // that kernels of other programs have
  std::size_t group = 0;
  for (const ExportedModule& module : plan.modules) {
    if (has_codes(module)) group = std::gcd(group, cbq::dividing_group(module.scheme.weight, module.inputs, longest));
  }
  for (ExportedModule& module : plan.modules) {
    if (!has_codes(module)) continue;
    if (const Status refined = refine(module, group); !refined) return refined;
    if (const Status fits = cbq::check_awq(matrix_plan(module)); !fits) return fits;
  }
  return {};
}

// Of a form for weights alone.
Status check_weights_only(ExportPlan& plan) {
  std::size_t left_out = 0;
  for (const ExportedModule& module : plan.modules) {
    if (!has_codes(module)) continue;
    if (module.scheme.activation.bits != 16) ++left_out;
    if (module.scales != cbq::Dtype::f16) {
      return Error{Errc::unsupported, "scales that F16 does not hold exactly", module.name,
                   cbq::dtype_name(module.scales), "F16"};
    }
  }
  if (left_out != 0) {
    plan.notes.push_back("activations of " + std::to_string(left_out) +
                         " modules stay in floating point: the form has weights only");
  }
  return {};
}

void note_refined(ExportPlan& plan) {
  std::map<std::pair<int, int>, std::size_t> counts;
  for (const ExportedModule& module : plan.modules) {
    if (module.grid != module.scheme.weight) ++counts[{module.scheme.weight.group, module.grid.group}];
  }
  for (const auto& [groups, count] : counts) {
    const std::string old = groups.first == 0 ? "one per output" : std::to_string(groups.first);
    plan.notes.push_back(std::to_string(count) + " modules: groups of " + std::to_string(groups.second) +
                         " in place of " + old + ", with the same values");
  }
}

Status plan_form(const ExportOptions& options, ExportPlan& plan) {
  if (options.format == ExportFormat::compressed_tensors) return plan_compressed_tensors(plan);
  const ModuleForm form = options.format == ExportFormat::gptq ? ModuleForm::gptq : ModuleForm::awq;
  for (ExportedModule& module : plan.modules) {
    if (has_codes(module)) module.form = form;
  }
  if (const Status fits = check_weights_only(plan); !fits) return fits;
  return form == ModuleForm::gptq ? plan_gptq(options, plan) : plan_awq(plan);
}

}  // namespace

Result<ExportPlan> plan_export(const ModelSource& source, const ExportOptions& options) {
  if (source.is_gguf() || cbq::packed_modules(*source.checkpoint()).empty()) {
    return Error{Errc::bad_argument, "the model is not quantized by cbq", source.path(), "",
                 "a folder that quantize or import wrote"};
  }
  const cbq::Checkpoint& files = *source.checkpoint();
  const Result<cbq::QuantizationRecord> record = cbq::parse_quantization(source.json(), cbq::packed_modules(files));
  if (!record) return cbq::in_context(record.error(), source.path());
  if (const Status sayable = check_sayable(source, *record, options); !sayable) return sayable.error();
  ExportPlan plan;
  plan.ignore = record->ignore;
  note_left_out(source, *record, plan);
  const std::string embedding = embedding_module(source.config()).name, head = head_module(source.config()).name;
  for (const cbq::ModuleScheme& entry : record->modules) {
    Result<ExportedModule> module = describe(files, entry);
    if (!module) return module.error();
    const bool looked_up = entry.module == embedding || entry.kind == cbq::ModuleKind::embedding;
    if (looked_up || entry.module == head) {
      plan.notes.push_back(entry.module + ": codes of " + std::to_string(entry.scheme.weight.bits) +
                           " bits written as F16");
      if (!looked_up) plan.ignore.push_back(entry.module);
    } else {
      module->form = ModuleForm::packed;
    }
    plan.modules.push_back(*std::move(module));
  }
  if (const Status planned = plan_form(options, plan); !planned) return planned.error();
  note_refined(plan);
  return plan;
}

cbq::QuantizedMatrixPlan matrix_plan(const ExportedModule& module) {
  return {module.name, module.outputs, module.inputs, module.grid, module.scales};
}

cbq::Json export_config(const ExportPlan& plan, const ExportOptions& options) {
  cbq::QuantizationRecord record;
  record.ignore = plan.ignore;
  std::vector<cbq::QuantizedMatrixPlan> matrices;
  for (const ExportedModule& module : plan.modules) {
    if (!has_codes(module)) continue;
    matrices.push_back(matrix_plan(module));
    record.modules.push_back(
        {module.name, {module.grid, module.scheme.activation}, cbq::ModuleKind::linear, module.ranges});
  }
  if (options.format == ExportFormat::compressed_tensors) return cbq::compressed_tensors_config(record);
  if (options.format == ExportFormat::gptq) return cbq::gptq_config(matrices, plan.ignore, plan.gptq_zeros);
  return cbq::awq_config(matrices.empty() ? 128 : matrices.front().grid.group, plan.ignore);
}

}  // namespace cbq_llama
