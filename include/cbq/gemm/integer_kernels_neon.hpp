// SPDX-License-Identifier: Apache-2.0
#pragma once

// Armv8.0 vectors: every AArch64 CPU, no dot-product instruction. smull and smlal multiply 8 signed bytes and add to 8
// int16 sums, one per output and input of a step. How deep int16 may go decides the cost: neighbours are added first
// (addp) and then widened into the int32 sums (sadalp), so a sum of n blocks must fit with its neighbour:
// 2 * 8 n * largest code * largest activation < 32768, which gives n = 1, 2 and 5 blocks for codes of 4, 3 and 2 bits
// times 8-bit activations, and 9, 19 and 45 for 4-bit ones. 8-bit codes are taken less 128, as signed bytes: two
// products fit, 2 * 128 * 127 = 32512, and are widened at once. Taking 128 from the zero point too leaves every sum as
// it was; a symmetric one is 128 and vanishes. Register tile: 4 rows x 8 outputs; one or two rows take all 16 outputs,
// so that a panel is read from memory once.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon {

/// Outputs of one vector: 4 outputs x 4 inputs are 16 bytes of a line.
inline constexpr std::size_t quad_outputs = 4;
inline constexpr std::size_t quad_bytes = quad_outputs * step_inputs;

static_assert(short_blocks(4, 127) == 1 && short_blocks(3, 127) == 2 && short_blocks(2, 127) == 5 &&
                  short_blocks(4, 15) == 9,
              "[cbq] sums of neighbouring 16-bit products must fit int16");
static_assert(2 * 128 * 127 < 32768, "[cbq] two products of signed 8-bit codes must fit int16");

CBQ_BEGIN_REGION(CBQ_TARGET_NEON)

[[gnu::always_inline]] inline uint8x16_t load(const std::byte* from) noexcept {
  return vld1q_u8(reinterpret_cast<const std::uint8_t*>(from));
}

template <int Right>
[[gnu::always_inline]] inline uint8x16_t shift_right(uint8x16_t bytes) noexcept {
  if constexpr (Right == 0) {
    return bytes;
  } else {
    return vshrq_n_u8(bytes, Right);
  }
}

/// Codes of step `Step` for 4 outputs x 4 inputs; 8-bit codes come less 128. `block` points at the 16 bytes of these
/// outputs in the first line.
template <int Bits, int Step>
[[gnu::always_inline]] inline int8x16_t decode_step(const std::byte* block) noexcept {
  uint8x16_t codes;
  if constexpr (Bits == 8) {
    codes = veorq_u8(load(block + Step * 64), vdupq_n_u8(128));
  } else if constexpr (Bits == 4) {
    const uint8x16_t line = load(block + Step / 2 * 64);
    codes = Step % 2 == 0 ? vandq_u8(line, vdupq_n_u8(15)) : vshrq_n_u8(line, 4);
  } else {
    codes = shift_right<2 * (Step % 4)>(load(block + Step / 4 * 64));
    if constexpr (Bits == 2) {
      if constexpr (Step % 4 != 3) codes = vandq_u8(codes, vdupq_n_u8(3));
    } else {
      // Inserting the high bits above the low two also clears what the shift left there.
      codes = vsliq_n_u8(codes, shift_right<Step>(load(block + 2 * 64)), 2);
      if constexpr (Step != 7) codes = vandq_u8(codes, vdupq_n_u8(7));
    }
  }
  return vreinterpretq_s8_u8(codes);
}

/// Scales of 4 outputs of a group.
[[gnu::always_inline]] inline float32x4_t group_scale(const std::byte* header, std::size_t output) noexcept {
  const auto* scales = reinterpret_cast<const std::uint8_t*>(header + output * sizeof(half));
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(scales)));
}

/// Zero points of 4 outputs of an affine group; those of 8-bit codes less 128, as the codes are.
template <int Bits>
[[gnu::always_inline]] inline int32x4_t group_zero(const std::byte* header, std::size_t output) noexcept {
  std::uint32_t four;
  __builtin_memcpy(&four, header + group_scales_bytes + output, sizeof four);
  if constexpr (Bits == 8) four ^= 0x80808080u;
  const uint8x8_t bytes = vcreate_u8(four);
  if constexpr (Bits == 8) return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes))));
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
}

/// What the sum of one row starts from. `zero` is used by affine groups only.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline int32x4_t start(int32x4_t zero, std::int32_t zero_term) noexcept {
  if constexpr (Z == Zero::affine) {
    return vmulq_n_s32(zero, zero_term);
  } else {
    return vdupq_n_s32(Bits == 8 ? 0 : zero_term);
  }
}

/// 16-bit sums of the products of 4 outputs: two outputs each, four inputs per output.
struct ShortSums {
  int16x8_t low;
  int16x8_t high;
};

/// Adds the products of one step, or begins with them.
template <bool Begin>
[[gnu::always_inline]] inline void multiply_add(ShortSums& sums, int8x16_t weights, int8x16_t activations) noexcept {
  if constexpr (Begin) {
    sums.low = vmull_s8(vget_low_s8(weights), vget_low_s8(activations));
    sums.high = vmull_high_s8(weights, activations);
  } else {
    sums.low = vmlal_s8(sums.low, vget_low_s8(weights), vget_low_s8(activations));
    sums.high = vmlal_high_s8(sums.high, weights, activations);
  }
}

/// The four activations of step `Step`, for each of 4 outputs.
template <int Step>
[[gnu::always_inline]] inline int8x16_t load_step(const std::int8_t* codes) noexcept {
  std::int32_t four;
  __builtin_memcpy(&four, codes + Step * 4, sizeof four);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/// Steps [Step, 8) of one block of narrow codes.
template <int Bits, int Step, bool Begin, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_steps(ShortSums (&sums)[Rows][Quads], const std::byte* block,
                                                  const std::int8_t* codes) noexcept {
  int8x16_t weights[Quads];
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) weights[q] =
      decode_step<Bits, Step>(block + quad_bytes * q);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const int8x16_t activations = load_step<Step>(codes + r * block_inputs);
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      multiply_add<Begin && Step == 0>(sums[r][q], weights[q], activations);
    }
  }
  if constexpr (Step < 7) multiply_steps<Bits, Step + 1, Begin>(sums, block, codes);
}

/// Steps [Step, 8) of one block of 8-bit codes, two at a time: two int32 sums of two outputs each.
template <int Step, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_wide_steps(int32x4_t (&sums)[Rows][Quads][2], const std::byte* block,
                                                       const std::int8_t* codes) noexcept {
  int8x16_t weights[Quads][2];
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
    weights[q][0] = decode_step<8, Step>(block + quad_bytes * q);
    weights[q][1] = decode_step<8, Step + 1>(block + quad_bytes * q);
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const int8x16_t first = load_step<Step>(codes + r * block_inputs);
    const int8x16_t second = load_step<Step + 1>(codes + r * block_inputs);
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      ShortSums products;
      multiply_add<true>(products, weights[q][0], first);
      multiply_add<false>(products, weights[q][1], second);
      sums[r][q][0] = vpadalq_s16(sums[r][q][0], products.low);
      sums[r][q][1] = vpadalq_s16(sums[r][q][1], products.high);
    }
  }
  if constexpr (Step < 6) multiply_wide_steps<Step + 2>(sums, block, codes);
}

/// One group of one panel times some rows, at its start and later behind it.
struct GroupPosition {
  const std::byte* block = nullptr;
  const std::int8_t* codes = nullptr;
  std::size_t blocks = 0;
  std::size_t block_stride = 0;  // of codes
  std::size_t short_blocks = 0;  // of which int16 sums hold the products
};

/// Adds the products of a run of blocks of narrow codes, as many as int16 sums hold.
template <int Bits, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_run(int32x4_t (&sums)[Rows][Quads], GroupPosition run) noexcept {
  ShortSums shorts[Rows][Quads];
  multiply_steps<Bits, 0, true>(shorts, run.block, run.codes);
  while (--run.blocks != 0) {
    run.block += Bits * 64;
    run.codes += run.block_stride;
    multiply_steps<Bits, 0, false>(shorts, run.block, run.codes);
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
    sums[r][q] = vpadalq_s16(sums[r][q], vpaddq_s16(shorts[r][q].low, shorts[r][q].high));
  }
}

/// Adds the products of a group of narrow codes.
template <int Bits, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_group(int32x4_t (&sums)[Rows][Quads], const GroupPosition& group) noexcept {
  GroupPosition run = group;
  std::size_t left = group.blocks;
  // A run of one block, known to be one, is no loop.
  run.blocks = 1;
  for (; group.short_blocks == 1 && left != 0; --left) {
    multiply_run<Bits>(sums, run);
    run.block += Bits * 64;
    run.codes += group.block_stride;
  }
  while (left != 0) {
    run.blocks = left < group.short_blocks ? left : group.short_blocks;
    multiply_run<Bits>(sums, run);
    run.block += run.blocks * Bits * 64;
    run.codes += run.blocks * group.block_stride;
    left -= run.blocks;
  }
}

/// Adds the products of a group of 8-bit codes.
template <std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_wide_group(int32x4_t (&sums)[Rows][Quads],
                                                       const GroupPosition& group) noexcept {
  int32x4_t pairs[Rows][Quads][2];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) pairs[r][q][0] = pairs[r][q][1] = vdupq_n_s32(0);
  const std::byte* block = group.block;
  const std::int8_t* codes = group.codes;
  for (std::size_t i = 0; i < group.blocks; ++i) {
    multiply_wide_steps<0>(pairs, block, codes);
    block += 8 * 64;
    codes += group.block_stride;
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
    sums[r][q] = vaddq_s32(sums[r][q], vpaddq_s32(pairs[r][q][0], pairs[r][q][1]));
  }
}

/// 4 * Quads outputs of one panel times rows [first_row, first_row + Rows).
template <int Bits, Zero Z, std::size_t Rows, std::size_t Quads>
inline void multiply_rows(const IntegerTile& tile, const std::byte* panel, std::size_t first_output,
                          std::size_t first_row, float* out) noexcept {
  float32x4_t totals[Rows][Quads];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) totals[r][q] = vdupq_n_f32(0.0f);
  const std::int32_t* zero_terms = tile.zero_terms + first_row;
  const float* group_scales = tile.group_scales == nullptr ? nullptr : tile.group_scales + first_row;
  GroupPosition position{.codes = tile.codes + first_row * block_inputs,
                         .block_stride = block_inputs * tile.panel_rows,
                         .short_blocks = short_blocks(Bits, tile.largest_code)};
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group, panel += tile.group_bytes, zero_terms += tile.panel_rows) {
    int32x4_t sums[Rows][Quads];
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const int32x4_t zero =
          Z == Zero::affine ? group_zero<Bits>(panel, first_output + quad_outputs * q) : vdupq_n_s32(0);
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) sums[r][q] = start<Bits, Z>(zero, zero_terms[r]);
    }
    position.block = panel + tile.header_bytes + first_output * step_inputs;
    position.blocks = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    if constexpr (Bits == 8) {
      multiply_wide_group(sums, position);
    } else {
      multiply_group<Bits>(sums, position);
    }
    blocks_left -= position.blocks;
    position.codes += position.blocks * position.block_stride;
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const float32x4_t scale = group_scale(panel, first_output + quad_outputs * q);
      if (group_scales == nullptr) {
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][q] =
            vfmaq_f32(totals[r][q], scale, vcvtq_f32_s32(sums[r][q]));
      } else {
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][q] =
            vfmaq_f32(totals[r][q], vmulq_n_f32(scale, group_scales[r]), vcvtq_f32_s32(sums[r][q]));
      }
    }
    if (group_scales != nullptr) group_scales += tile.panel_rows;
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const float scale = tile.row_scales[first_row + r] * tile.weight_multiplier;
    float* values = out + (first_row + r) * tile.out_stride + first_output;
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q)
        vst1q_f32(values + quad_outputs * q, vmulq_n_f32(totals[r][q], scale));
  }
}

/// See IntegerTile.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  for (std::size_t p = 0; p < tile.panels; ++p) {
    const std::byte* panel = tile.panel + p * tile.panel_bytes;
    float* out = tile.out + p * panel_outputs;
    for (std::size_t row = 0; row < tile.panel_rows; row += 4) {
      const std::size_t rows = tile.panel_rows - row;
      if (rows == 1) {
        multiply_rows<Bits, Z, 1, 4>(tile, panel, 0, row, out);
      } else if (rows == 2) {
        multiply_rows<Bits, Z, 2, 4>(tile, panel, 0, row, out);
      } else {
        for (std::size_t output = 0; output < panel_outputs; output += 8) {
          if (rows == 3) {
            multiply_rows<Bits, Z, 3, 2>(tile, panel, output, row, out);
          } else {
            multiply_rows<Bits, Z, 4, 2>(tile, panel, output, row, out);
          }
        }
      }
    }
  }
}

CBQ_END_REGION
}  // namespace isa::neon
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
