// SPDX-License-Identifier: Apache-2.0
#pragma once

// Calibration: sequences of tokens from texts, and what of them enters the first block.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/scratch_file.hpp>
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
  std::string scratch = {};  ///< their hidden states lie in temporary files beside this path; empty: in memory
};

/// The hidden states of all sequences.
class StateMatrix {
 public:
  /// Errc::out_of_memory, Errc::bad_shape, Errc::io.
  [[nodiscard]] static cbq::Result<StateMatrix> create(std::size_t rows, std::size_t columns,
                                                       const std::string& scratch);
  [[nodiscard]] const cbq::MatrixView<float>& view() const { return view_; }

 private:
  cbq::AlignedBuffer<float> memory_;
  cbq::ScratchFile file_;
  cbq::MatrixView<float> view_ = {};
};

/// Embeddings of the tokens, and learned positions: what enters the first block of the float model, and of one whose
/// embedding is quantized as `plan` says.
struct FirstStates {
  StateMatrix target, student;

  [[nodiscard]] static cbq::Result<FirstStates> create(const ChangedWeights& weights,
                                                       std::span<const ModuleReport> plan,
                                                       const CalibrationTokens& tokens,
                                                       const QuantizationOptions& options);
};

}  // namespace cbq_llama
