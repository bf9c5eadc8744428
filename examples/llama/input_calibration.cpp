// SPDX-License-Identifier: Apache-2.0
#include "input_calibration.hpp"

#include <map>
#include <utility>

#include <cbq/quant/activation_range.hpp>
#include <cbq/quant/trip.hpp>

#include "block_scaling.hpp"
#include "decoder_blocks.hpp"
#include "float_walk.hpp"

namespace cbq_llama {

using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Squared error over squared values of rows x on a grid whose channels have these exponents (none: all 0).
double relative_error(const MatrixView<const float>& x, const cbq::Grid& grid, const cbq::StaticGrid& fixed,
                      std::span<const std::uint8_t> exponents) {
  const cbq::TokenGrid token = cbq::fit_token(fixed, grid);
  double error = 0, size = 0;
  std::vector<float> values(x.columns), rounded(x.columns);
  for (std::size_t r = 0; r < x.rows; ++r) {
    const auto factor = [&](std::size_t c) {
      return exponents.empty() ? 1.0f : static_cast<float>(std::uint32_t{1} << exponents[c]);
    };
    for (std::size_t c = 0; c < x.columns; ++c) values[c] = cbq::row(x, r)[c] / factor(c);
    cbq::fake_quantize_token(values, token, rounded.data());
    for (std::size_t c = 0; c < x.columns; ++c) {
      const double value = cbq::row(x, r)[c];
      const double difference = value - static_cast<double>(rounded[c] * factor(c));
      error += difference * difference;
      size += value * value;
    }
  }
  return size > 0 ? error / size : 0;
}

class InputCalibration {
 public:
  InputCalibration(std::vector<ModuleReport>& plan, const QuantizationOptions& options, ChangedWeights& weights)
      : plan_(plan), options_(options), weights_(weights), count_(block_modules(weights.config(), 0).size()) {}

  Result<InputObserver> prepare(std::size_t layer, std::size_t reader, std::size_t inputs) {
    const std::optional<cbq::Scheme>& scheme = plan_[layer * count_ + reader].scheme;
    if (!scheme || scheme->activation.granularity != cbq::Granularity::per_tensor) return InputObserver{};
    Result<cbq::ActivationRange> range = cbq::ActivationRange::create(inputs, input_sample_rows);
    if (!range) return range.error();
    return InputObserver{.range = &ranges_.emplace(reader, *std::move(range)).first->second};
  }

  Status finish(std::size_t layer) {
    std::map<std::size_t, std::vector<float>> factors;
    for (const auto& [reader, range] : ranges_) {
      const Status done = fix(layer, reader, range, factors[reader]);
      if (!done) return cbq::in_context(done.error(), plan_[layer * count_ + reader].module.name);
    }
    ranges_.clear();
    if (options_.activations.largest_exponent == 0) return {};
    Result<BlockWeights> block = BlockWeights::read(weights_, layer);
    if (!block) return block.error();
    const Status scaled = block->scale_inputs(
        [&](std::size_t reader, std::span<const cbq::LinearWeights<float>>) -> Result<std::vector<float>> {
          return std::move(factors[reader]);
        });
    if (!scaled) return scaled;
    (*std::move(block)).store(weights_);
    return {};
  }

 private:
  // Grid of one input, for all layers that read it, and its factors; none where they stay 1.
  Status fix(std::size_t layer, std::size_t reader, const cbq::ActivationRange& range, std::vector<float>& factors) {
    const ModuleReport& first = plan_[layer * count_ + reader];
    const cbq::Grid& grid = first.scheme->activation;
    const Result<cbq::Interval> interval = range.tensor(options_.activations.percentile, grid.zero);
    if (!interval) return interval.error();
    StaticInput input;
    input.grid = cbq::static_grid(grid, interval->low, interval->high);
    input.plain_error = input.error = relative_error(range.sample(), grid, input.grid, {});
    if (has_factors(first, reader)) {
      const cbq::TripOptions trip = {.grid = grid, .largest_exponent = options_.activations.largest_exponent};
      const auto found = cbq::find_trip_factors(range.sample(), *interval, trip);
      if (!found) return found.error();
      input.grid = found->grid();
      input.error = relative_error(range.sample(), grid, found->grid(), found->exponents());
      input.channels.assign(static_cast<std::size_t>(trip.largest_exponent) + 1, 0);
      for (const std::uint8_t exponent : found->exponents()) ++input.channels[exponent];
      factors.resize(range.channels());
      if (const Status made = cbq::trip_multipliers(found->exponents(), factors); !made) return made;
    }
    const Architecture architecture = weights_.config().architecture;
    for (std::size_t i = 0; i < count_; ++i) {
      if (first_reader(i, architecture) == reader) plan_[layer * count_ + i].inputs = input;
    }
    return {};
  }

  [[nodiscard]] bool has_factors(const ModuleReport& entry, std::size_t reader) const {
    const bool folds = reader + 1 != count_ || scales_last_input(weights_.config());
    return options_.activations.largest_exponent != 0 && folds && entry.rotation == cbq::InputRotation::none;
  }

  std::vector<ModuleReport>& plan_;
  const QuantizationOptions& options_;
  ChangedWeights& weights_;
  std::size_t count_;
  std::map<std::size_t, cbq::ActivationRange> ranges_;  // by reader
};

}  // namespace

Status calibrate_inputs(std::vector<ModuleReport>& plan, const CalibrationTokens& tokens,
                        const QuantizationOptions& options, ChangedWeights& weights) {
  InputCalibration calibration(plan, options, weights);
  const WalkObserver observer = {
      .prepare = [&](std::size_t layer, std::size_t reader,
                     std::size_t inputs) { return calibration.prepare(layer, reader, inputs); },
      .see = [&](std::size_t layer) { return calibration.finish(layer); }};
  return walk_blocks(weights, plan, tokens, options, "calibrating activations", observer);
}

}  // namespace cbq_llama
