// SPDX-License-Identifier: Apache-2.0
#pragma once

// What another program's quantized folder holds, found in its config.json and its tensors before anything is read.

#include <string>
#include <string_view>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/checkpoint.hpp>
#include <cbq/io/gptq.hpp>
#include <cbq/io/quantization_record.hpp>
#include <cbq/io/stored_matrix.hpp>
#include <cbq/io/tensor.hpp>

#include "model_source.hpp"

namespace cbq_llama {

/// In what form a folder stores a module.
enum class ForeignForm : unsigned char { packed, int_quantized, gptq, awq };

/// A module stored as codes.
struct ForeignModule {
  std::string name;
  cbq::Scheme scheme;
  cbq::ActivationRanges ranges = cbq::ActivationRanges::dynamic;
  ForeignForm form = ForeignForm::packed;
  cbq::GptqZeros zeros = cbq::GptqZeros::v1;
  cbq::Dtype scales = cbq::Dtype::f16;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

struct ImportPlan {
  std::vector<ForeignModule> modules;
  std::vector<std::string> ignore;    ///< linear modules in floating point
  std::string method;                 ///< "compressed-tensors", "gptq", "awq"
  std::vector<std::string> left_out;  ///< tensors without meaning: biases of zeros that the model does not have
  std::vector<std::string> notes;
};

/// Errors of import_checkpoint() but those of reading and writing tensors.
[[nodiscard]] cbq::Result<ImportPlan> plan_import(const ModelSource& source);

/// The parts of a tensor name that belong to codes in the form, each with its dot.
[[nodiscard]] std::vector<std::string_view> foreign_parts(ForeignForm form);

/// Codes, scales and zero points of a module.
[[nodiscard]] cbq::Result<cbq::StoredMatrix> read_foreign(const cbq::Checkpoint& files, const ForeignModule& module);

}  // namespace cbq_llama
