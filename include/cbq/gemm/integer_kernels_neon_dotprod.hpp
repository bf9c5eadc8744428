// SPDX-License-Identifier: Apache-2.0
#pragma once

// Armv8.2 with dot products. sdot multiplies 4 outputs x 4 inputs with 4 activations and adds to int32; its form with a
// lane takes those from any quarter of a register, so 16 activations of a row are one load and no broadcast. Codes are
// signed bytes as they are, 8-bit ones less 128 (integer_kernels_neon.hpp). Register tile: 10 rows x 4 outputs with
// 10 integer and 10 float sums, 4 decoded vectors and a row's activations: a decoded vector serves 10 products, and 20
// rows are two tiles. Fewer rows take 8 or all 16 outputs, so that a panel is read from memory once.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_neon.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon_dotprod {

using neon::quad_bytes;
using neon::quad_outputs;

/// Rows of the tallest tile, and vectors of 4 outputs of a tile of `rows`: what 32 registers hold.
inline constexpr std::size_t most_rows = 10;
[[nodiscard]] constexpr std::size_t tile_quads(std::size_t rows) noexcept {
  return rows <= 3 ? 4 : rows <= 5 ? 2 : 1;
}

CBQ_BEGIN_REGION(CBQ_TARGET_NEON_DOTPROD)

/// Adds the products of the steps [4 * Half, 4 * Half + 4) of one block.
template <int Bits, int Half, std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void multiply_half(int32x4_t (&sums)[Rows][Quads], const std::byte* block,
                                                 const std::int8_t* codes) noexcept {
  int8x16_t weights[Quads][4];
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
    weights[q][0] = neon::decode_step<Bits, 4 * Half>(block + quad_bytes * q);
    weights[q][1] = neon::decode_step<Bits, 4 * Half + 1>(block + quad_bytes * q);
    weights[q][2] = neon::decode_step<Bits, 4 * Half + 2>(block + quad_bytes * q);
    weights[q][3] = neon::decode_step<Bits, 4 * Half + 3>(block + quad_bytes * q);
  }
  _Pragma("GCC unroll 10") for (std::size_t r = 0; r < Rows; ++r) {
    const int8x16_t x = vld1q_s8(codes + r * block_inputs + 16 * Half);
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      sums[r][q] = vdotq_laneq_s32(sums[r][q], weights[q][0], x, 0);
      sums[r][q] = vdotq_laneq_s32(sums[r][q], weights[q][1], x, 1);
      sums[r][q] = vdotq_laneq_s32(sums[r][q], weights[q][2], x, 2);
      sums[r][q] = vdotq_laneq_s32(sums[r][q], weights[q][3], x, 3);
    }
  }
}

/// 4 * Quads outputs of one panel times rows [first_row, first_row + Rows).
template <int Bits, Zero Z, std::size_t Rows, std::size_t Quads>
inline void multiply_rows(const IntegerTile& tile, const std::byte* panel, std::size_t first_output,
                          std::size_t first_row, float* out) noexcept {
  float32x4_t totals[Rows][Quads];
  _Pragma("GCC unroll 10") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) totals[r][q] = vdupq_n_f32(0.0f);
  const std::int8_t* codes = tile.codes + first_row * block_inputs;
  const std::int32_t* zero_terms = tile.zero_terms + first_row;
  const float* group_scales = tile.group_scales == nullptr ? nullptr : tile.group_scales + first_row;
  const std::size_t block_stride = block_inputs * tile.panel_rows;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group, panel += tile.group_bytes, zero_terms += tile.panel_rows) {
    int32x4_t sums[Rows][Quads];
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const int32x4_t zero =
          Z == Zero::affine ? neon::group_zero<Bits>(panel, first_output + quad_outputs * q) : vdupq_n_s32(0);
      _Pragma("GCC unroll 10") for (std::size_t r = 0; r < Rows; ++r) sums[r][q] =
          neon::start<Bits, Z>(zero, zero_terms[r]);
    }
    const std::byte* block = panel + tile.header_bytes + first_output * step_inputs;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    for (std::size_t i = 0; i < count; ++i) {
      multiply_half<Bits, 0>(sums, block, codes);
      multiply_half<Bits, 1>(sums, block, codes);
      block += Bits * 64;
      codes += block_stride;
    }
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const float32x4_t scale = neon::group_scale(panel, first_output + quad_outputs * q);
      if (group_scales == nullptr) {
        _Pragma("GCC unroll 10") for (std::size_t r = 0; r < Rows; ++r) totals[r][q] =
            vfmaq_f32(totals[r][q], scale, vcvtq_f32_s32(sums[r][q]));
      } else {
        _Pragma("GCC unroll 10") for (std::size_t r = 0; r < Rows; ++r) totals[r][q] =
            vfmaq_f32(totals[r][q], vmulq_n_f32(scale, group_scales[r]), vcvtq_f32_s32(sums[r][q]));
      }
    }
    if (group_scales != nullptr) group_scales += tile.panel_rows;
  }
  _Pragma("GCC unroll 10") for (std::size_t r = 0; r < Rows; ++r) {
    const float scale = tile.row_scales[first_row + r] * tile.weight_multiplier;
    float* values = out + (first_row + r) * tile.out_stride + first_output;
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q)
        vst1q_f32(values + quad_outputs * q, vmulq_n_f32(totals[r][q], scale));
  }
}

/// All outputs of one panel times Rows rows from `row`.
template <int Bits, Zero Z, std::size_t Rows>
void multiply_panel(const IntegerTile& tile, const std::byte* panel, std::size_t row, float* out) noexcept {
  constexpr std::size_t quads = tile_quads(Rows);
  for (std::size_t output = 0; output < panel_outputs; output += quads * quad_outputs) {
    multiply_rows<Bits, Z, Rows, quads>(tile, panel, output, row, out);
  }
}

/// multiply_panel() for a number of rows known at run time.
template <int Bits, Zero Z, std::size_t Rows = 1>
[[gnu::always_inline]] inline void multiply_any_rows(const IntegerTile& tile, const std::byte* panel, std::size_t row,
                                                     std::size_t rows, float* out) noexcept {
  if constexpr (Rows < most_rows) {
    if (rows != Rows) return multiply_any_rows<Bits, Z, Rows + 1>(tile, panel, row, rows, out);
  }
  multiply_panel<Bits, Z, Rows>(tile, panel, row, out);
}

/// See IntegerTile. All rows in even pieces of at most 10.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  const std::size_t pieces = (tile.panel_rows + most_rows - 1) / most_rows;
  for (std::size_t p = 0; p < tile.panels; ++p) {
    std::size_t row = 0;
    for (std::size_t piece = pieces; piece != 0; --piece) {
      const std::size_t rows = (tile.panel_rows - row + piece - 1) / piece;
      multiply_any_rows<Bits, Z>(tile, tile.panel + p * tile.panel_bytes, row, rows, tile.out + p * panel_outputs);
      row += rows;
    }
  }
}

CBQ_END_REGION
}  // namespace isa::neon_dotprod
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
