// SPDX-License-Identifier: Apache-2.0
#include "float_walk.hpp"

#include <utility>
#include <vector>

#include "block_walk.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

template <Architecture A>
class Walk {
 public:
  Walk(const ChangedWeights& weights, std::span<const ModuleReport> plan, const QuantizationOptions& options)
      : weights_(weights),
        plan_(plan),
        options_(options),
        executor_(make_executor(options.threads)),
        context_(executor_, cbq::detect()) {}

  Status run(const CalibrationTokens& tokens, const char* what, const WalkObserver& observer) {
    const ModelConfig& config = weights_.config();
    const Result<BlockOpener<A>> opener = BlockOpener<A>::create(config, tokens.length);
    if (!opener) return opener.error();
    Result<FirstStates> states = FirstStates::create(weights_, plan_, tokens, options_);
    if (!states) return states.error();
    Progress progress(what, "blocks", config.layers);
    for (std::size_t layer = 0; layer < config.layers; ++layer) {
      Status done = pass_block(*opener, layer, states->target.view(), tokens.length, observer);
      if (done) done = observer.see(layer);
      if (!done) return cbq::in_context(done.error(), block_name(config, layer));
      progress.update(layer + 1);
    }
    return {};
  }

 private:
  Status pass_block(const BlockOpener<A>& opener, std::size_t layer, const cbq::MatrixView<float>& states,
                    std::size_t length, const WalkObserver& observer) {
    const auto dense = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) {
      return BlockOpener<A>::template dense<ObservedLinear>(weights_, module, memory);
    };
    const auto site = [&](const MatrixModule& module) -> Result<Site> { return float_site_of(plan_, module); };
    auto block = opener.template open<ObservedLinear>(weights_, layer, dense, site);
    if (!block) return block.error();
    std::size_t next = 0;
    Status status;
    block->for_each_linear([&](const char*, ObservedLinear& linear) {
      const std::size_t index = next++;
      if (!status || first_reader(index, A) != index) return;
      const Result<InputObserver> told = observer.prepare(layer, index, linear.inputs());
      if (!told) {
        status = told.error();
        return;
      }
      linear.observe(*told);
    });
    return status ? pass(*block, states, length, Advance::states, context_) : status;
  }

  const ChangedWeights& weights_;
  std::span<const ModuleReport> plan_;
  const QuantizationOptions& options_;
  ToolExecutor executor_;
  cbq::ExecutionContext<ToolExecutor> context_;
};

}  // namespace

Status walk_blocks(const ChangedWeights& weights, std::span<const ModuleReport> plan, const CalibrationTokens& tokens,
                   const QuantizationOptions& options, const char* what, const WalkObserver& observer) {
  return weights.config().architecture == Architecture::llama
             ? Walk<Architecture::llama>(weights, plan, options).run(tokens, what, observer)
             : Walk<Architecture::opt>(weights, plan, options).run(tokens, what, observer);
}

}  // namespace cbq_llama
