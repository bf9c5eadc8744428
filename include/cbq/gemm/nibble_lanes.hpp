// SPDX-License-Identifier: Apache-2.0
#pragma once

// The 4-bit multiplier of Agile-Quant (arXiv 2312.05693): two weights share a 16-bit lane, 8 bits apart, and one 16-bit
// product with an activation makes both of their products. For vector units with no dot product, and a lane at a time
// here. On every instruction set that cbq has kernels for its INT8 products are faster (docs/nibble_multiplier.md).
//
//   lane = w << 8 | v,   p = lane * a <= 3855 * 15 < 2^16,   p >> 8 = w a,   p & 255 = v a       w, v, a in 0 .. 15
//
// Fields 4 bits apart would not do: a product of two 4-bit codes has 8 bits. Two running sums of 16 bits keep both
// fields apart without separating each product:
//
//   S = sum of p mod 2^16,   H = sum of p >> 8 = sum of w a,   (S - (H << 8)) mod 2^16 = sum of v a
//
// exact as long as neither sum of products passes 2^16 - 1: 291 products of at most 225. Kernels widen every 256.

#include <cstddef>
#include <cstdint>

#include <cbq/config.hpp>

namespace cbq {

/// Running sums of the products of one lane.
struct LaneSums {
  std::uint16_t products = 0;  ///< S
  std::uint16_t upper = 0;     ///< H: the sum of the upper products
};

inline namespace CBQ_ABI {

/// Largest 4-bit code.
inline constexpr unsigned largest_nibble = 15;
/// Products that LaneSums holds at least, whatever the codes.
inline constexpr std::size_t lane_depth = 256;
static_assert(lane_depth * largest_nibble * largest_nibble <= 65535, "[cbq] 256 products of 4-bit codes must fit");

/// Two codes of 4 bits in one lane.
[[nodiscard]] constexpr std::uint16_t nibble_lane(unsigned upper, unsigned lower) noexcept {
  return static_cast<std::uint16_t>(upper << 8 | lower);
}

/// Two codes stored in one byte, the upper one in its upper half.
[[nodiscard]] constexpr std::uint16_t nibble_lane(std::byte pair) noexcept {
  const auto bits = static_cast<unsigned>(pair);
  return static_cast<std::uint16_t>((bits << 4 | bits) & 0x0f0fu);
}

/// Adds the products of both codes of a lane with one code of 4 bits.
constexpr void multiply_add(LaneSums& sums, std::uint16_t lane, unsigned code) noexcept {
  const unsigned product = lane * code;
  sums.products = static_cast<std::uint16_t>(sums.products + product);
  sums.upper = static_cast<std::uint16_t>(sums.upper + (product >> 8));
}

/// Sum of the products of the upper code.
[[nodiscard]] constexpr std::uint16_t upper_sum(const LaneSums& sums) noexcept {
  return sums.upper;
}

/// Sum of the products of the lower code.
[[nodiscard]] constexpr std::uint16_t lower_sum(const LaneSums& sums) noexcept {
  return static_cast<std::uint16_t>(sums.products - (static_cast<unsigned>(sums.upper) << 8));
}

}  // namespace CBQ_ABI
}  // namespace cbq
