// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which tokens stay when a layer drops some: those of the largest importance, and protected ones. Equal tokens go from
// the end, so that the same input always keeps the same tokens. Cost: a partial sort of the tokens; no memory beside
// the result.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/result.hpp>

namespace cbq {

/// Tokens of a layer among which some are to be dropped.
struct PruningStep {
  std::size_t layer = 0;
  std::span<const float> importance = {};         ///< of each token
  std::span<const std::uint32_t> positions = {};  ///< of each in the sequence, ascending
  std::size_t sequence = 0;                       ///< tokens of the sequence up to now, dropped ones included
};

/// Tokens that are never dropped. The last one by default: its state predicts what follows. Of a prompt in several
/// calls the sequence ends, for each, where the call does: `last` protects the end of every piece, and a position that
/// is not appended yet is refused.
struct ProtectedTokens {
  std::size_t first = 1;                          ///< so many at the beginning of the sequence
  std::size_t last = 1;                           ///< and at its end
  std::span<const std::uint32_t> positions = {};  ///< and these, ascending
};

inline namespace CBQ_ABI {

/// Errc::bad_argument where protected tokens lie beyond the sequence, or positions are not ascending.
[[nodiscard]] inline Status check_protected(const ProtectedTokens& tokens, std::size_t sequence) noexcept {
  if (tokens.first > sequence || tokens.last > sequence) {
    return Error{Errc::bad_argument, "more tokens are protected than the sequence has", "first, last",
                 ErrorText(tokens.first) << ", " << tokens.last, sequence};
  }
  if (!std::is_sorted(tokens.positions.begin(), tokens.positions.end())) {
    return Error{Errc::bad_argument, "protected positions must be ascending", "positions"};
  }
  if (!tokens.positions.empty() && tokens.positions.back() >= sequence) {
    return Error{Errc::bad_argument, "a protected token lies beyond the sequence", "position", tokens.positions.back(),
                 ErrorText("below ") << sequence};
  }
  return {};
}

[[nodiscard]] inline bool is_protected(const ProtectedTokens& tokens, std::size_t sequence,
                                       std::uint32_t position) noexcept {
  return position < tokens.first || position >= sequence - tokens.last ||
         std::binary_search(tokens.positions.begin(), tokens.positions.end(), position);
}

/// Writes the indices, ascending, of the tokens that stay when `drop` are dropped, to survivors [at least as many as
/// tokens]; returns their number. Errc::bad_argument (more to drop than are unprotected; check_protected()),
/// Errc::bad_shape, Errc::not_finite.
[[nodiscard]] inline Result<std::size_t> select_survivors(const PruningStep& step, std::size_t drop,
                                                          const ProtectedTokens& kept,
                                                          std::span<std::uint32_t> survivors) noexcept {
  const std::span<const float> importance = step.importance;
  const std::size_t tokens = step.positions.size();
  if (importance.size() != tokens || survivors.size() < tokens) {
    return Error{Errc::bad_shape, "tokens need an importance and room for their index each", "tokens",
                 ErrorText(importance.size()) << ", " << survivors.size(), tokens};
  }
  if (const Status valid = check_protected(kept, step.sequence); !valid) return valid.error();
  std::size_t open = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    if (!__builtin_isfinite(importance[t])) {
      return Error{Errc::not_finite, "the importance of a token is NaN or infinite", "position", step.positions[t]};
    }
    if (!is_protected(kept, step.sequence, step.positions[t])) survivors[open++] = static_cast<std::uint32_t>(t);
  }
  if (drop > open) {
    return Error{Errc::bad_argument, "more tokens would be dropped than are unprotected",
                 ErrorText("layer ") << step.layer, drop, ErrorText("at most ") << open};
  }
  std::size_t count = open - drop;
  const auto stays_before = [importance](std::uint32_t a, std::uint32_t b) {
    return importance[a] != importance[b] ? importance[a] > importance[b] : a < b;
  };
  std::nth_element(survivors.begin(), survivors.begin() + static_cast<std::ptrdiff_t>(count),
                   survivors.begin() + static_cast<std::ptrdiff_t>(open), stays_before);
  for (std::size_t t = 0; t < tokens; ++t) {
    if (is_protected(kept, step.sequence, step.positions[t])) survivors[count++] = static_cast<std::uint32_t>(t);
  }
  std::sort(survivors.begin(), survivors.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

}  // namespace CBQ_ABI
}  // namespace cbq
