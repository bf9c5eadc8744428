// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weight-only kernels for every AArch64 CPU. The zero point is taken from codes while they are bytes, 16 at a time: a
// symmetric one of 8 bits is taken by decoding already, only affine 8-bit weights do not fit a signed byte and take
// theirs as floats. One table lookup puts a byte into the top of each 32-bit lane, and the conversion divides by 2^24:
// two instructions for 4 weights, exact. Activations multiply from a lane of a register: no broadcasts. Up to 3 rows
// take all 16 outputs, 4 rows half of them: 32 registers hold no more.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_neon.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon {

/// What is subtracted from the codes of 4 outputs: bytes, or floats for affine 8-bit weights.
struct GroupZero {
  int8x16_t bytes;
  float32x4_t floats;
};

CBQ_BEGIN_REGION(CBQ_TARGET_NEON)

template <int Bits, Zero Z>
[[gnu::always_inline]] inline GroupZero weight_zero(const std::byte* header, std::size_t output) noexcept {
  GroupZero zero{vdupq_n_s8(Bits == 8 ? 0 : 1 << (Bits - 1)), vdupq_n_f32(0.0f)};
  if constexpr (Z == Zero::affine) {
    const int32x4_t zeros = group_zero<Bits>(header, output);
    if constexpr (Bits == 8) {
      zero.floats = vcvtq_f32_s32(zeros);
    } else {
      zero.bytes = vreinterpretq_s8_s32(vmulq_n_s32(zeros, 0x01010101));  // below 16: four equal bytes
    }
  }
  return zero;
}

/// The bytes of code - zero of one step, for 4 outputs; affine 8-bit weights lack their zero point still.
template <int Bits, Zero Z, int Step>
[[gnu::always_inline]] inline int8x16_t decode_levels(const std::byte* block, const GroupZero& zero) noexcept {
  const int8x16_t codes = decode_step<Bits, Step>(block);
  if constexpr (Bits == 8) {
    return codes;
  } else {
    return vsubq_s8(codes, zero.bytes);
  }
}

/// code - zero of input `Input` (0..3) of a step, for 4 outputs.
template <int Bits, Zero Z, int Input>
[[gnu::always_inline]] inline float32x4_t step_weights(int8x16_t levels, const GroupZero& zero) noexcept {
  constexpr std::uint32_t none = 0x00ffffffu;  // three bytes beyond the table: zeros
  constexpr auto byte = static_cast<std::uint32_t>(Input);
  const uint32x4_t top = {none | byte << 24, none | (byte + 4) << 24, none | (byte + 8) << 24,
                          none | (byte + 12) << 24};
  const int8x16_t lanes = vqtbl1q_s8(levels, vreinterpretq_u8_u32(top));
  const float32x4_t weights = vcvtq_n_f32_s32(vreinterpretq_s32_s8(lanes), 24);
  if constexpr (Bits == 8 && Z == Zero::affine) {
    return vsubq_f32(weights, zero.floats);
  } else {
    return weights;
  }
}

/// Decodes steps [Step, 8) of a block for 4 outputs: 4 inputs each, 16 floats apart.
template <int Bits, Zero Z, int Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, const GroupZero& zero, float32x4_t scale,
                                                float* out) noexcept {
  const int8x16_t levels = decode_levels<Bits, Z, Step>(block, zero);
  vst1q_f32(out, vmulq_f32(scale, step_weights<Bits, Z, 0>(levels, zero)));
  vst1q_f32(out + 16, vmulq_f32(scale, step_weights<Bits, Z, 1>(levels, zero)));
  vst1q_f32(out + 32, vmulq_f32(scale, step_weights<Bits, Z, 2>(levels, zero)));
  vst1q_f32(out + 48, vmulq_f32(scale, step_weights<Bits, Z, 3>(levels, zero)));
  if constexpr (Step < 7) decode_steps<Bits, Z, Step + 1>(block, zero, scale, out + 64);
}

/// See DecodeJob.
template <int Bits, Zero Z>
void decode_panel(const DecodeJob& job) noexcept {
  for (std::size_t input = 0; input < job.inputs; input += block_inputs) {
    const std::size_t block = job.first_block + input / block_inputs;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const std::byte* codes = header + job.header_bytes + block % job.blocks_per_group * (Bits * 64);
    const bool whole_block = job.inputs - input >= block_inputs;
    float whole[block_inputs * panel_outputs];
    float* out = whole_block ? job.out + input * panel_outputs : whole;
    for (std::size_t output = 0; output < panel_outputs; output += quad_outputs) {
      const float32x4_t scale = vmulq_n_f32(group_scale(header, output), job.multiplier);
      decode_steps<Bits, Z, 0>(codes + output * step_inputs, weight_zero<Bits, Z>(header, output), scale, out + output);
    }
    if (!whole_block)
      __builtin_memcpy(job.out + input * panel_outputs, whole, (job.inputs - input) * panel_outputs * sizeof(float));
  }
}

/// Adds the products of input `Input` (0..3) of a step for 4 outputs.
template <int Bits, Zero Z, int Input, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_input(float32x4_t (&sums)[Rows][Quads], std::size_t quad, int8x16_t levels,
                                                  const GroupZero& zero, const float32x4_t (&x)[Rows]) noexcept {
  const float32x4_t weights = step_weights<Bits, Z, Input>(levels, zero);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) sums[r][quad] =
      vfmaq_laneq_f32(sums[r][quad], weights, x[r], Input);
}

/// Adds the products of steps [Step, 8) of one block.
template <int Bits, Zero Z, int Step, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_float_steps(float32x4_t (&sums)[Rows][Quads], const std::byte* block,
                                                        const GroupZero (&zeros)[Quads], const float* x,
                                                        std::size_t x_stride) noexcept {
  float32x4_t activations[Rows];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) activations[r] =
      vld1q_f32(x + r * x_stride + Step * 4);
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
    const int8x16_t levels = decode_levels<Bits, Z, Step>(block + quad_bytes * q, zeros[q]);
    multiply_input<Bits, Z, 0>(sums, q, levels, zeros[q], activations);
    multiply_input<Bits, Z, 1>(sums, q, levels, zeros[q], activations);
    multiply_input<Bits, Z, 2>(sums, q, levels, zeros[q], activations);
    multiply_input<Bits, Z, 3>(sums, q, levels, zeros[q], activations);
  }
  if constexpr (Step < 7) multiply_float_steps<Bits, Z, Step + 1>(sums, block, zeros, x, x_stride);
}

/// 4 * Quads outputs of a WeightOnlyTile.
template <int Bits, Zero Z, std::size_t Rows, std::size_t Quads>
inline void weight_only_rows_tile(const WeightOnlyTile& tile, std::size_t first_output) noexcept {
  float32x4_t totals[Rows][Quads];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) totals[r][q] = vdupq_n_f32(0.0f);
  const std::byte* header = tile.panel;
  std::size_t input = 0;
  for (std::size_t group = 0; group < tile.groups; ++group, header += tile.group_bytes) {
    GroupZero zeros[Quads];
    float32x4_t sums[Rows][Quads];
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      zeros[q] = weight_zero<Bits, Z>(header, first_output + quad_outputs * q);
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) sums[r][q] = vdupq_n_f32(0.0f);
    }
    const std::byte* block = header + tile.header_bytes + first_output * step_inputs;
    for (std::size_t i = 0; i < tile.blocks_per_group && input < tile.inputs;
         ++i, input += block_inputs, block += Bits * 64) {
      if (tile.inputs - input >= block_inputs) {
        multiply_float_steps<Bits, Z, 0>(sums, block, zeros, tile.x + input, tile.x_stride);
      } else {
        float padded[Rows * block_inputs] = {};  // x ends inside this block
        for (std::size_t r = 0; r < Rows; ++r) {
          __builtin_memcpy(padded + r * block_inputs, tile.x + r * tile.x_stride + input,
                           (tile.inputs - input) * sizeof(float));
        }
        multiply_float_steps<Bits, Z, 0>(sums, block, zeros, padded, block_inputs);
      }
    }
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const float32x4_t scale = group_scale(header, first_output + quad_outputs * q);
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][q] =
          vfmaq_f32(totals[r][q], scale, sums[r][q]);
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      float* out = tile.out + r * tile.out_stride + first_output + quad_outputs * q;
      vst1q_f32(out, vmulq_n_f32(totals[r][q], tile.multiplier));
    }
  }
}

/// See WeightOnlyTile.
template <int Bits, Zero Z>
void weight_only_tile(const WeightOnlyTile& tile) noexcept {
  switch (tile.rows) {
    case 1:
      weight_only_rows_tile<Bits, Z, 1, 4>(tile, 0);
      break;
    case 2:
      weight_only_rows_tile<Bits, Z, 2, 4>(tile, 0);
      break;
    case 3:
      weight_only_rows_tile<Bits, Z, 3, 4>(tile, 0);
      break;
    default:
      weight_only_rows_tile<Bits, Z, 4, 2>(tile, 0);
      weight_only_rows_tile<Bits, Z, 4, 2>(tile, 8);
      break;
  }
}

CBQ_END_REGION
}  // namespace isa::neon
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
