// SPDX-License-Identifier: Apache-2.0
#pragma once

// Static activations of `cbq-llama quantize --method agile`: one pass of the float model over the calibration text
// finds one grid for what each linear layer reads, from the extremes or a percentile of all values, and with TRIP
// power-of-two factors of its channels, which are folded into what makes the input (algorithm A of
// <cbq/quant/trip.hpp>). Channels that a rotation or GELU mixes before they are read keep their factors of 1. With
// `--prune` the pass drops tokens, and layers see those that are left to them.

#include <optional>
#include <vector>

#include <cbq/quant/activation_range.hpp>

#include "calibration.hpp"

namespace cbq_llama {

/// Sets `inputs` of the entries of `plan` whose activations are per tensor, and folds factors into `weights`.
/// `plan` begins with the blocks' layers. Errors of reading the model; Errc::bad_argument (percentile, exponent);
/// Errc::not_finite naming layer and token.
[[nodiscard]] cbq::Status calibrate_inputs(std::vector<ModuleReport>& plan, const CalibrationTokens& tokens,
                                           const QuantizationOptions& options, ChangedWeights& weights);

/// What a static grid spans: `percentile` of all values, else default_percentile() of the grid's bits, else, where that
/// leaves nothing but zero, their extremes. Errc::bad_argument where the percentile that was asked for does so.
[[nodiscard]] cbq::Result<cbq::Interval> static_interval(const cbq::ActivationRange& range, const cbq::Grid& grid,
                                                         const std::optional<double>& percentile);

/// Rows of each input that percentiles and factors are found on.
inline constexpr std::size_t input_sample_rows = 4096;

}  // namespace cbq_llama
