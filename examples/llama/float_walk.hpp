// SPDX-License-Identifier: Apache-2.0
#pragma once

// A pass of the float model over the calibration text, block by block, that shows somebody what the linear layers read.

#include <cstddef>
#include <functional>
#include <span>

#include "calibration.hpp"

namespace cbq_llama {

struct InputObserver;

/// What looks on. Readers are named by the first layer of a block that reads an input; see first_reader().
struct WalkObserver {
  /// Before block `layer`: what is to be told of the input of `reader`, rotated as the plan says.
  std::function<cbq::Result<InputObserver>(std::size_t layer, std::size_t reader, std::size_t inputs)> prepare;
  /// Behind block `layer`, whose weights may be changed now.
  std::function<cbq::Status(std::size_t layer)> see;
};

/// `what` is a verb for the progress. Errors of reading the model and of the observer; Errc::not_finite naming channel
/// and token.
[[nodiscard]] cbq::Status walk_blocks(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                      const CalibrationTokens& tokens, const QuantizationOptions& options,
                                      const char* what, const WalkObserver& observer);

}  // namespace cbq_llama
