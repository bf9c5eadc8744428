// SPDX-License-Identifier: Apache-2.0
#pragma once

// `cbq-llama quantize --method gptq`: block by block, with the inputs that the quantized blocks before it give. The
// layers of a block are rounded from inputs of its float form.

#include <span>

#include "calibration.hpp"

namespace cbq_llama {

/// Codes of the linear layers of all blocks for the schemes of `plan`. Errors of reading the model and of cbq::gptq();
/// Errc::unsupported where a layer has no scheme, Errc::not_finite, Errc::interrupted.
[[nodiscard]] cbq::Result<CodesByModule> gptq_blocks(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                                     const CalibrationTokens& tokens,
                                                     const QuantizationOptions& options);

}  // namespace cbq_llama
