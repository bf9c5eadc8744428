// SPDX-License-Identifier: Apache-2.0
#pragma once

// Range and quantization of a row of activations for every AArch64 CPU: once per row and matmul, whatever the kernel.
// Rounding to nearest even is one instruction (fcvtns); codes are as those of isa::scalar bit for bit.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon {
CBQ_BEGIN_REGION(CBQ_TARGET_NEON)

/// See isa::scalar::row_range.
inline RowRange row_range(const float* values, std::size_t count) noexcept {
  float32x4_t lowest = vdupq_n_f32(0.0f);
  float32x4_t highest = vdupq_n_f32(0.0f);
  uint32x4_t largest_bits = vdupq_n_u32(0);
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t value = vld1q_f32(values + i);
    lowest = vminnmq_f32(lowest, value);
    highest = vmaxnmq_f32(highest, value);
    largest_bits = vmaxq_u32(largest_bits, vreinterpretq_u32_f32(vabsq_f32(value)));
  }
  const float low = vminnmvq_f32(lowest);
  const float high = vmaxnmvq_f32(highest);
  RowRange range;
  range.lowest = low < 0.0f ? low : 0.0f;  // the smaller of zeros is -0 here
  range.highest = high > 0.0f ? high : 0.0f;
  range.finite = vmaxvq_u32(largest_bits) < 0x7f800000u;
  for (; i < count; ++i) {
    std::uint32_t value_bits;
    __builtin_memcpy(&value_bits, values + i, sizeof value_bits);
    range.lowest = values[i] < range.lowest ? values[i] : range.lowest;
    range.highest = values[i] > range.highest ? values[i] : range.highest;
    range.finite = range.finite && (value_bits & 0x7f800000u) != 0x7f800000u;
  }
  return range;
}

/// Codes of 8 values in 16 bits.
[[gnu::always_inline]] inline int16x8_t quantize_eight(const float* values, const ActivationRow& row) noexcept {
  const float32x4_t lowest = vdupq_n_f32(row.lowest);
  const float32x4_t highest = vdupq_n_f32(row.highest);
  const float32x4_t low = vmulq_n_f32(vld1q_f32(values), row.inverse_scale);
  const float32x4_t high = vmulq_n_f32(vld1q_f32(values + 4), row.inverse_scale);
  const int32x4_t low_codes = vcvtnq_s32_f32(vminnmq_f32(highest, vmaxnmq_f32(lowest, low)));
  const int32x4_t high_codes = vcvtnq_s32_f32(vminnmq_f32(highest, vmaxnmq_f32(lowest, high)));
  return vuzp1q_s16(vreinterpretq_s16_s32(low_codes), vreinterpretq_s16_s32(high_codes));
}

/// See isa::scalar::quantize_row.
inline void quantize_row(const ActivationRow& row) noexcept {
  std::int8_t* out = row.codes;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    int32x4_t sums = vdupq_n_s32(0);
    for (std::size_t begin = 0; begin < length; begin += block_inputs) {
      const float* values = row.values + first + begin;
      float padded[block_inputs];
      if (length - begin < block_inputs) {
        for (std::size_t i = 0; i < block_inputs; ++i) padded[i] = begin + i < length ? values[i] : 0.0f;
        values = padded;
      }
      _Pragma("GCC unroll 2") for (std::size_t half_block = 0; half_block < block_inputs; half_block += 16) {
        const int16x8_t low = quantize_eight(values + half_block, row);
        const int16x8_t high = quantize_eight(values + half_block + 8, row);
        sums = vpadalq_s16(sums, vaddq_s16(low, high));
        vst1q_s8(out + half_block, vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
      }
      out += block_inputs * row.panel_rows;
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * vaddvq_s32(sums);
  }
}

CBQ_END_REGION
}  // namespace isa::neon
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
