// SPDX-License-Identifier: Apache-2.0
#pragma once

// The checksum of packed files and saved sequences: against damage, not against forgery, as fast as memory. Four
// interleaved chains of 64-bit words (zeros behind the last), word i in chain i % 4:
//
//   h = rotl((h ^ word) * m, 29),  m = 0x9e3779b97f4a7c15;  then the same over the chains and the size

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/config.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// 64 bits that any single changed bit changes, with near certainty also more of them.
[[nodiscard]] inline std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  constexpr std::uint64_t multiplier = 0x9e3779b97f4a7c15u;
  const auto mix = [](std::uint64_t h, std::uint64_t word) { return std::rotl((h ^ word) * multiplier, 29); };
  std::uint64_t chains[4] = {1, 2, 3, 4};
  std::size_t at = 0;
  for (; bytes.size() - at >= sizeof chains; at += sizeof chains) {
    std::uint64_t words[4];
    std::memcpy(words, bytes.data() + at, sizeof words);
    for (std::size_t i = 0; i < 4; ++i) chains[i] = mix(chains[i], words[i]);
  }
  std::uint64_t words[4] = {};
  if (at < bytes.size()) std::memcpy(words, bytes.data() + at, bytes.size() - at);
  std::uint64_t sum = bytes.size();
  for (std::size_t i = 0; i < 4; ++i) sum = mix(sum, mix(chains[i], words[i]));
  return sum;
}

}  // namespace CBQ_ABI
}  // namespace cbq
