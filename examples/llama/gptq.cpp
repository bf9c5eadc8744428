// SPDX-License-Identifier: Apache-2.0
#include "gptq.hpp"

#include <cbq/rounding/gptq.hpp>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "block_walk.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

template <class Finder>
Result<cbq::QuantizedMatrix> round_matrix(const FloatMatrix& weights, const cbq::InputMoments& moments,
                                          const cbq::Grid& grid, const QuantizationOptions& options) {
  const GptqSettings& settings = options.gptq;
  cbq::GptqOptions<Finder> gptq;
  gptq.damping = settings.damping;
  if (settings.act_order) gptq.order = cbq::ColumnOrder::by_activation;
  if (settings.act_order || settings.static_groups) gptq.ranges = cbq::GroupRanges::original;
  return cbq::gptq(cbq::as_const(weights.view), moments, grid, gptq, make_executor(options.threads));
}

template <Architecture A>
class Gptq {
 public:
  Gptq(const ChangedWeights& weights, std::span<const ModuleReport> plan, const QuantizationOptions& options)
      : weights_(weights),
        plan_(plan),
        options_(options),
        executor_(make_executor(options.threads)),
        context_(executor_, cbq::detect()) {}

  Result<CodesByModule> run(const CalibrationTokens& tokens) {
    const ModelConfig& config = weights_.config();
    const Result<BlockOpener<A>> opener = BlockOpener<A>::create(config, tokens.length);
    if (!opener) return opener.error();
    Result<FirstStates> states = FirstStates::create(weights_, plan_, tokens, options_);
    if (!states) return states.error();
    Progress progress("rounding", "blocks", config.layers);
    for (std::size_t layer = 0; layer < config.layers; ++layer) {
      const Status done = round_block(*opener, layer, states->student.view(), tokens.length);
      if (!done) return cbq::in_context(done.error(), block_name(config, layer));
      progress.update(layer + 1);
    }
    return std::move(codes_);
  }

 private:
  Status round_block(const BlockOpener<A>& opener, std::size_t layer, const cbq::MatrixView<float>& states,
                     std::size_t length) {
    const std::vector<MatrixModule> modules = block_modules(weights_.config(), layer);
    const auto site = [&](const MatrixModule& module) { return site_of(plan_, module); };
    const auto dense = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) {
      return BlockOpener<A>::template dense<ObservedLinear>(weights_, module, memory);
    };
    const Result<Site> heads = head_site(options_);
    if (!heads) return heads.error();
    std::map<std::size_t, cbq::InputMoments> moments;
    {
      auto block = opener.template open<ObservedLinear>(weights_, layer, dense, site, *heads);
      if (!block) return block.error();
      std::size_t next = 0;
      Status status;
      block->for_each_linear([&](const char*, ObservedLinear& linear) {
        const std::size_t index = next++;
        if (!status || first_reader(index, A) != index) return;
        Result<cbq::InputMoments> made = cbq::InputMoments::create(modules[index].inputs);
        if (!made) {
          status = made.error();
          return;
        }
        linear.observe({.moments = &moments.emplace(index, *std::move(made)).first->second});
      });
      if (status) status = pass(*block, states, length, Advance::observers_only, context_);
      if (!status) return status;
    }
    for (std::size_t i = 0; i < modules.size(); ++i) {
      if (const Status done = round_module(modules[i], moments.at(first_reader(i, A))); !done) return done;
    }
    const auto rounded = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) {
      return dequantized(module, memory);
    };
    const auto block = opener.template open<ObservedLinear>(weights_, layer, rounded, site, *heads);
    if (!block) return block.error();
    return pass(*block, states, length, Advance::states, context_);
  }

  Status round_module(const MatrixModule& module, const cbq::InputMoments& moments) {
    const Result<FloatMatrix> weights = weights_.read_matrix(module.name + ".weight", module.outputs, module.inputs);
    if (!weights) return weights.error();
    const Result<cbq::Scheme> scheme = scheme_of(plan_, module);
    if (!scheme) return scheme.error();
    Result<cbq::QuantizedMatrix> codes =
        options_.range == RangeSearch::mse
            ? round_matrix<cbq::MseRange>(*weights, moments, scheme->weight, options_)
            : round_matrix<cbq::MinMaxRange>(*weights, moments, scheme->weight, options_);
    if (!codes) return cbq::in_context(codes.error(), module.name);
    codes_.emplace(module.name, *std::move(codes));
    return {};
  }

  Result<ObservedLinear> dequantized(const MatrixModule& module, std::vector<FloatMatrix>& memory) const {
    const cbq::QuantizedMatrix& codes = codes_.at(module.name);
    Result<FloatMatrix> weights = weights_.read_matrix(module.name + ".weight", module.outputs, module.inputs);
    if (!weights) return weights.error();
    if (const Status done = cbq::dequantize(codes.view(), codes.grid(), weights->view); !done) return done.error();
    memory.push_back(*std::move(weights));
    const auto values = cbq::as_const(memory.back().view);
    const auto bias = BlockOpener<A>::bias(weights_, module, memory);
    if (!bias) return bias.error();
    return ObservedLinear(values, *bias);
  }

  const ChangedWeights& weights_;
  std::span<const ModuleReport> plan_;
  const QuantizationOptions& options_;
  ToolExecutor executor_;
  cbq::ExecutionContext<ToolExecutor> context_;
  CodesByModule codes_;
};

}  // namespace

Result<CodesByModule> gptq_blocks(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                  const CalibrationTokens& tokens, const QuantizationOptions& options) {
  return weights.config().architecture == Architecture::llama
             ? Gptq<Architecture::llama>(weights, plan, options).run(tokens)
             : Gptq<Architecture::opt>(weights, plan, options).run(tokens);
}

}  // namespace cbq_llama
