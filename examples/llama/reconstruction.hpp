// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reconstruction of a checkpoint's blocks on calibration text: `cbq-llama quantize --method cbq`.

#include <cstdint>
#include <span>
#include <vector>

#include <cbq/core/result.hpp>

#include "model_source.hpp"
#include "quantization.hpp"

namespace cbq_llama {

/// Token ids of `samples` sequences, one after another, cut at random places of the texts. Errc::io, Errc::bad_argument
/// for a text shorter than a sequence or no text.
[[nodiscard]] cbq::Result<std::vector<std::int32_t>> calibration_tokens(const ModelSource& source,
                                                                        const ReconstructionSettings& settings);

/// Codes of the linear layers of all blocks, by module name, for the schemes of `plan`. Errors of reading the model and
/// of cbq::reconstruct(); Errc::unsupported where a block has layers without a scheme.
[[nodiscard]] cbq::Result<CodesByModule> reconstruct_blocks(const ModelSource& source,
                                                            std::span<const ModuleReport> plan,
                                                            std::span<const std::int32_t> tokens,
                                                            const QuantizationOptions& options);

}  // namespace cbq_llama
