// SPDX-License-Identifier: Apache-2.0
#pragma once

// Calibration: sequences of tokens from texts, and what of them enters the first block.

#include <cstdint>
#include <span>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/nn/differentiable.hpp>

#include "changed_weights.hpp"
#include "quantization.hpp"

namespace cbq_llama {

/// Token ids of `samples` sequences, one after another, cut at random places of the texts. Errc::io, Errc::bad_argument
/// for a text shorter than a sequence or no text.
[[nodiscard]] cbq::Result<std::vector<std::int32_t>> calibration_tokens(const ModelSource& source,
                                                                        const CalibrationSettings& settings);

/// Sequences of one length.
struct CalibrationTokens {
  std::span<const std::int32_t> ids;
  std::size_t length = 0;
};

/// Embeddings of the tokens, and learned positions: what enters the first block of the float model, and of one whose
/// embedding is quantized as `plan` says.
struct FirstStates {
  cbq::TapeMatrix<float> target, student;

  [[nodiscard]] static cbq::Result<FirstStates> create(const ModelSource& source, std::span<const ModuleReport> plan,
                                                       const CalibrationTokens& tokens,
                                                       const QuantizationOptions& options);
};

}  // namespace cbq_llama
