// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-VNNI: vpdpbusd on 256-bit registers, for CPUs without AVX-512. Unsigned codes are the first operand and signed
// activations the second; the zero point is the initial value of the accumulator. Half a line, 8 outputs, per register.
// Register tile: 4 rows x 2 halves = 8 accumulators, 2 decoded vectors, 1 broadcast; the float sums lie on the stack
// and are touched once per group. 6 x 2 would fill the registers with accumulators alone. Everything that does not
// multiply is AVX2's.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx2.hpp>
#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVXVNNI)

/// Adds the products of one step to all 16 outputs of `Rows` rows.
template <int Bits, int Step, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_steps(__m256i (&sums)[Chains][Rows][2], const std::byte* block,
                                                  const std::int8_t* codes) noexcept {
  __m256i weights[2];
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) weights[h] =
      avx2::decode_step<Bits, Step>(block + 32 * h);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, codes + r * block_inputs + Step * 4, sizeof four);
    const __m256i activations = _mm256_set1_epi32(four);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
      __m256i& sum = sums[static_cast<std::size_t>(Step) % Chains][r][h];
      sum = _mm256_dpbusd_avx_epi32(sum, weights[h], activations);
    }
  }
  if constexpr (Step < 7) multiply_steps<Bits, Step + 1, Rows, Chains>(sums, block, codes);
}

/// One panel times rows [first_row, first_row + Rows). Chains: independent accumulators per result, where the rows
/// alone are too few to hide the latency of vpdpbusd.
template <int Bits, Zero Z, std::size_t Rows>
inline void multiply_rows(const IntegerTile& tile, const std::byte* panel, std::size_t first_row, float* out) noexcept {
  constexpr std::size_t Chains = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  __m256 totals[Rows][2];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) totals[r][h] = _mm256_setzero_ps();
  const std::int8_t* codes = tile.codes + first_row * block_inputs;
  const std::int32_t* zero_terms = tile.zero_terms + first_row;
  const float* group_scales = tile.group_scales == nullptr ? nullptr : tile.group_scales + first_row;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    __m256i sums[Chains][Rows][2];
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
      __m256i zero = _mm256_setzero_si256();
      if constexpr (Z == Zero::affine) {
        const std::byte* zeros = panel + group_scales_bytes + 8 * h;
        zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
      }
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
        const __m256i term = _mm256_set1_epi32(zero_terms[r]);
        sums[0][r][h] = Z == Zero::affine ? _mm256_mullo_epi32(zero, term) : term;
        _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c) sums[c][r][h] = _mm256_setzero_si256();
      }
    }
    const std::byte* block = panel + tile.header_bytes;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    for (std::size_t i = 0; i < count; ++i) {
      multiply_steps<Bits, 0, Rows, Chains>(sums, block, codes);
      block += Bits * 64;
      codes += block_inputs * tile.panel_rows;
    }
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
      const std::byte* scales = panel + 8 * h * sizeof(half);
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
          _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c) sums[0][r][h] =
              _mm256_add_epi32(sums[0][r][h], sums[c][r][h]);
      if (group_scales == nullptr) {
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][h] =
            _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[0][r][h]), totals[r][h]);
      } else {
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][h] = _mm256_fmadd_ps(
            _mm256_mul_ps(scale, _mm256_set1_ps(group_scales[r])), _mm256_cvtepi32_ps(sums[0][r][h]), totals[r][h]);
      }
    }
    if (group_scales != nullptr) group_scales += tile.panel_rows;
    zero_terms += tile.panel_rows;
    panel += tile.group_bytes;
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const __m256 scale = _mm256_set1_ps(tile.row_scales[first_row + r] * tile.weight_multiplier);
    float* values = out + (first_row + r) * tile.out_stride;
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h)
        _mm256_storeu_ps(values + 8 * h, _mm256_mul_ps(totals[r][h], scale));
  }
}

/// See IntegerTile. Rows go in even pieces of at most 4.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  for (std::size_t p = 0; p < tile.panels; ++p) {
    const std::byte* panel = tile.panel + p * tile.panel_bytes;
    float* out = tile.out + p * panel_outputs;
    std::size_t row = 0;
    for (std::size_t pieces = (tile.panel_rows + 3) / 4; pieces > 0; --pieces) {
      const std::size_t rows = (tile.panel_rows - row + pieces - 1) / pieces;
      switch (rows) {
        case 1:
          multiply_rows<Bits, Z, 1>(tile, panel, row, out);
          break;
        case 2:
          multiply_rows<Bits, Z, 2>(tile, panel, row, out);
          break;
        case 3:
          multiply_rows<Bits, Z, 3>(tile, panel, row, out);
          break;
        default:
          multiply_rows<Bits, Z, 4>(tile, panel, row, out);
          break;
      }
      row += rows;
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
