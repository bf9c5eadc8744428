// SPDX-License-Identifier: Apache-2.0
#include "preprocessing.hpp"

#include <cbq/outlier/activation_scaling.hpp>
#include <cbq/outlier/truncation.hpp>
#include <cbq/transform/channel_scaling.hpp>
#include <cbq/transform/smoothquant.hpp>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "block_walk.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::LinearWeights;
using cbq::Result;
using cbq::Status;

namespace {

using Statistics = std::map<std::size_t, cbq::ChannelStatistics<float>>;  // by the first module that reads them

// All weights of a block, to be changed in place.
class BlockWeights {
 public:
  static Result<BlockWeights> read(const ChangedWeights& weights, std::size_t layer,
                                   const std::vector<std::string>& norms) {
    BlockWeights block;
    const ModelConfig& config = weights.config();
    for (const MatrixModule& module : block_modules(config, layer)) {
      if (const Status done = block.add(weights, module.name + ".weight", module.outputs, module.inputs); !done)
        return done.error();
      if (!module.has_bias) continue;
      if (const Status done = block.add(weights, module.name + ".bias", 1, module.outputs); !done) return done.error();
    }
    for (const FloatTensor& tensor : norm_tensors(config)) {
      const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
      if (module != norms[2 * layer] && module != norms[2 * layer + 1]) continue;
      if (const Status done = block.add(weights, tensor.name, 1, config.hidden); !done) return done.error();
    }
    return block;
  }

  [[nodiscard]] LinearWeights<float> linear(const MatrixModule& module) {
    return {tensors_.at(module.name + ".weight").view, vector(module.name + ".bias")};
  }
  [[nodiscard]] cbq::NormWeights<float> norm(const std::string& name) {
    return {vector(name + ".weight"), vector(name + ".bias")};
  }
  void store(ChangedWeights& weights) && {
    for (auto& [name, matrix] : tensors_) weights.replace(name, std::move(matrix));
  }

 private:
  Status add(const ChangedWeights& weights, const std::string& name, std::size_t rows, std::size_t columns) {
    Result<FloatMatrix> matrix = weights.read_matrix(name, rows, columns);
    if (!matrix) return matrix.error();
    tensors_.emplace(name, *std::move(matrix));
    return {};
  }
  [[nodiscard]] std::span<float> vector(const std::string& name) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return {};
    return {found->second.memory.data(), found->second.memory.size()};
  }

  std::map<std::string, FloatMatrix> tensors_;
};

// Goes through the blocks in floating point and lets `see(layer, statistics)` look at what their layers read.
template <Architecture A>
class Walk {
 public:
  Walk(std::span<const ModuleReport> plan, const QuantizationOptions& options, const ChangedWeights& weights)
      : plan_(plan),
        options_(options),
        weights_(weights),
        executor_(make_executor(options.threads)),
        context_(executor_, cbq::detect()) {}

  template <class See>
  Status run(const CalibrationTokens& tokens, const char* what, const See& see) {
    const ModelConfig& config = weights_.config();
    const Result<BlockOpener<A>> opener = BlockOpener<A>::create(config, tokens.length);
    if (!opener) return opener.error();
    Result<FirstStates> states = FirstStates::create(weights_, plan_, tokens, options_);
    if (!states) return states.error();
    Progress progress(what, "blocks", config.layers);
    for (std::size_t layer = 0; layer < config.layers; ++layer) {
      const Result<Statistics> statistics = observe(*opener, layer, states->target.view(), tokens.length);
      if (!statistics) return cbq::in_context(statistics.error(), block_name(config, layer));
      if (const Status done = see(layer, *statistics); !done)
        return cbq::in_context(done.error(), block_name(config, layer));
      progress.update(layer + 1);
    }
    return {};
  }

 private:
  // Passes the states through the float block, whose weights are not changed yet.
  Result<Statistics> observe(const BlockOpener<A>& opener, std::size_t layer, const cbq::MatrixView<float>& states,
                             std::size_t length) {
    Statistics statistics;
    const auto dense = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) {
      return BlockOpener<A>::template dense<ObservedLinear>(weights_, module, memory);
    };
    const auto site = [](const MatrixModule&) -> Result<Site> { return Site(); };
    auto block = opener.template open<ObservedLinear>(weights_, layer, dense, site);
    if (!block) return block.error();
    std::size_t next = 0;
    Status status;
    block->for_each_linear([&](const char*, ObservedLinear& linear) {
      const std::size_t index = next++;
      if (!status || first_reader(index, A) != index) return;
      auto made = cbq::ChannelStatistics<float>::create(linear.inputs());
      if (!made) {
        status = made.error();
        return;
      }
      linear.observe({.statistics = &statistics.emplace(index, *std::move(made)).first->second});
    });
    if (status) status = pass(*block, states, length, Advance::states, context_);
    if (!status) return status.error();
    return statistics;
  }

  std::span<const ModuleReport> plan_;
  const QuantizationOptions& options_;
  const ChangedWeights& weights_;
  ToolExecutor executor_;
  cbq::ExecutionContext<ToolExecutor> context_;
};

class Preprocessor {
 public:
  Preprocessor(std::span<const ModuleReport> plan, const QuantizationOptions& options, std::vector<std::string> norms,
               ChangedWeights& weights)
      : plan_(plan),
        options_(options),
        norms_(std::move(norms)),
        weights_(weights),
        executor_(make_executor(options.threads)) {}

  Status change(std::size_t layer, const Statistics& statistics) {
    const std::vector<MatrixModule> modules = block_modules(weights_.config(), layer);
    Result<BlockWeights> block = BlockWeights::read(weights_, layer, norms_);
    if (!block) return block.error();
    std::vector<LinearWeights<float>> linears;
    for (const MatrixModule& module : modules) linears.push_back(block->linear(module));
    if (options_.preprocessing != Preprocessing::cfp_truncation) {
      if (const Status done = scale_inputs(layer, statistics, *block, linears); !done) return done;
    }
    if (options_.preprocessing == Preprocessing::cfp || options_.preprocessing == Preprocessing::cfp_truncation) {
      for (std::size_t i = 0; i < modules.size(); ++i) {
        if (const Status done = truncate(modules[i], linears[i]); !done) return done;
      }
    }
    (*std::move(block)).store(weights_);
    return {};
  }

 private:
  Status scale_inputs(std::size_t layer, const Statistics& statistics, BlockWeights& block,
                      std::span<const LinearWeights<float>> all) const {
    const ModelConfig& config = weights_.config();
    const std::size_t down = all.size() - 1;
    const auto attention = all.first(3), mlp = all.subspan(4, down - 4);
    if (const Status done = scale(statistics.at(0), block.norm(norms_[2 * layer]), attention); !done) return done;
    if (const Status done = scale(statistics.at(4), block.norm(norms_[2 * layer + 1]), mlp); !done) return done;
    if (options_.preprocessing == Preprocessing::smoothquant) return {};
    // What makes the input of the last matrix is the matrix before it: up, or fc1.
    if (const Status done = scale(statistics.at(down), all[down - 1], all.last(1)); !done) return done;
    Result<std::vector<float>> values = factors(statistics.at(3), all.subspan(3, 1));
    if (!values) return values.error();
    const cbq::ValueHeads heads = {config.heads, config.kv_heads, config.head_width};
    return cbq::scale_value_channels(all[2], all[3], heads, std::span<float>(*values));
  }

  template <class Producer>
  Status scale(const cbq::ChannelStatistics<float>& statistics, const Producer& producer,
               std::span<const LinearWeights<float>> consumers) const {
    const Result<std::vector<float>> found = factors(statistics, consumers);
    if (!found) return found.error();
    return cbq::scale_channels(producer, consumers, std::span<const float>(*found));
  }

  Result<std::vector<float>> factors(const cbq::ChannelStatistics<float>& statistics,
                                     std::span<const LinearWeights<float>> consumers) const {
    std::vector<float> magnitudes(statistics.channels()), found(statistics.channels());
    for (std::size_t c = 0; c < magnitudes.size(); ++c) magnitudes[c] = statistics.magnitude(c);
    const std::span<const float> sizes(magnitudes);
    const std::span<float> out(found);
    const Status done = options_.preprocessing == Preprocessing::smoothquant
                            ? cbq::smoothquant_factors(sizes, consumers, out)
                            : cbq::find_scaling_factors(sizes, out);
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
  std::vector<std::string> norms_;
  ChangedWeights& weights_;
  ToolExecutor executor_;
};

template <Architecture A>
Status preprocess_as(std::span<const ModuleReport> plan, const CalibrationTokens& tokens,
                     const QuantizationOptions& options, ChangedWeights& weights) {
  const Result<BlockOpener<A>> opener = BlockOpener<A>::create(weights.config(), tokens.length);
  if (!opener) return opener.error();
  Preprocessor preprocessor(plan, options, opener->norm_names(), weights);
  // A block is changed when the states have passed it.
  return Walk<A>(plan, options, weights)
      .run(tokens, "preprocessing",
           [&](std::size_t layer, const Statistics& statistics) { return preprocessor.change(layer, statistics); });
}

}  // namespace

Status preprocess(std::span<const ModuleReport> plan, const CalibrationTokens& tokens,
                  const QuantizationOptions& options, ChangedWeights& weights) {
  return weights.config().architecture == Architecture::llama
             ? preprocess_as<Architecture::llama>(plan, tokens, options, weights)
             : preprocess_as<Architecture::opt>(plan, tokens, options, weights);
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
  const Status done = weights.config().architecture == Architecture::llama
                          ? Walk<Architecture::llama>({}, options, weights).run(tokens, "looking", see)
                          : Walk<Architecture::opt>({}, options, weights).run(tokens, "looking", see);
  if (!done) return done.error();
  return sizes;
}

}  // namespace cbq_llama
