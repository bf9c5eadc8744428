// SPDX-License-Identifier: Apache-2.0
#pragma once

// TokenPruning: what a model asks of a policy that drops tokens of a prompt between attention and feed-forward layer,
// and the policy of Agile-Quant, a schedule over importances. A host's own policy is a type with these four members.
// Layers behind a drop work on fewer tokens, and their caches hold fewer: time is saved in prompts, memory after them.
// Single tokens are never dropped by the policy here, so decoding costs what it did.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/prune/importance.hpp>
#include <cbq/prune/schedule.hpp>
#include <cbq/prune/selection.hpp>

namespace cbq {

/// Positions of tokens in layers that have fewer: those they had in the text, or 0, 1, ... without gaps (Agile-Quant).
enum class PrunedPositions : unsigned char { original, compacted };

inline namespace CBQ_ABI {

/// Where `drops(layer, tokens)`, the layer's attention shows the weights that importance() needs, and select() writes
/// the indices of the tokens that stay, ascending, of step.positions.size().
template <class P>
concept TokenPruning = requires(const P& policy, std::size_t layer, std::size_t tokens, const PruningStep& step,
                                std::span<std::uint32_t> survivors) {
  { policy.drops(layer, tokens) } -> std::same_as<bool>;
  { policy.importance() } -> std::same_as<Importance>;
  { policy.positions() } -> std::same_as<PrunedPositions>;
  { policy.select(step, survivors) } -> std::same_as<Result<std::size_t>>;
};

struct ScheduledPruningOptions {
  PruningSchedule schedule = {};
  Importance importance = Importance::first_token;
  PrunedPositions positions = PrunedPositions::original;
  ProtectedTokens kept = {};       ///< what it points to outlives the policy
  std::size_t fewest_tokens = 64;  ///< where a layer gets fewer, all stay
};

/// Drops the least important tokens, so many as a schedule says.
class ScheduledPruning {
 public:
  /// Errc::bad_argument (check_schedule()).
  [[nodiscard]] static Result<ScheduledPruning> create(const ScheduledPruningOptions& options) noexcept {
    if (const Status valid = check_schedule(options.schedule); !valid) return valid.error();
    return ScheduledPruning(options);
  }

  [[nodiscard]] const ScheduledPruningOptions& options() const noexcept { return options_; }

  [[nodiscard]] bool drops(std::size_t layer, std::size_t tokens) const noexcept {
    return tokens >= options_.fewest_tokens && dropped_tokens(options_.schedule, layer, tokens) != 0;
  }
  [[nodiscard]] Importance importance() const noexcept { return options_.importance; }
  [[nodiscard]] PrunedPositions positions() const noexcept { return options_.positions; }
  /// Errors of select_survivors().
  [[nodiscard]] Result<std::size_t> select(const PruningStep& step, std::span<std::uint32_t> survivors) const noexcept {
    const std::size_t drop = dropped_tokens(options_.schedule, step.layer, step.positions.size());
    return select_survivors(step, drop, options_.kept, survivors);
  }

 private:
  explicit ScheduledPruning(const ScheduledPruningOptions& options) noexcept : options_(options) {}

  ScheduledPruningOptions options_;
};

static_assert(TokenPruning<ScheduledPruning>);

}  // namespace CBQ_ABI
}  // namespace cbq
