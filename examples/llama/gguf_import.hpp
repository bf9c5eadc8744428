// SPDX-License-Identifier: Apache-2.0
#pragma once

// A LLaMA model from a GGUF file as a folder that cbq runs: codes of Q4_0, Q8_0 and (where exact) Q4_1 blocks become
// packed codes without rounding, matrices in floating point stay as they are, tokenizer and configuration come from the
// metadata. A piece of one tensor is in memory at a time, of quantized ones the tensor.

#include <string>

#include <cbq/core/result.hpp>

#include "gguf_export.hpp"
#include "model_source.hpp"

namespace cbq_llama {

/// Writes the model of a GGUF file to the folder `output`; an existing folder is replaced only if cbq wrote it. Files
/// of export_gguf() get the schemes and groups back that they were made of, others w4a16_g32, w4a16_g32_asym or
/// w8a16_g32. An embedding or head in other blocks becomes float16, with a note. Errc::unsupported, with the tensor:
/// other layers in other blocks, a Q4_1 minimum that is no integer zero point. Errc::bad_argument: a model that is no
/// GGUF file. Errors of reading, Errc::io, Errc::interrupted; the target is then as it was.
[[nodiscard]] cbq::Result<ExportReport> import_gguf(const ModelSource& source, const std::string& output);

}  // namespace cbq_llama
