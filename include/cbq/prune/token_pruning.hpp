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

/// A policy that may also have activations of less important tokens in 4 bits. Where `lowers(layer, tokens)`, lower()
/// sets the bits of some of the tokens that stay to 4, from the layer's second half on; `scratch` has room for an index
/// of each. What is 4 stays so in the layers behind.
template <class P>
concept TokenLowering =
    TokenPruning<P> && requires(const P& policy, std::size_t layer, std::size_t tokens, const PruningStep& step,
                                std::span<std::uint32_t> scratch, std::span<std::uint8_t> bits) {
      { policy.lowers(layer, tokens) } -> std::same_as<bool>;
      { policy.lower(step, scratch, bits) } -> std::same_as<Status>;
    };

struct ScheduledPruningOptions {
  PruningSchedule schedule = {};
  Importance importance = Importance::first_token;
  PrunedPositions positions = PrunedPositions::original;
  ProtectedTokens kept = {};       ///< what it points to outlives the policy
  std::size_t fewest_tokens = 64;  ///< where a layer gets fewer, all stay
  double low_bit_share = 0.0;      ///< of the tokens that are there, in [0, 1): activations of 4 bits in every layer
};

/// Drops the least important tokens, so many as a schedule says, and lowers the bits of the least important others.
class ScheduledPruning {
 public:
  /// Errc::bad_argument (check_schedule(), a share of low bits outside [0, 1)).
  [[nodiscard]] static Result<ScheduledPruning> create(const ScheduledPruningOptions& options) noexcept {
    if (const Status valid = check_schedule(options.schedule); !valid) return valid.error();
    if (!(options.low_bit_share >= 0.0 && options.low_bit_share < 1.0)) {
      return Error{Errc::bad_argument, "the share of tokens of 4 bits lies in [0, 1)", "low_bit_share"};
    }
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
  [[nodiscard]] bool lowers(std::size_t, std::size_t tokens) const noexcept {
    return tokens >= options_.fewest_tokens && options_.low_bit_share > 0.0;
  }
  /// Errors of select_survivors(), whose `drop` is the number of tokens of 4 bits.
  [[nodiscard]] Status lower(const PruningStep& step, std::span<std::uint32_t> scratch,
                             std::span<std::uint8_t> bits) const noexcept {
    const std::size_t tokens = step.positions.size();
    if (bits.size() != tokens) return Error{Errc::bad_shape, "tokens need bits each", "bits", bits.size(), tokens};
    const auto low = static_cast<std::size_t>(options_.low_bit_share * static_cast<double>(tokens));
    const Result<std::size_t> high = select_survivors(step, low, options_.kept, scratch);
    if (!high) return high.error();
    for (std::size_t t = 0, next = 0; t < tokens; ++t) {
      if (next < *high && scratch[next] == t) {
        ++next;
      } else {
        bits[t] = 4;
      }
    }
    return {};
  }

 private:
  explicit ScheduledPruning(const ScheduledPruningOptions& options) noexcept : options_(options) {}

  ScheduledPruningOptions options_;
};

static_assert(TokenLowering<ScheduledPruning>);

}  // namespace CBQ_ABI
}  // namespace cbq
