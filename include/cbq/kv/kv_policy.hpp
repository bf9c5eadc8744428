// SPDX-License-Identifier: Apache-2.0
#pragma once

// KvPolicy: which positions of a sequence stay exact, as plain data, and the one function that decides it. Every
// position goes one way only: exact, quantized, given back.
//
//   full        quantized as soon as appended, and attended to quantized             KvScheme without `_past`
//   past-only   exact for the append that brings it, quantized by the next one      `_past` (WKVQuant)
//   recent      the last positions stay exact, quantized in whole pages             KIVI's residual
//   sinks       the first positions stay exact for ever                             StreamingLLM, arXiv 2309.17453
//   window      positions that no query will see again are given back               sliding-window attention
//
// The last three go with either of the first two. Schemes with `_kivi` quantize whole pages under every policy: the
// scales of their keys belong to 64 positions.

#include <cstddef>

#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_scheme.hpp>

namespace cbq {

/// What stays exact beside the scheme's past_only, and what is given back; all zero: nothing.
struct KvPolicy {
  std::size_t recent = 0;  ///< at least so many last positions stay exact
  std::size_t sinks = 0;   ///< first positions that stay exact
  std::size_t window = 0;  ///< a query sees its own and the window - 1 positions before it, and the sinks; 0: all
  friend constexpr bool operator==(const KvPolicy&, const KvPolicy&) = default;
};

inline namespace CBQ_ABI {

/// Whether positions are quantized in whole pages only.
[[nodiscard]] constexpr bool quantizes_pages(const KvScheme& scheme, const KvPolicy& policy) noexcept {
  return scheme.channel_keys || policy.recent > 0;
}

/// How many positions, sinks included, are quantized once `past` are eligible: with past_only those before the present
/// append, otherwise all. Grows with `past`, and is at most that.
[[nodiscard]] constexpr std::size_t quantized_positions(const KvScheme& scheme, const KvPolicy& policy,
                                                        std::size_t past) noexcept {
  const std::size_t old = past < policy.recent ? 0 : past - policy.recent;
  return quantizes_pages(scheme, policy) ? old / kv_page_positions * kv_page_positions : old;
}

/// Exact rows, sinks not counted, that a sequence of up to `capacity` positions and appends of up to `largest_append`
/// rows can have at once.
[[nodiscard]] constexpr std::size_t most_exact_positions(const KvScheme& scheme, const KvPolicy& policy,
                                                         std::size_t capacity, std::size_t largest_append) noexcept {
  const auto least = [capacity](std::size_t a, std::size_t b) {
    return a > capacity || b > capacity - a ? capacity : a + b;
  };
  const std::size_t pages = quantizes_pages(scheme, policy) ? kv_page_positions - 1 : 0;
  return least(least(policy.recent, pages), scheme.past_only ? largest_append : 1);
}

/// The first position that the query at `position` sees, sinks not counted.
[[nodiscard]] constexpr std::size_t first_visible(const KvPolicy& policy, std::size_t position) noexcept {
  return policy.window == 0 || position < policy.window ? 0 : position - policy.window + 1;
}

}  // namespace CBQ_ABI
}  // namespace cbq
