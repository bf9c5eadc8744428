// SPDX-License-Identifier: Apache-2.0
#pragma once

// `cbq-llama quantize --preprocess cfp|smoothquant`: one pass of the float model over the calibration text, from which
// channels of activations are scaled (and, for CFP, weight outliers truncated) in all blocks. Holds the changed blocks
// in floating point.
//   cfp          inputs of all linear layers, outlier channels only; weights truncated under guards
//   cfp_scaling, cfp_truncation  half of it
//   smoothquant  inputs that come from a norm, all channels, alpha 0.5

#include <span>
#include <string>
#include <vector>

#include "calibration.hpp"

namespace cbq_llama {

/// Replaces weights of the blocks in `weights`. Errors of reading the model; Errc::not_finite naming channel and token.
[[nodiscard]] cbq::Status preprocess(std::span<const ModuleReport> plan, const CalibrationTokens& tokens,
                                     const QuantizationOptions& options, ChangedWeights& weights);

/// How large what a layer reads becomes.
struct ChannelSizes {
  std::string module;             ///< the first of those that read it: q_proj for k_proj and v_proj
  std::vector<float> magnitudes;  ///< largest, by channel
};

/// Of the layers of all blocks in floating point. Errors as preprocess().
[[nodiscard]] cbq::Result<std::vector<ChannelSizes>> input_sizes(const CalibrationTokens& tokens,
                                                                 const QuantizationOptions& options,
                                                                 const ChangedWeights& weights);

}  // namespace cbq_llama
