// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_export.hpp"

#include <algorithm>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include <unistd.h>

#include <cbq/io/atomic_folder.hpp>
#include <cbq/io/awq.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/int_quantized.hpp>
#include <cbq/io/refined_groups.hpp>
#include <cbq/io/sharded_writer.hpp>
#include <cbq/io/stored_input_grid.hpp>
#include <cbq/quant/quantized_matrix.hpp>

#include "export_plan.hpp"
#include "interrupt.hpp"
#include "kv_smoothing_files.hpp"
#include "model_companions.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::ShardedWriter;
using cbq::Status;
using cbq::TensorPlan;
using cbq::TensorView;

namespace {

// Of a module's tensors, those that its new form takes the place of.
constexpr const char* module_parts[] = {".weight_packed",     ".weight_scale", ".weight_shape",
                                        ".weight_zero_point", ".input_scale",  ".input_zero_point"};

// Writes a folder module by module.
class Exporter {
 public:
  Exporter(const ModelSource& source, const ExportPlan& plan) : files_(*source.checkpoint()), plan_(plan) {
    for (const ExportedModule& module : plan.modules) {
      for (const char* part : module_parts) (void)replaced_.insert(module.name + part);
    }
    for (std::size_t layer = 0; layer < source.config().layers; ++layer) {
      for (const SmoothingTensor& tensor : smoothing_tensors(source.config(), layer))
        (void)replaced_.insert(tensor.name);
    }
  }

  Status write(const std::string& folder, std::size_t shard_bytes, ExportReport& report) {
    std::vector<TensorPlan> tensors;
    for (const ExportedModule& module : plan_.modules) {
      if (const Status planned = plan_module(module, tensors); !planned) return planned;
    }
    for (const TensorView& tensor : files_.tensors()) {
      if (is_copied(tensor)) tensors.push_back({std::string(tensor.name), tensor.dtype, tensor.shape});
    }
    Result<ShardedWriter> writer = ShardedWriter::create(folder, tensors, shard_bytes);
    if (!writer) return writer.error();
    for (const ExportedModule& module : plan_.modules) {
      if (const Status ok = check_interrupt(); !ok) return ok;
      if (const Status written = write_module(module, *writer); !written)
        return cbq::in_context(written.error(), module.name);
    }
    for (const TensorView& tensor : files_.tensors()) {
      if (const Status ok = check_interrupt(); !ok) return ok;
      if (!is_copied(tensor)) continue;
      if (const Status written = copy(tensor, *writer); !written) return written;
    }
    report.bytes_read = bytes_read_;
    report.bytes_written = writer->file_bytes();
    return writer->commit();
  }

 private:
  [[nodiscard]] bool is_copied(const TensorView& tensor) const {
    return replaced_.find(tensor.name) == replaced_.end();
  }

  static Status plan_module(const ExportedModule& module, std::vector<TensorPlan>& tensors) {
    switch (module.form) {
      case ModuleForm::int_quantized:
        if (module.ranges == cbq::ActivationRanges::fixed) {
          cbq::plan_input_grid(module.name, module.scheme.activation, tensors);
        }
        return cbq::plan_int_quantized(matrix_plan(module), tensors);
      case ModuleForm::packed:
        return cbq::plan_tensors(matrix_plan(module), tensors);
      case ModuleForm::gptq:
        return cbq::plan_gptq(matrix_plan(module), tensors);
      case ModuleForm::awq:
        return cbq::plan_awq(matrix_plan(module), tensors);
      case ModuleForm::half:
        break;
    }
    tensors.push_back(
        {module.name + ".weight", cbq::Dtype::f16, {.rank = 2, .sizes = {module.outputs, module.inputs}}});
    return {};
  }

  Status write_module(const ExportedModule& module, ShardedWriter& writer) {
    Result<cbq::StoredMatrix> stored = cbq::StoredMatrix::read(files_, module.name, module.scheme.weight);
    release(module.name);
    if (!stored) return stored.error();
    if (module.form == ModuleForm::half) return write_halves(module, stored->view(), writer);
    std::optional<cbq::RefinedGroups> refined;
    if (module.grid != module.scheme.weight) {
      Result<cbq::RefinedGroups> made = cbq::RefinedGroups::create(stored->view(), stored->grid(), module.grid.group);
      if (!made) return made.error();
      refined = *std::move(made);
    }
    return write_codes(module, refined ? refined->view() : stored->view(), writer);
  }

  Status write_codes(const ExportedModule& module, const cbq::QuantizedMatrixView& matrix,
                     ShardedWriter& writer) const {
    switch (module.form) {
      case ModuleForm::packed:
        return cbq::write_quantized_matrix(writer, module.name, matrix, module.grid);
      case ModuleForm::gptq:
        return cbq::write_gptq(writer, module.name, matrix, module.grid, plan_.gptq_zeros);
      case ModuleForm::awq:
        return cbq::write_awq(writer, module.name, matrix, module.grid);
      case ModuleForm::int_quantized:
      case ModuleForm::half:
        break;
    }
    if (module.ranges == cbq::ActivationRanges::fixed) {
      const cbq::Grid& grid = module.scheme.activation;
      const Result<cbq::StaticGrid> fixed = cbq::read_input_grid(files_, module.name, grid);
      if (!fixed) return fixed.error();
      if (const Status ok = cbq::write_input_grid(writer, module.name, grid, *fixed); !ok) return ok;
    }
    return cbq::write_int_quantized(writer, module.name, matrix, module.grid);
  }

  static Status write_halves(const ExportedModule& module, const cbq::QuantizedMatrixView& matrix,
                             ShardedWriter& writer) {
    const std::size_t step = std::max<std::size_t>(1, (std::size_t{1} << 19) / std::max<std::size_t>(1, module.inputs));
    auto memory = cbq::AlignedBuffer<cbq::half>::allocate(std::min(step, module.outputs) * module.inputs);
    if (!memory) return memory.error();
    for (std::size_t n = 0; n < module.outputs; n += step) {
      const std::size_t count = std::min(step, module.outputs - n);
      const cbq::QuantizedMatrixView part = {cbq::rows(matrix.codes, n, count), cbq::rows(matrix.scales, n, count),
                                             matrix.zeros.rows == 0 ? matrix.zeros : cbq::rows(matrix.zeros, n, count)};
      const cbq::MatrixView<cbq::half> out = cbq::matrix_view(memory->data(), count, module.inputs);
      if (const Status ok = cbq::dequantize(part, module.scheme.weight, out); !ok) return ok;
      const std::span<const cbq::half> values(memory->data(), count * module.inputs);
      const bool large =
          std::any_of(values.begin(), values.end(), [](cbq::half value) { return (value.bits & 0x7c00u) == 0x7c00u; });
      if (large) return Error{Errc::unsupported, "a weight is too large for F16", ErrorText("from row ") << n};
      if (const Status ok = writer.write(module.name + ".weight", values); !ok) return ok;
    }
    return {};
  }

  Status copy(const TensorView& tensor, ShardedWriter& writer) {
    constexpr std::size_t piece = std::size_t{1} << 22;
    for (std::size_t at = 0; at < tensor.bytes.size(); at += piece) {
      TensorView part = tensor;
      part.bytes = tensor.bytes.subspan(at, std::min(piece, tensor.bytes.size() - at));
      if (const Status ok = writer.write(tensor.name, part.bytes); !ok) return ok;
      files_.release(part);
    }
    bytes_read_ += tensor.bytes.size();
    return {};
  }

  void release(const std::string& module) {
    for (const char* part : module_parts) {
      const TensorView* tensor = files_.find(module + part);
      if (tensor == nullptr) continue;
      bytes_read_ += tensor->bytes.size();
      files_.release(*tensor);
    }
  }

  const cbq::Checkpoint& files_;
  const ExportPlan& plan_;
  std::set<std::string, std::less<>> replaced_;
  std::size_t bytes_read_ = 0;
};

// The type that other programs compute in: that of the scales, which a narrower one would round.
void set_dtype(cbq::Json& config, const ExportPlan& plan, ExportReport& report) {
  const bool halves = std::all_of(plan.modules.begin(), plan.modules.end(),
                                  [](const ExportedModule& module) { return module.scales == cbq::Dtype::f16; });
  const char* key = config.contains("torch_dtype") ? "torch_dtype" : "dtype";
  if (!halves || (config.contains(key) && cbq::json_is(config[key], "float16"))) return;
  report.notes.push_back(std::string(key) + " float16 in config.json, as bfloat16 would round the scales");
  config[key] = "float16";
}

Status write_config(const cbq::AtomicFolder& folder, const ModelSource& source, const ExportPlan& plan,
                    const ExportOptions& options, ExportReport& report) {
  cbq::Json config = source.json();
  config.erase("cbq");
  config["quantization_config"] = export_config(plan, options);
  if (options.format == ExportFormat::gptq) {
    const std::string copy = cbq::json_text(config["quantization_config"]);
    if (const Status ok = cbq::write_file(folder.file("quantize_config.json"), copy); !ok) return ok;
  }
  set_dtype(config, plan, report);
  return cbq::write_file(folder.file("config.json"), cbq::json_text(config));
}

void note_companions(const ModelSource& source, ExportReport& report) {
  if (::access((source.path() + "/tokenizer.json").c_str(), F_OK) == 0) return;
  if (::access((source.path() + "/" + vocabulary_file).c_str(), F_OK) != 0) return;
  report.notes.push_back(std::string("the tokenizer is ") + vocabulary_file + ", which only cbq reads");
}

}  // namespace

Result<ExportReport> export_checkpoint(const ModelSource& source, const std::string& output,
                                       const ExportOptions& options) {
  Result<ExportPlan> plan = plan_export(source, options);
  if (!plan) return plan.error();
  Result<cbq::AtomicFolder> folder = cbq::AtomicFolder::create(output);
  if (!folder) return folder.error();
  ExportReport report;
  report.notes = plan->notes;
  Exporter exporter(source, *plan);
  if (const Status done = exporter.write(folder->path(), options.shard_bytes, report); !done) return done.error();
  if (const Status done = write_config(*folder, source, *plan, options, report); !done) return done.error();
  if (const Status done = copy_companions(*folder, source); !done) return done.error();
  note_companions(source, report);
  if (const Status ok = check_interrupt(); !ok) return ok.error();
  if (const Status same = source.check_unchanged(); !same) return same.error();
  if (const Status done = folder->commit(); !done) return done.error();
  return report;
}

}  // namespace cbq_llama
