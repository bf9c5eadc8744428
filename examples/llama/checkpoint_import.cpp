// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_import.hpp"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>
#include <vector>

#include <cbq/io/atomic_folder.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/io/sharded_writer.hpp>
#include <cbq/io/stored_input_grid.hpp>
#include <cbq/quant/quantized_matrix.hpp>

#include "import_plan.hpp"
#include "interrupt.hpp"
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

class Importer {
 public:
  Importer(const cbq::Checkpoint& files, const ImportPlan& plan) : files_(files), plan_(plan) {
    for (const ForeignModule& module : plan.modules) {
      for (const std::string_view part : foreign_parts(module.form))
        (void)replaced_.insert(module.name + std::string(part));
    }
    for (const std::string& name : plan.left_out) (void)replaced_.insert(name);
  }

  Status write(const std::string& folder, ExportReport& report) {
    std::vector<TensorPlan> tensors;
    for (const ForeignModule& module : plan_.modules) {
      const Status planned =
          cbq::plan_tensors({module.name, module.outputs, module.inputs, module.scheme.weight, module.scales}, tensors);
      if (!planned) return planned;
      if (module.ranges == cbq::ActivationRanges::fixed) {
        cbq::plan_input_grid(module.name, module.scheme.activation, tensors);
      }
    }
    for (const TensorView& tensor : files_.tensors()) {
      if (replaced_.find(tensor.name) != replaced_.end()) continue;
      if (const Status plain = check_plain(tensor); !plain) return plain;
      tensors.push_back({std::string(tensor.name), tensor.dtype, tensor.shape});
    }
    Result<ShardedWriter> writer = ShardedWriter::create(folder, tensors);
    if (!writer) return writer.error();
    for (const ForeignModule& module : plan_.modules) {
      if (const Status ok = check_interrupt(); !ok) return ok;
      if (const Status written = write_module(module, *writer); !written) return written;
    }
    for (const TensorView& tensor : files_.tensors()) {
      if (replaced_.find(tensor.name) != replaced_.end()) continue;
      if (const Status ok = check_interrupt(); !ok) return ok;
      if (const Status written = writer->write(tensor.name, tensor.bytes); !written) return written;
      release(tensor);
    }
    report.bytes_read = bytes_read_;
    report.bytes_written = writer->file_bytes();
    return writer->commit();
  }

 private:
  // What is no number by itself belongs to a module in a form that was not recognized.
  static Status check_plain(const TensorView& tensor) {
    using cbq::Dtype;
    const bool plain = tensor.dtype == Dtype::f16 || tensor.dtype == Dtype::bf16 || tensor.dtype == Dtype::f32;
    if (plain) return {};
    return Error{Errc::unsupported, "a tensor of no form that cbq reads", tensor.name, cbq::dtype_name(tensor.dtype)};
  }

  Status write_module(const ForeignModule& module, ShardedWriter& writer) {
    Result<cbq::StoredMatrix> matrix = read_foreign(files_, module);
    if (!matrix) return matrix.error();
    for (const std::string_view part : foreign_parts(module.form)) {
      if (const TensorView* tensor = files_.find(module.name + std::string(part))) release(*tensor);
    }
    const cbq::QuantizedMatrixView view = matrix->view();
    if (view.codes.rows != module.outputs || view.codes.columns != module.inputs) {
      return Error{Errc::bad_shape, "a tensor has the wrong shape", module.name,
                   ErrorText("[") << view.codes.rows << ", " << view.codes.columns << "]",
                   ErrorText("[") << module.outputs << ", " << module.inputs << "]"};
    }
    if (const Status valid = cbq::check_values(view, module.scheme.weight); !valid) {
      return cbq::in_context(valid.error(), module.name);
    }
    if (module.ranges == cbq::ActivationRanges::fixed) {
      const cbq::Grid& grid = module.scheme.activation;
      const Result<cbq::StaticGrid> fixed = cbq::read_input_grid(files_, module.name, grid);
      if (!fixed) return fixed.error();
      if (const Status ok = cbq::write_input_grid(writer, module.name, grid, *fixed); !ok) return ok;
    }
    return cbq::write_quantized_matrix(writer, module.name, view, module.scheme.weight);
  }

  void release(const TensorView& tensor) {
    bytes_read_ += tensor.bytes.size();
    files_.release(tensor);
  }

  const cbq::Checkpoint& files_;
  const ImportPlan& plan_;
  std::set<std::string, std::less<>> replaced_;
  std::size_t bytes_read_ = 0;
};

Status write_config(const std::string& path, const ModelSource& source, const ImportPlan& plan) {
  cbq::Json config = source.json();
  cbq::QuantizationRecord record;
  record.method = plan.method;
  record.ignore = plan.ignore;
  for (const ForeignModule& module : plan.modules) {
    record.modules.push_back({module.name, module.scheme, cbq::ModuleKind::linear, module.ranges});
  }
  if (const Status ok = cbq::add_quantization(config, record); !ok) return ok;
  return cbq::write_file(path, cbq::json_text(config));
}

}  // namespace

Result<ExportReport> import_checkpoint(const ModelSource& source, const std::string& output) {
  const Result<ImportPlan> plan = plan_import(source);
  if (!plan) return plan.error();
  const Result<bool> replaces = cbq::is_quantized_folder(output);
  if (!replaces) return replaces.error();
  const cbq::Existing existing = *replaces ? cbq::Existing::replace : cbq::Existing::refuse;
  Result<cbq::AtomicFolder> folder = cbq::AtomicFolder::create(output, existing);
  if (!folder) return folder.error();
  ExportReport report;
  report.notes = plan->notes;
  Importer importer(*source.checkpoint(), *plan);
  if (const Status done = importer.write(folder->path(), report); !done) return done.error();
  if (const Status done = write_config(folder->file("config.json"), source, *plan); !done) return done.error();
  if (const Status done = copy_companions(*folder, source); !done) return done.error();
  if (const Status ok = check_interrupt(); !ok) return ok.error();
  if (const Status same = source.check_unchanged(); !same) return same.error();
  if (const Status done = folder->commit(); !done) return done.error();
  return report;
}

}  // namespace cbq_llama
