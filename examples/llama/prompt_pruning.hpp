// SPDX-License-Identifier: Apache-2.0
#pragma once

// From the options `--prune`, `--low-bit-tokens` and so on to a policy that drops tokens of prompts, or lowers the bits
// of their activations.

#include <optional>

#include <cbq/core/result.hpp>
#include <cbq/prune/token_pruning.hpp>

#include "model_config.hpp"

namespace cbq_llama {

struct PruneArguments {
  double sparsity = 0;        ///< mean share of a prompt's tokens that layers do without
  double low_bit_tokens = 0;  ///< share of the tokens that are there whose 8-bit activations get 4 bits, in each layer
  cbq::Importance importance = cbq::Importance::first_token;
  std::optional<cbq::PrunedPositions> positions = {};  ///< nothing: as the model can
};

/// Nothing where no tokens are to be dropped or lowered. `activation_bits`: Model::activation_bits().
/// Errc::bad_argument (sparsity, share), Errc::unsupported: OPT's positions are part of its hidden states and stay
/// original, BLOOM's attention counts what its cache has; and no linear layer has 8-bit activations that could be
/// lowered.
[[nodiscard]] cbq::Result<std::optional<cbq::ScheduledPruning>> pruning_of(const PruneArguments& arguments,
                                                                           const ModelConfig& config,
                                                                           int activation_bits);

}  // namespace cbq_llama
