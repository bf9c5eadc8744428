// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one condition under which keys and values can be quantized, so that a cache can refuse a row when it is appended
// instead of failing when it becomes past.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/config.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Half's largest number. A group of elements up to it has an offset and, with 2 bits or more, a scale in half.
inline constexpr float largest_kv_element = 65504.0f;

/// Index of the first element that is NaN or beyond largest_kv_element in magnitude, or row.size().
[[nodiscard]] inline std::size_t first_not_encodable(std::span<const float> row) noexcept {
  // By its bits, so that -ffast-math cannot remove the test; one pass without branches, a second only for an error.
  constexpr auto largest = __builtin_bit_cast(std::uint32_t, largest_kv_element);
  constexpr std::uint32_t magnitude = 0x7fffffffu;
  bool bad = false;
  for (const float x : row) bad |= (__builtin_bit_cast(std::uint32_t, x) & magnitude) > largest;
  std::size_t i = bad ? 0 : row.size();
  while (i < row.size() && (__builtin_bit_cast(std::uint32_t, row[i]) & magnitude) <= largest) ++i;
  return i;
}

}  // namespace CBQ_ABI
}  // namespace cbq
