// SPDX-License-Identifier: Apache-2.0
#pragma once

// How fast a model reads a prompt and how fast it continues it: medians over several runs on the same random tokens.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <cbq/core/result.hpp>

#include "model.hpp"

namespace cbq_llama {

struct SpeedOptions {
  std::size_t prompt_tokens = 512;
  std::size_t new_tokens = 64;
  std::size_t runs = 5;
  std::uint64_t seed = 0;
  Machine machine = {};
  KvOptions kv = {};
  std::optional<cbq::ScheduledPruning> pruning = {};  ///< of the prompt
  std::string label = "measuring";                    ///< of the progress line
};

/// Seconds of one phase, all runs together, by what they were spent on.
struct PhaseTimes {
  double total = 0;
  Profile operations = {};
};

struct Speed {
  double prompt_tokens_per_second = 0;  ///< median
  double new_tokens_per_second = 0;     ///< median
  PhaseTimes prompt;
  PhaseTimes generation;
};

/// Measures. The prompt's logits are computed for its last token only, as a host does. `profile` is the one `model` was
/// loaded with, or null. Errc::bad_argument when the tokens do not fit the model's context, Errc::interrupted.
[[nodiscard]] cbq::Result<Speed> measure_speed(const Model& model, Profile* profile, const SpeedOptions& options);

}  // namespace cbq_llama
