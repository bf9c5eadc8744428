// SPDX-License-Identifier: Apache-2.0
#include "export_plan.hpp"

#include <utility>

#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/compressed_tensors_config.hpp>
#include <cbq/io/refined_groups.hpp>

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

bool is_ragged(const ExportedModule& module) {
  const cbq::Grid& grid = module.scheme.weight;
  return grid.granularity == cbq::Granularity::per_group && module.inputs % static_cast<std::size_t>(grid.group) != 0;
}

// Groups of `group` inputs for the module, which divide the ones it has.
Status refine(ExportedModule& module, std::size_t group, ExportPlan& plan) {
  constexpr std::size_t smallest = 8;
  if (group < smallest) {
    return Error{Errc::unsupported, "groups that divide the inputs would be too short", module.name,
                 ErrorText(module.inputs) << " inputs", ErrorText("a multiple of ") << smallest};
  }
  module.grid.granularity = cbq::Granularity::per_group;
  module.grid.group = static_cast<int>(group);
  plan.notes.push_back(module.name + ": groups of " + std::to_string(group) +
                       " with the same values, as its inputs end within a group");
  return {};
}

Status plan_compressed_tensors(ExportedModule& module, ExportPlan& plan) {
  module.form = cbq::is_int_quantized(module.scheme) ? ModuleForm::int_quantized : ModuleForm::packed;
  if (!is_ragged(module)) return {};
  if (module.scheme.activation.granularity == cbq::Granularity::per_group) {
    return Error{Errc::unsupported, "groups of activations that do not divide the inputs", module.name,
                 ErrorText(module.inputs) << " inputs", ErrorText("groups of ") << module.scheme.activation.group};
  }
  return refine(module, cbq::dividing_group(module.scheme.weight, module.inputs, module.inputs), plan);
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
    if (entry.module == embedding || entry.module == head || entry.kind == cbq::ModuleKind::embedding) {
      plan.notes.push_back(entry.module + ": codes of " + std::to_string(entry.scheme.weight.bits) +
                           " bits written as F16");
      if (entry.kind == cbq::ModuleKind::linear) plan.ignore.push_back(entry.module);
    } else if (const Status planned = plan_compressed_tensors(*module, plan); !planned) {
      return planned.error();
    }
    plan.modules.push_back(*std::move(module));
  }
  return plan;
}

cbq::Json export_config(const ExportPlan& plan, const ExportOptions&) {
  cbq::QuantizationRecord record;
  record.ignore = plan.ignore;
  for (const ExportedModule& module : plan.modules) {
    if (module.form == ModuleForm::half) continue;
    record.modules.push_back(
        {module.name, {module.grid, module.scheme.activation}, cbq::ModuleKind::linear, module.ranges});
  }
  return cbq::compressed_tensors_config(record);
}

}  // namespace cbq_llama
