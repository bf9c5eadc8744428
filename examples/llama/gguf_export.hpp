// SPDX-License-Identifier: Apache-2.0
#pragma once

// A LLaMA model as one GGUF file, for llama.cpp and what reads its files: weights in the blocks of
// <cbq/io/gguf_encoding.hpp>, norms and biases in F32, other matrices as they are stored, tokenizer and configuration
// as metadata. Every weight keeps its value. A piece of one tensor is in memory at a time.

#include <string>

#include <cbq/core/result.hpp>

#include "checkpoint_export.hpp"
#include "model_source.hpp"

namespace cbq_llama {

/// The metadata key in which an exported file says how its model was quantized: the "cbq" object of config.json as
/// text. import_gguf() restores schemes and groups from it; other programs ignore it.
inline constexpr const char* gguf_quantization_key = "cbq.quantization";

/// Writes the model of a folder, in floating point or quantized, to the file `output`, NAME.gguf. Errc::unsupported,
/// with the module: another architecture, rotations or clips of activations, which GGUF cannot say, weights
/// without exact blocks, a tokenizer that GGUF has no words for.
/// Errc::bad_argument: a model that is a GGUF file, another ending of the name. Errors of reading, Errc::io,
/// Errc::interrupted; a file at `output` is then as it was.
[[nodiscard]] cbq::Result<ExportReport> export_gguf(const ModelSource& source, const std::string& output);

}  // namespace cbq_llama
