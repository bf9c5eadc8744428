// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of codes as one long string of bits, bit by bit. Shares nothing with <cbq/io/bit_packing.hpp>.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace oracle {

inline std::vector<std::int32_t> pack_bits(const std::vector<std::uint8_t>& codes, std::size_t bits) {
  std::vector<bool> string;
  for (const std::uint8_t code : codes) {
    for (std::size_t b = 0; b < bits; ++b) string.push_back(((code >> b) & 1) != 0);
  }
  while (string.size() % 32 != 0) string.push_back(false);
  std::vector<std::int32_t> words;
  for (std::size_t w = 0; w < string.size() / 32; ++w) {
    std::uint32_t word = 0;
    for (std::size_t b = 0; b < 32; ++b) word += (string[32 * w + b] ? 1u : 0u) << b;
    words.push_back(static_cast<std::int32_t>(word));
  }
  return words;
}

}  // namespace oracle
