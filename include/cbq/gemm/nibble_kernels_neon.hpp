// SPDX-License-Identifier: Apache-2.0
#pragma once

// The 4-bit multiplier with the vectors of every AArch64 CPU: 8 lanes per register, so that mul makes 16 products; add
// and usra (a shift that accumulates) keep the fields apart. Register tile: 4 rows x 16 lanes.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/nibble_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon {
CBQ_BEGIN_REGION(CBQ_TARGET_NEON)

/// Writes `count` codes as lanes and returns their sum.
inline std::int32_t widen_nibbles(const std::uint8_t* codes, std::size_t count, std::uint16_t* lanes) noexcept {
  uint32x4_t sums = vdupq_n_u32(0);
  std::size_t k = 0;
  for (; k + 8 <= count; k += 8) {
    const uint16x8_t code = vmovl_u8(vld1_u8(codes + k));
    sums = vpadalq_u16(sums, code);
    vst1q_u16(lanes + k, code);
  }
  auto sum = static_cast<std::int32_t>(vaddvq_u32(sums));
  for (; k < count; ++k) {
    sum += codes[k];
    lanes[k] = codes[k];
  }
  return sum;
}

[[gnu::always_inline]] inline void add_widened(std::int32_t* to, uint16x8_t words) noexcept {
  vst1q_s32(to, vreinterpretq_s32_u32(vaddw_u16(vreinterpretq_u32_s32(vld1q_s32(to)), vget_low_u16(words))));
  vst1q_s32(to + 4, vreinterpretq_s32_u32(vaddw_high_u16(vreinterpretq_u32_s32(vld1q_s32(to + 4)), words)));
}

/// Two codes of 4 bits in each byte as lanes.
[[gnu::always_inline]] inline uint16x8_t nibble_lanes(uint16x8_t bytes) noexcept {
  return vandq_u16(vsliq_n_u16(bytes, bytes, 4), vdupq_n_u16(0x0f0f));
}

/// At most 256 inputs of 16 pairs times some rows; `sums` are those of these pairs.
template <std::size_t Rows>
inline void multiply_nibbles(const std::byte* pairs, std::size_t count, const std::uint16_t (*lanes)[lane_depth],
                             std::int32_t* sums) noexcept {
  uint16x8_t all[Rows][2];
  uint16x8_t upper[Rows][2];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) all[r][h] = upper[r][h] = vdupq_n_u16(0);
  for (std::size_t k = 0; k < count; ++k, pairs += nibble_pairs) {
    const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const std::uint8_t*>(pairs));
    const uint16x8_t weights[2] = {nibble_lanes(vmovl_u8(vget_low_u8(bytes))), nibble_lanes(vmovl_high_u8(bytes))};
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      const uint16x8_t activation = vld1q_dup_u16(&lanes[r][k]);
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
        const uint16x8_t product = vmulq_u16(weights[h], activation);
        all[r][h] = vaddq_u16(all[r][h], product);
        upper[r][h] = vsraq_n_u16(upper[r][h], product, 8);
      }
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
    std::int32_t* to = sums + r * nibble_outputs + 8 * h;
    add_widened(to, upper[r][h]);
    add_widened(to + nibble_pairs, vsubq_u16(all[r][h], vshlq_n_u16(upper[r][h], 8)));
  }
}

/// See NibbleTile.
inline void nibble_tile(const NibbleTile& tile) noexcept {
  std::uint16_t lanes[4][lane_depth];
  for (std::size_t first = 0; first < tile.inputs; first += lane_depth) {
    const std::size_t count = tile.inputs - first < lane_depth ? tile.inputs - first : lane_depth;
    const std::byte* pairs = tile.pairs + first * nibble_pairs;
    for (std::size_t row = 0; row < tile.rows;) {
      const std::size_t rows = tile.rows - row >= 4 ? 4 : tile.rows - row >= 2 ? 2 : 1;
      for (std::size_t r = 0; r < rows; ++r) {
        tile.code_sums[row + r] += widen_nibbles(tile.codes + (row + r) * tile.stride + first, count, lanes[r]);
      }
      for (std::size_t pair = 0; pair < nibble_pairs; pair += 16) {
        std::int32_t* sums = tile.sums + row * nibble_outputs + pair;
        if (rows == 4) {
          multiply_nibbles<4>(pairs + pair, count, lanes, sums);
        } else if (rows == 2) {
          multiply_nibbles<2>(pairs + pair, count, lanes, sums);
        } else {
          multiply_nibbles<1>(pairs + pair, count, lanes, sums);
        }
      }
      row += rows;
    }
  }
}

CBQ_END_REGION
}  // namespace isa::neon
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
