// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-VNNI weight-only kernel for few rows, in fixed point (fixed_point_row.hpp): a step of 4 inputs is, for 8 outputs
// and each row, three vpdpbusd with digits broadcast from memory, where AVX2 takes three products and three additions
// of codes of at most 4 bits, and twice that of 8-bit codes. Everything that does not multiply is AVX2's, and the
// results are its bits.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx2.hpp>
#include <cbq/gemm/weight_only_kernels_avx2.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVXVNNI)

/// Adds the products of steps [Step, 8) of one block; sums[d] is that of digit d.
template <int Bits, int Step, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void multiply_digits(__m256i (&sums)[row_digits][Rows][Halves], const std::byte* block,
                                                   const FixedBlock* x, std::size_t x_stride) noexcept {
  __m256i weights[Halves];
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) weights[h] =
      avx2::decode_step<Bits, Step>(block + 32 * h);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d) {
      std::int32_t four;
      __builtin_memcpy(&four, x[r * x_stride].digits[Step][d], sizeof four);
      const __m256i digits = _mm256_set1_epi32(four);
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
        sums[d][r][h] = _mm256_dpbusd_avx_epi32(sums[d][r][h], weights[h], digits);
      }
    }
  }
  if constexpr (Step < 7) multiply_digits<Bits, Step + 1, Rows, Halves>(sums, block, x, x_stride);
}

/// totals[r][0 .. Halves) += weight scale * one block times Rows rows, for outputs [output, output + 8 * Halves).
template <int Bits, Zero Z, std::size_t Halves, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_block(__m256 (*totals)[2], const std::byte* header, std::size_t output,
                                                  const std::byte* block, const FixedBlock* x,
                                                  std::size_t x_stride) noexcept {
  __m256i sums[row_digits][Rows][Halves];
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
    __m256i zero = _mm256_setzero_si256();
    if constexpr (Z == Zero::affine) {
      const std::byte* zeros = header + group_scales_bytes + output + 8 * h;
      zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
    }
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d) {
        const __m256i term = _mm256_set1_epi32(x[r * x_stride].zero_terms[d]);
        // zero < 2^8 and |term| <= 32 * 128 are one 16-bit product.
        sums[d][r][h] = Z == Zero::affine ? _mm256_madd_epi16(zero, term) : term;
      }
    }
  }
  multiply_digits<Bits, 0, Rows, Halves>(sums, block + output * step_inputs, x, x_stride);
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
    const __m256 scale = avx2::group_scale(header, output + 8 * h);
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      const __m256 high = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(sums[2][r][h], 8), sums[1][r][h]));
      const __m256 sum = _mm256_fmadd_ps(high, _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(sums[0][r][h]));
      totals[r][h] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(x[r * x_stride].scale)), sum, totals[r][h]);
    }
  }
}

/// Rows [first, first + Rows) of the tile. One or two rows share broadcast digits between both halves of the outputs;
/// for more there are too few registers.
template <int Bits, Zero Z, std::size_t Rows>
inline void fixed_point_rows_tile(const FixedPointTile& tile, std::size_t first) noexcept {
  constexpr std::size_t Halves = Rows <= 2 ? 2 : 1;
  __m256 totals[2 / Halves][Rows][2];
  _Pragma("GCC unroll 2") for (auto& rows : totals) _Pragma("GCC unroll 4") for (auto& row : rows) row[0] = row[1] =
      _mm256_setzero_ps();
  const std::byte* header = tile.panel;
  const FixedBlock* x = tile.x + first * tile.blocks;
  std::size_t left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group, header += tile.group_bytes) {
    const std::size_t count = left < tile.blocks_per_group ? left : tile.blocks_per_group;
    const std::byte* block = header + tile.header_bytes;
    for (std::size_t i = 0; i < count; ++i, ++x, block += Bits * 64) {
      avx2::prefetch_block<Bits>(block);
      multiply_block<Bits, Z, Halves, Rows>(totals[0], header, 0, block, x, tile.blocks);
      if constexpr (Halves == 1) {
        asm("" : "+r"(x));  // keeps GCC from storing the broadcast digits of the first half for the second
        multiply_block<Bits, Z, Halves, Rows>(totals[1], header, 8, block, x, tile.blocks);
      }
    }
    left -= count;
  }
  const __m256 multiplier = _mm256_set1_ps(tile.multiplier);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    float* out = tile.out + (first + r) * panel_outputs;
    _mm256_storeu_ps(out, _mm256_mul_ps(totals[0][r][0], multiplier));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(Halves == 2 ? totals[0][r][1] : totals[1 / Halves][r][0], multiplier));
  }
}

/// See FixedPointTile. Rows are taken in even pieces of at most 4: 12 sums of 16 registers.
template <int Bits, Zero Z>
void fixed_point_tile(const FixedPointTile& tile) noexcept {
  const std::size_t pieces = (tile.rows + 3) / 4;
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const std::size_t first = tile.rows * piece / pieces;
    switch (tile.rows * (piece + 1) / pieces - first) {
      case 1:
        fixed_point_rows_tile<Bits, Z, 1>(tile, first);
        break;
      case 2:
        fixed_point_rows_tile<Bits, Z, 2>(tile, first);
        break;
      case 3:
        fixed_point_rows_tile<Bits, Z, 3>(tile, first);
        break;
      default:
        fixed_point_rows_tile<Bits, Z, 4>(tile, first);
        break;
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
