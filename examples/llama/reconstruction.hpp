// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reconstruction of a checkpoint's blocks on calibration text: `cbq-llama quantize --method cbq`.

#include <span>
#include <string>
#include <vector>

#include "calibration.hpp"

namespace cbq_llama {

struct Reconstructed {
  CodesByModule codes;  ///< of the linear layers of all blocks, by module name
  ClipsByModule clips;
  std::vector<cbq::KvSmoothing> smoothing;  ///< of caches with `_2d`
  std::vector<cbq::WindowReport> windows;
  std::size_t trained_parameters = 0;  ///< of all blocks
};

/// Where reconstruction into the folder `output` keeps its state.
[[nodiscard]] std::string checkpoint_path(const std::string& output);

/// Codes for the schemes of `plan`; weights may have been preprocessed, targets are those of the model as it was. After
/// each window the state is written to the file `checkpoint`, which stays until the caller removes it; with
/// Resume::yes it is read first. Errors of reading the model and of cbq::reconstruct(); Errc::unsupported where a layer
/// has no scheme; Errc::bad_argument for a file `checkpoint` that is not to be continued.
[[nodiscard]] cbq::Result<Reconstructed> reconstruct_blocks(const ChangedWeights& weights,
                                                            std::span<const ModuleReport> plan,
                                                            const CalibrationTokens& tokens,
                                                            const std::string& checkpoint,
                                                            const QuantizationOptions& options);

}  // namespace cbq_llama
