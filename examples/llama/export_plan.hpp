// SPDX-License-Identifier: Apache-2.0
#pragma once

// What becomes of each module of a quantized folder in another program's form, settled before anything is written.

#include <cstddef>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/gptq.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/quantization_record.hpp>
#include <cbq/io/tensor.hpp>

#include "checkpoint_export.hpp"

namespace cbq_llama {

/// As what a module is written.
enum class ModuleForm : unsigned char {
  half,           ///< numbers in float16: embedding and head
  packed,         ///< compressed-tensors pack-quantized
  int_quantized,  ///< compressed-tensors int-quantized
  gptq,
  awq,
};

/// A module of the source that has codes.
struct ExportedModule {
  std::string name;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  cbq::Scheme scheme;  ///< of the source
  cbq::ActivationRanges ranges = cbq::ActivationRanges::dynamic;
  cbq::Grid grid;  ///< of the weights as they are written: groups may be shorter
  cbq::Dtype scales = cbq::Dtype::f16;
  ModuleForm form = ModuleForm::half;
};

struct ExportPlan {
  std::vector<ExportedModule> modules;
  std::vector<std::string> ignore;  ///< linear modules in floating point
  std::vector<std::string> notes;
  cbq::GptqZeros gptq_zeros = cbq::GptqZeros::v1;
};

/// The matrix of a module as it is written.
[[nodiscard]] cbq::QuantizedMatrixPlan matrix_plan(const ExportedModule& module);

/// Errors of export_checkpoint() but those of reading and writing tensors.
[[nodiscard]] cbq::Result<ExportPlan> plan_export(const ModelSource& source, const ExportOptions& options);

/// The folder's "quantization_config".
[[nodiscard]] cbq::Json export_config(const ExportPlan& plan, const ExportOptions& options);

}  // namespace cbq_llama
