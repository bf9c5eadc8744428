// SPDX-License-Identifier: Apache-2.0
#include "prompt_pruning.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::PrunedPositions;
using cbq::Result;

Result<std::optional<cbq::ScheduledPruning>> pruning_of(const PruneArguments& arguments, const ModelConfig& config,
                                                        int activation_bits) {
  if (arguments.sparsity == 0 && arguments.low_bit_tokens == 0) return std::optional<cbq::ScheduledPruning>();
  const bool alibi = config.architecture != Architecture::llama && config.architecture != Architecture::opt;
  const PrunedPositions usual = alibi ? PrunedPositions::compacted : PrunedPositions::original;
  const PrunedPositions positions = arguments.positions.value_or(usual);
  if (config.architecture != Architecture::llama && positions != usual) {
    return Error{Errc::unsupported, "this model's tokens cannot have such positions once some are dropped",
                 "--prune-positions", architecture_name(config.architecture)};
  }
  const auto schedule = cbq::with_sparsity(cbq::quarter_schedule(config.layers), arguments.sparsity);
  if (!schedule) return cbq::in_context(schedule.error(), "--prune");
  const auto policy = cbq::ScheduledPruning::create({.schedule = *schedule,
                                                     .importance = arguments.importance,
                                                     .positions = positions,
                                                     .low_bit_share = arguments.low_bit_tokens});
  if (!policy) return cbq::in_context(policy.error(), "--low-bit-tokens");
  if (arguments.low_bit_tokens != 0 && activation_bits != 8) {
    return Error{Errc::unsupported, "no linear layer of this model has 8-bit activations to give fewer bits",
                 "--low-bit-tokens"};
  }
  return std::optional<cbq::ScheduledPruning>(*policy);
}

}  // namespace cbq_llama
