// SPDX-License-Identifier: Apache-2.0
#pragma once

// `cbq-llama export`: a quantized model as a folder in a form that other programs read. Nothing is quantized anew:
// codes, scales and zero points keep their values, and what a form cannot say is refused. One module is in memory at a
// time.

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/gptq.hpp>

#include "model_source.hpp"

namespace cbq_llama {

/// Forms of a folder, and gguf: one file (gguf_export.hpp). Their names on the command line are those of
/// export_format_names, in their order.
enum class ExportFormat : unsigned char { compressed_tensors, gptq, awq, gguf };
inline constexpr const char* export_format_names[] = {"compressed-tensors", "gptq", "awq", "gguf"};

struct ExportOptions {
  ExportFormat format = ExportFormat::compressed_tensors;
  std::size_t shard_bytes = 0;                    ///< largest shard; 0: one file
  std::optional<cbq::GptqZeros> gptq_zeros = {};  ///< nothing: v1 where all grids are symmetric, otherwise v2
};

/// What an export or an import did.
struct ExportReport {
  std::size_t bytes_read = 0;      ///< of tensors
  std::size_t bytes_written = 0;   ///< of files of tensors
  std::vector<std::string> notes;  ///< what changed its form or was left out
};

/// Writes the quantized folder `source` as the folder `output`, which does not exist or is empty and appears only when
/// it is complete. Errc::bad_argument (a model in floating point), Errc::unsupported naming the module that the form
/// cannot hold, Errc::io, Errc::interrupted, errors of reading.
[[nodiscard]] cbq::Result<ExportReport> export_checkpoint(const ModelSource& source, const std::string& output,
                                                          const ExportOptions& options);

}  // namespace cbq_llama
