// SPDX-License-Identifier: Apache-2.0
#include "preprocessing.hpp"

#include <cbq/outlier/activation_scaling.hpp>
#include <cbq/outlier/truncation.hpp>
#include <cbq/transform/smoothquant.hpp>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "block_scaling.hpp"
#include "decoder_blocks.hpp"
#include "float_walk.hpp"

namespace cbq_llama {

using cbq::LinearWeights;
using cbq::Result;
using cbq::Status;

namespace {

using Statistics = std::map<std::size_t, cbq::ChannelStatistics<float>>;  // by the first module that reads them

// `see(layer, statistics)` looks at what the layers of each block read in floating point.
template <class See>
Status observe(std::span<const ModuleReport> plan, const CalibrationTokens& tokens, const QuantizationOptions& options,
               const ChangedWeights& weights, const char* what, const See& see) {
  Statistics statistics;
  const WalkObserver observer = {
      .prepare = [&](std::size_t, std::size_t reader, std::size_t inputs) -> Result<InputObserver> {
        auto made = cbq::ChannelStatistics<float>::create(inputs);
        if (!made) return made.error();
        return InputObserver{.statistics = &statistics.emplace(reader, *std::move(made)).first->second};
      },
      .see = [&](std::size_t layer) -> Status {
        const Status done = see(layer, statistics);
        statistics.clear();
        return done;
      }};
  return walk_blocks(weights, plan, tokens, options, what, observer);
}

class Preprocessor {
 public:
  Preprocessor(std::span<const ModuleReport> plan, const QuantizationOptions& options, ChangedWeights& weights)
      : plan_(plan), options_(options), weights_(weights), executor_(make_executor(options.threads)) {}

  Status change(std::size_t layer, const Statistics& statistics) {
    const std::vector<MatrixModule> modules = block_modules(weights_.config(), layer);
    Result<BlockWeights> block = BlockWeights::read(weights_, layer);
    if (!block) return block.error();
    if (options_.preprocessing != Preprocessing::cfp_truncation) {
      const Status done = block->scale_inputs([&](std::size_t reader, std::span<const LinearWeights<float>> readers) {
        return factors(reader, statistics.at(reader), readers);
      });
      if (!done) return done;
    }
    if (options_.preprocessing == Preprocessing::cfp || options_.preprocessing == Preprocessing::cfp_truncation) {
      for (std::size_t i = 0; i < modules.size(); ++i) {
        if (const Status done = truncate(modules[i], block->linears()[i]); !done) return done;
      }
    }
    (*std::move(block)).store(weights_);
    return {};
  }

 private:
  Result<std::vector<float>> factors(std::size_t reader, const cbq::ChannelStatistics<float>& statistics,
                                     std::span<const LinearWeights<float>> readers) const {
    const bool smooths = options_.preprocessing == Preprocessing::smoothquant;
    if (smooths && reader != 0 && reader != 4) return std::vector<float>();  // inputs that come from a norm alone
    std::vector<float> magnitudes(statistics.channels()), found(statistics.channels());
    for (std::size_t c = 0; c < magnitudes.size(); ++c) magnitudes[c] = statistics.magnitude(c);
    const std::span<const float> sizes(magnitudes);
    const std::span<float> out(found);
    const Status done = smooths ? cbq::smoothquant_factors(sizes, readers, out) : cbq::find_scaling_factors(sizes, out);
    if (!done) return done.error();
    return found;
  }

  Status truncate(const MatrixModule& module, const LinearWeights<float>& linear) const {
    const Result<cbq::Scheme> scheme = scheme_of(plan_, module);
    if (!scheme) return {};  // stays in floating point
    cbq::TruncationTarget<float> target;
    target.weights = linear.weights;
    target.grid = scheme->weight;
    const auto done = cbq::truncate_weights(target, cbq::CoarseToFine<>(), {}, executor_);
    return done ? Status() : Status(cbq::in_context(done.error(), module.name));
  }

  std::span<const ModuleReport> plan_;
  const QuantizationOptions& options_;
  ChangedWeights& weights_;
  ToolExecutor executor_;
};

}  // namespace

Status preprocess(std::span<const ModuleReport> plan, const CalibrationTokens& tokens,
                  const QuantizationOptions& options, ChangedWeights& weights) {
  Preprocessor preprocessor(plan, options, weights);
  // A block is changed when the states have passed it. Rotations come later: layers read the model's own channels.
  return observe({}, tokens, options, weights, "preprocessing", [&](std::size_t layer, const Statistics& statistics) {
    return preprocessor.change(layer, statistics);
  });
}

Result<std::vector<ChannelSizes>> input_sizes(const CalibrationTokens& tokens, const QuantizationOptions& options,
                                              const ChangedWeights& weights) {
  std::vector<ChannelSizes> sizes;
  const auto see = [&](std::size_t layer, const Statistics& statistics) -> Status {
    const std::vector<MatrixModule> modules = block_modules(weights.config(), layer);
    for (const auto& [module, channels] : statistics) {
      ChannelSizes& entry = sizes.emplace_back(ChannelSizes{modules[module].name, {}});
      for (std::size_t c = 0; c < channels.channels(); ++c) entry.magnitudes.push_back(channels.magnitude(c));
    }
    return {};
  };
  if (const Status done = observe({}, tokens, options, weights, "looking", see); !done) return done.error();
  return sizes;
}

}  // namespace cbq_llama
