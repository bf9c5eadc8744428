// SPDX-License-Identifier: Apache-2.0
#pragma once

// From the options `--prune` and so on to a policy that drops tokens of prompts.

#include <optional>

#include <cbq/core/result.hpp>
#include <cbq/prune/token_pruning.hpp>

#include "model_config.hpp"

namespace cbq_llama {

struct PruneArguments {
  double sparsity = 0;  ///< mean share of a prompt's tokens that layers do without
  cbq::Importance importance = cbq::Importance::first_token;
  std::optional<cbq::PrunedPositions> positions = {};  ///< nothing: as the model can
};

/// Nothing where no tokens are to be dropped. Errc::bad_argument (sparsity), Errc::unsupported: OPT's positions are
/// part of its hidden states and stay original, BLOOM's attention counts what its cache has.
[[nodiscard]] cbq::Result<std::optional<cbq::ScheduledPruning>> pruning_of(const PruneArguments& arguments,
                                                                           const ModelConfig& config);

}  // namespace cbq_llama
