// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX2 weight-only kernels. Few rows multiply in fixed point (fixed_point_row.hpp) with vpmaddubsw: codes of at most 4
// bits times digits, summed in int16 over one block, 8 outputs per register; 8-bit codes are two times 4 bits. A block
// of 4-bit codes costs 6 x 8 products and as many additions per row. Decoding to floats is as for AVX-512, but codes
// are masked and converted, because a permutation of 8 floats is no table for 4 bits.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx2.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {

static_assert(8 * 2 * 15 * 128 < 32768, "[cbq] one block of 4-bit codes times digits must fit int16 sums");

CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// code - zero of input `Input` (0..3) of a decoded step, for 8 outputs.
template <int Input>
[[gnu::always_inline]] inline __m256 step_weights(__m256i step, __m256 zero) noexcept {
  const __m256i shifted = Input == 0 ? step : _mm256_srli_epi32(step, 8 * Input);
  return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255))), zero);
}

/// Zero points of 8 outputs of one group as floats.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m256 group_zero(const std::byte* header, std::size_t output) noexcept {
  if constexpr (Z == Zero::affine) {
    const __m128i zeros = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(header + group_scales_bytes + output));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(zeros));
  } else {
    return _mm256_set1_ps(1 << (Bits - 1));
  }
}

[[gnu::always_inline]] inline __m256 group_scale(const std::byte* header, std::size_t output) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(header + output * sizeof(half))));
}

/// Decodes steps [Step, 8) of half a block: 4 inputs each, 16 floats apart.
template <int Bits, int Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, __m256 zero, __m256 scale,
                                                float* out) noexcept {
  const __m256i step = decode_step<Bits, Step>(block);
  _mm256_storeu_ps(out, _mm256_mul_ps(scale, step_weights<0>(step, zero)));
  _mm256_storeu_ps(out + 16, _mm256_mul_ps(scale, step_weights<1>(step, zero)));
  _mm256_storeu_ps(out + 32, _mm256_mul_ps(scale, step_weights<2>(step, zero)));
  _mm256_storeu_ps(out + 48, _mm256_mul_ps(scale, step_weights<3>(step, zero)));
  if constexpr (Step < 7) decode_steps<Bits, Step + 1>(block, zero, scale, out + 64);
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
    for (std::size_t output = 0; output < panel_outputs; output += 8) {
      const __m256 scale = _mm256_mul_ps(group_scale(header, output), _mm256_set1_ps(job.multiplier));
      decode_steps<Bits, 0>(codes + output * step_inputs, group_zero<Bits, Z>(header, output), scale, out + output);
    }
    if (!whole_block)
      __builtin_memcpy(job.out + input * panel_outputs, whole, (job.inputs - input) * panel_outputs * sizeof(float));
  }
}

/// Largest magnitude among 32 values, as the bits of a float, in all lanes.
[[gnu::always_inline]] inline __m128i largest_bits(const __m256 (&values)[4]) noexcept {
  __m256i most = _mm256_setzero_si256();
  _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(values[v]), _mm256_set1_epi32(0x7fffffff));
    most = _mm256_max_epi32(most, bits);
  }
  __m128i largest = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  largest = _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0x4e));
  return _mm_max_epi32(largest, _mm_shuffle_epi32(largest, 0xb1));
}

/// Converts 32 values, whose largest bits are given.
[[gnu::always_inline]] inline void to_fixed_block(const __m256 (&values)[4], __m128i largest, std::int32_t zero_factor,
                                                  FixedBlock* block) noexcept {
  const __m256i digit_bias = _mm256_set1_epi32(fixed_digit_bias);
  // In each 128-bit lane: from 4 values of 4 digits to 4 digits of 4 values, of which the last are zero.
  const __m256i by_digit =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m128i exponent = _mm_max_epi32(_mm_srli_epi32(_mm_add_epi32(largest, _mm_set1_epi32(fixed_room)), 23),
                                         _mm_set1_epi32(fixed_least_exponent));
  const __m128i scale = _mm_slli_epi32(_mm_sub_epi32(exponent, _mm_set1_epi32(fixed_exponent)), 23);
  const __m128i inverse = _mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(254 + fixed_exponent), exponent), 23);
  const __m256 factor = _mm256_broadcastss_ps(_mm_castsi128_ps(inverse));
  __m256i pairs = _mm256_setzero_si256();
  auto* to = reinterpret_cast<std::byte*>(block);
  _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) {
    const __m256i code = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(values[v], factor)), digit_bias);
    const __m256i digits = _mm256_shuffle_epi8(_mm256_xor_si256(code, digit_bias), by_digit);
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(1), digits));
    const __m256i three_of_four = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 3);
    // Each store is 8 bytes too long; the next one overwrites them.
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + v * 24), _mm256_permutevar8x32_epi32(digits, three_of_four));
  }
  const __m256i sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  const __m128i digit_sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  const __m128i terms = _mm_mullo_epi32(digit_sums, _mm_set1_epi32(-zero_factor));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 96), _mm_blend_epi32(terms, scale, 8));
}

/// See FixedPointConverter.
inline bool to_fixed_point(const FixedRow& row) noexcept {
  __m128i largest = _mm_setzero_si128();
  FixedBlock* block = row.blocks;
  for (std::size_t input = 0; input < row.inputs; input += block_inputs, ++block) {
    const std::size_t left = row.inputs - input;
    const float* from = row.values + input;
    float padded[block_inputs] = {};
    if (left < block_inputs) {
      __builtin_memcpy(padded, from, left * sizeof(float));
      from = padded;
    }
    const __m256 values[4] = {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8), _mm256_loadu_ps(from + 16),
                              _mm256_loadu_ps(from + 24)};
    const __m128i bits = largest_bits(values);
    largest = _mm_max_epi32(largest, bits);
    to_fixed_block(values, bits, row.zero_factor, block);
  }
  return _mm_cvtsi128_si32(largest) < 0x7f800000;
}

/// Asks for the lines of the block 8 KiB further on, which may lie outside of the array, into L2: with this many
/// instructions per line, loads cannot run far enough ahead.
template <int Bits>
[[gnu::always_inline]] inline void prefetch_block(const std::byte* block) noexcept {
  const std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(block) + 8192;
  _Pragma("GCC unroll 9") for (int line = 0; line <= Bits; ++line) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + static_cast<std::uintptr_t>(line) * 64), _MM_HINT_T1);
  }
}

/// Adds the products of steps [Step, 8) of one block in int16, for 8 * Halves outputs; sums[d] is that of digit d. Of
/// 8-bit codes, `Nibble` says which half.
template <int Bits, int Step, int Nibble, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void multiply_digits(__m256i (&sums)[row_digits][Rows][Halves], const std::byte* block,
                                                   const FixedBlock* x, std::size_t x_stride) noexcept {
  __m256i weights[Halves];
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
    weights[h] = decode_step<Bits, Step>(block + 32 * h);
    if constexpr (Bits == 8) {
      weights[h] = _mm256_and_si256(Nibble == 0 ? weights[h] : _mm256_srli_epi16(weights[h], 4), _mm256_set1_epi8(15));
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d) {
      std::int32_t four;
      __builtin_memcpy(&four, x[r * x_stride].digits[Step][d], sizeof four);
      const __m256i digits = _mm256_set1_epi32(four);
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
        const __m256i products = _mm256_maddubs_epi16(weights[h], digits);
        sums[d][r][h] = Step == 0 ? products : _mm256_add_epi16(sums[d][r][h], products);
        // Keeps GCC from turning the chain of additions into a tree, which needs more registers than there are.
        asm("" : "+x"(sums[d][r][h]));
      }
    }
  }
  if constexpr (Step < 7) multiply_digits<Bits, Step + 1, Nibble>(sums, block, x, x_stride);
}

/// sums[d][r] = sum over one block of code * digit d of row r, for the 8 * Halves outputs whose codes start at `block`.
template <int Bits, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void sum_block(__m256i (&sums)[row_digits][Rows][Halves], const std::byte* block,
                                             const FixedBlock* x, std::size_t x_stride) noexcept {
  multiply_digits<Bits, 0, 0>(sums, block, x, x_stride);
  _Pragma("GCC unroll 3") for (auto& rows : sums) _Pragma("GCC unroll 4") for (auto& row : rows)
      _Pragma("GCC unroll 2") for (__m256i& sum : row) sum = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  if constexpr (Bits == 8) {
    __m256i high[row_digits][Rows][Halves];
    multiply_digits<Bits, 0, 1>(high, block, x, x_stride);
    _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d)
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
            _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) sums[d][r][h] =
                _mm256_add_epi32(sums[d][r][h], _mm256_madd_epi16(high[d][r][h], _mm256_set1_epi16(16)));
  }
}

/// totals[r][0 .. Halves) += weight scale * one block times Rows rows, for outputs [output, output + 8 * Halves).
template <int Bits, Zero Z, std::size_t Halves, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_block(__m256 (*totals)[2], const std::byte* header, std::size_t output,
                                                  const std::byte* block, const FixedBlock* x,
                                                  std::size_t x_stride) noexcept {
  __m256i sums[row_digits][Rows][Halves];
  sum_block<Bits>(sums, block + output * step_inputs, x, x_stride);
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
    const __m256 scale = group_scale(header, output + 8 * h);
    __m256i zero = _mm256_setzero_si256();
    if constexpr (Z == Zero::affine) {
      const std::byte* zeros = header + group_scales_bytes + output + 8 * h;
      zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
    }
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      __m256i sum[row_digits];
      _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d) {
        const __m256i term = _mm256_set1_epi32(x[r * x_stride].zero_terms[d]);
        // zero < 2^8 and |term| <= 32 * 128 are one 16-bit product.
        sum[d] = _mm256_add_epi32(sums[d][r][h], Z == Zero::affine ? _mm256_madd_epi16(zero, term) : term);
      }
      const __m256 high = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(sum[2], 8), sum[1]));
      const __m256 whole = _mm256_fmadd_ps(high, _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(sum[0]));
      totals[r][h] = _mm256_fmadd_ps(_mm256_mul_ps(scale, _mm256_set1_ps(x[r * x_stride].scale)), whole, totals[r][h]);
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
      prefetch_block<Bits>(block);
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
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
