// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which layers drop tokens, and what share of those that they get: the same in every one of them, so that the tokens
// of a prompt become fewer step by step. A schedule is told by the share that is gone at the end, or by how much less
// the layers do on average.
//
//   gamma = 1 - (1 - beta)^(1/m) in each of m layers           beta: share dropped after the last of them
//   S = 1 - mean over all layers i of (1 - gamma)^(layers of the m up to i)
//
// Shen et al., Agile-Quant, 2023 (gamma from beta). Attention of the first layers is local: they keep all tokens.

#include <cmath>
#include <cstddef>

#include <cbq/core/result.hpp>

namespace cbq {

/// Layers first, first + every, ... of `layers` drop the share `ratio` of their tokens.
struct PruningSchedule {
  std::size_t layers = 0;  ///< of the model
  std::size_t first = 0;
  std::size_t every = 1;  ///< at least 1
  double ratio = 0.0;     ///< gamma; 0: nothing is dropped
};

inline namespace CBQ_ABI {

/// A schedule that drops nothing yet: every fourth layer, from a quarter of the model on.
[[nodiscard]] constexpr PruningSchedule quarter_schedule(std::size_t layers) noexcept {
  return {.layers = layers, .first = layers / 4, .every = 4};
}

/// How many layers up to `layer`, itself included, drop tokens.
[[nodiscard]] constexpr std::size_t pruning_layers(const PruningSchedule& schedule, std::size_t layer) noexcept {
  if (layer < schedule.first || layer >= schedule.layers) return 0;
  return (layer - schedule.first) / schedule.every + 1;
}

[[nodiscard]] constexpr bool is_pruning_layer(const PruningSchedule& schedule, std::size_t layer) noexcept {
  return layer >= schedule.first && layer < schedule.layers && (layer - schedule.first) % schedule.every == 0;
}

/// Tokens that a layer drops of `tokens`: their share, rounded down.
[[nodiscard]] constexpr std::size_t dropped_tokens(const PruningSchedule& schedule, std::size_t layer,
                                                   std::size_t tokens) noexcept {
  if (!is_pruning_layer(schedule, layer)) return 0;
  return static_cast<std::size_t>(static_cast<double>(tokens) * schedule.ratio);
}

/// Errc::bad_argument unless some layers drop a share in [0, 1).
[[nodiscard]] constexpr Status check_schedule(const PruningSchedule& schedule) noexcept {
  if (schedule.every == 0 || schedule.first >= schedule.layers) {
    return Error{Errc::bad_argument, "a pruning schedule needs a layer of the model to begin with", "first, every",
                 ErrorText(schedule.first) << ", " << schedule.every, ErrorText(schedule.layers) << " layers"};
  }
  if (schedule.ratio >= 0.0 && schedule.ratio < 1.0) return {};
  return Error{Errc::bad_argument, "the share of tokens that a layer drops lies in [0, 1): some must be left", "ratio"};
}

/// Mean share of tokens that layers do without, rounding aside: S.
[[nodiscard]] inline double token_sparsity(const PruningSchedule& schedule) noexcept {
  double left = 0.0;
  for (std::size_t i = 0; i < schedule.layers; ++i) {
    left += std::pow(1.0 - schedule.ratio, static_cast<double>(pruning_layers(schedule, i)));
  }
  return 1.0 - left / static_cast<double>(schedule.layers);
}

/// The schedule with which a share `final_ratio` in [0, 1) of the tokens is gone after the last layer that drops some.
/// Errc::bad_argument.
[[nodiscard]] inline Result<PruningSchedule> with_final_ratio(PruningSchedule schedule, double final_ratio) noexcept {
  schedule.ratio = 0.0;
  if (const Status valid = check_schedule(schedule); !valid) return valid.error();
  if (!(final_ratio >= 0.0 && final_ratio < 1.0)) {
    return Error{Errc::bad_argument, "the share of tokens that are dropped lies in [0, 1): some must be left",
                 "final ratio"};
  }
  const auto steps = static_cast<double>(pruning_layers(schedule, schedule.layers - 1));
  schedule.ratio = 1.0 - std::pow(1.0 - final_ratio, 1.0 / steps);
  return schedule;
}

/// The schedule of mean token sparsity S = `sparsity` in [0, the share of layers from the first that drops some).
/// Errc::bad_argument.
[[nodiscard]] inline Result<PruningSchedule> with_sparsity(PruningSchedule schedule, double sparsity) noexcept {
  schedule.ratio = 0.0;
  if (const Status valid = check_schedule(schedule); !valid) return valid.error();
  const double most = static_cast<double>(schedule.layers - schedule.first) / static_cast<double>(schedule.layers);
  if (!(sparsity >= 0.0 && sparsity < most)) {
    return Error{Errc::bad_argument, "so many tokens cannot be dropped: the first layers keep all, the others some",
                 "token sparsity", "", ErrorText("0 to less than ") << static_cast<std::size_t>(most * 100) << " %"};
  }
  if (sparsity == 0.0) return schedule;
  double low = 0.0, high = 1.0;
  for (int i = 0; i < 60; ++i) {
    schedule.ratio = (low + high) / 2;
    (token_sparsity(schedule) < sparsity ? low : high) = schedule.ratio;
  }
  schedule.ratio = low;
  return schedule;
}

}  // namespace CBQ_ABI
}  // namespace cbq
