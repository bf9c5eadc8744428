// SPDX-License-Identifier: Apache-2.0
#include "input_calibration.hpp"

#include <cmath>
#include <map>
#include <utility>

#include <cbq/quant/activation_range.hpp>
#include <cbq/quant/trip.hpp>
#include <cbq/transform/channel_scaling.hpp>

#include "block_scaling.hpp"
#include "decoder_blocks.hpp"
#include "float_walk.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Squared error over squared values of rows x on a grid whose channels have these factors (none: all 1).
double relative_error(const MatrixView<const float>& x, const cbq::Grid& grid, const cbq::StaticGrid& fixed,
                      std::span<const float> factors) {
  const cbq::TokenGrid token = cbq::fit_token(fixed, grid);
  double error = 0, size = 0;
  std::vector<float> values(x.columns), rounded(x.columns);
  for (std::size_t r = 0; r < x.rows; ++r) {
    const auto factor = [&](std::size_t c) { return factors.empty() ? 1.0f : factors[c]; };
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

  // What is to see the input of `reader`; null where no grid is wanted.
  Result<cbq::ActivationRange*> prepare(std::size_t layer, std::size_t reader, std::size_t inputs) {
    const ModuleReport* first = first_quantized(layer, reader);
    if (first == nullptr || first->scheme->activation.granularity != cbq::Granularity::per_tensor) return nullptr;
    Result<cbq::ActivationRange> range = cbq::ActivationRange::create(inputs, input_sample_rows);
    if (!range) return range.error();
    return &ranges_[layer].emplace(reader, *std::move(range)).first->second;
  }

  Status finish(std::size_t layer) {
    std::map<std::size_t, std::vector<float>> factors;
    for (const auto& [reader, range] : ranges_[layer]) {
      const Status done = fix(layer, reader, range, factors[reader]);
      if (!done) return cbq::in_context(done.error(), plan_[layer * count_ + reader].module.name);
    }
    ranges_.erase(layer);
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
  [[nodiscard]] const ModuleReport* first_quantized(std::size_t layer, std::size_t reader) const {
    const std::span<const ModuleReport> block(plan_.data() + layer * count_, count_);
    return first_quantized_reader(block, reader, weights_.config().architecture);
  }

  // Grid of one input, for all quantized layers that read it, and its factors; none where they stay 1.
  Status fix(std::size_t layer, std::size_t reader, const cbq::ActivationRange& range, std::vector<float>& factors) {
    const ModuleReport& first = *first_quantized(layer, reader);
    const cbq::Grid& grid = first.scheme->activation;
    const Result<cbq::Interval> interval = static_interval(range, grid, options_.activations.percentile);
    if (!interval) return interval.error();
    StaticInput input;
    input.grid = cbq::static_grid(grid, interval->low, interval->high);
    input.plain_error = input.error = relative_error(range.sample(), grid, input.grid, {});
    if (has_factors(first, reader)) {
      const cbq::TripOptions trip = {.grid = grid, .largest_exponent = options_.activations.largest_exponent};
      const auto found = cbq::find_trip_factors(range.sample(), *interval, trip);
      if (!found) return found.error();
      input.grid = found->grid();
      factors.resize(range.channels());
      if (const Status made = cbq::trip_multipliers(found->exponents(), factors); !made) return made;
      if (const Status shared = share(reader, factors); !shared) return shared;
      input.error = relative_error(range.sample(), grid, input.grid, factors);
      input.channels.assign(static_cast<std::size_t>(trip.largest_exponent) + 1, 0);
      for (const float factor : factors) ++input.channels[static_cast<std::size_t>(std::ilogb(factor))];
    }
    const Architecture architecture = weights_.config().architecture;
    for (std::size_t i = 0; i < count_; ++i) {
      ModuleReport& entry = plan_[layer * count_ + i];
      if (entry.scheme && first_reader(i, architecture) == reader) entry.inputs = input;
    }
    return {};
  }

  // As folding will: query heads of a value head have factors in common.
  [[nodiscard]] Status share(std::size_t reader, std::vector<float>& factors) const {
    const ModelConfig& config = weights_.config();
    if (reader != output_projection) return {};
    return cbq::share_factors({config.heads, config.kv_heads, config.head_width}, std::span<float>(factors));
  }

  [[nodiscard]] bool has_factors(const ModuleReport& entry, std::size_t reader) const {
    const bool folds = reader + 1 != count_ || scales_last_input(weights_.config());
    return options_.activations.largest_exponent != 0 && folds && entry.rotation == cbq::InputRotation::none;
  }

  static constexpr std::size_t output_projection = 3;  // of block_modules()

  std::vector<ModuleReport>& plan_;
  const QuantizationOptions& options_;
  ChangedWeights& weights_;
  std::size_t count_;
  std::map<std::size_t, std::map<std::size_t, cbq::ActivationRange>> ranges_;  // by layer and reader
};

constexpr const char* what_is_done = "calibrating activations";

// All tokens, block by block.
Status see_all(std::vector<ModuleReport>& plan, const CalibrationTokens& tokens, const QuantizationOptions& options,
               ChangedWeights& weights) {
  InputCalibration calibration(plan, options, weights);
  const WalkObserver observer = {
      .prepare = [&](std::size_t layer, std::size_t reader, std::size_t inputs) -> Result<InputObserver> {
        const Result<cbq::ActivationRange*> range = calibration.prepare(layer, reader, inputs);
        return range ? Result<InputObserver>({.range = *range}) : range.error();
      },
      .see = [&](std::size_t layer) { return calibration.finish(layer); }};
  return walk_blocks(weights, plan, tokens, options, what_is_done, observer);
}

// The model as its files are, whose later layers do without what `policy` drops. Factors of one layer's inputs change
// no other inputs, so all layers are seen at once.
Status see_survivors(std::vector<ModuleReport>& plan, const CalibrationTokens& tokens,
                     const cbq::ScheduledPruning& policy, const QuantizationOptions& options, ChangedWeights& weights) {
  const ModelConfig& config = weights.config();
  const std::size_t count = block_modules(config, 0).size();
  InputCalibration calibration(plan, options, weights);
  std::map<std::string, cbq::ActivationRange*> ranges;
  for (std::size_t i = 0; i < count * config.layers; ++i) {
    if (first_reader(i % count, config.architecture) != i % count) continue;
    const auto range = calibration.prepare(i / count, i % count, plan[i].module.inputs);
    if (!range) return range.error();
    ranges[plan[i].module.name] = *range;
  }
  const auto observe = [&](const MatrixModule& module) {
    const auto found = ranges.find(module.name);
    return found == ranges.end() ? nullptr : found->second;
  };
  const Result<Model> model = Model::load(weights.source(), {.observe = observe});
  if (!model) return model.error();
  Result<Session> session = Session::create(*model, tokens.length, {.threads = options.threads});
  if (!session) return session.error();
  Progress progress(what_is_done, "tokens", tokens.ids.size());
  for (std::size_t first = 0; first < tokens.ids.size(); first += tokens.length) {
    if (const Status go = check_interrupt(); !go) return go;
    session->reset();
    const auto left = session->forward_pruned(tokens.ids.subspan(first, tokens.length), policy);
    if (!left) return left.error();
    progress.update(first + tokens.length);
  }
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    const Status done = calibration.finish(layer);
    if (!done) return cbq::in_context(done.error(), block_name(config, layer));
  }
  return {};
}

}  // namespace

Result<cbq::Interval> static_interval(const cbq::ActivationRange& range, const cbq::Grid& grid,
                                      const std::optional<double>& percentile) {
  const double share = percentile.value_or(default_percentile(grid.bits));
  const Result<cbq::Interval> interval = range.tensor(share, grid.zero);
  if (!interval) return interval.error();
  const cbq::Interval all = range.tensor();
  if (interval->low != 0 || interval->high != 0 || (all.low == 0 && all.high == 0)) return *interval;
  if (!percentile) return range.tensor(100, grid.zero);
  return Error{Errc::bad_argument, "so many values are zero that this percentile leaves nothing else", "--percentile",
               std::to_string(share)};
}

Status calibrate_inputs(std::vector<ModuleReport>& plan, const CalibrationTokens& tokens,
                        const QuantizationOptions& options, ChangedWeights& weights) {
  const auto policy = pruning_of(options.prune, weights.config(), 0);
  if (!policy) return policy.error();
  const Status seen =
      *policy ? see_survivors(plan, tokens, **policy, options, weights) : see_all(plan, tokens, options, weights);
  if (!seen) return seen;
  for (std::size_t i = 0; i < all_block_modules(weights.config()).size(); ++i) {
    const ModuleReport& entry = plan[i];
    if (entry.inputs || !entry.scheme || entry.scheme->activation.granularity != cbq::Granularity::per_tensor) continue;
    return Error{Errc::bad_argument, "calibration found no static activations of a layer", entry.module.name};
  }
  return {};
}

}  // namespace cbq_llama
