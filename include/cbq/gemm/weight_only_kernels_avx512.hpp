// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 weight-only kernels. Few rows multiply in fixed point (fixed_point_row.hpp): a step of 4 inputs is one
// decoded vector and, per row, three vpdpbusd with digits broadcast from memory. A block of 4-bit codes costs 24
// products per row, 12 instructions of decoding and 7 of joining the digits; its 288 bytes come from memory in about
// the time of one row, and only if asked for 8 KiB ahead and into L2, because so many instructions keep loads from
// running ahead. Decoding to floats: a line holds, in every 32-bit lane, 4 inputs of one output; codes of at most 4
// bits become floats by a table of 16 in one vpermps, which looks at the lowest 4 bits of a lane only, so that neither
// mask nor conversion is needed; 8-bit codes are masked and converted.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// code - zero for the codes 0..15, with the zero point of symmetric weights.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512 code_table() noexcept {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return Z == Zero::affine ? codes : _mm512_sub_ps(codes, _mm512_set1_ps(1 << (Bits - 1)));
}

/// code - zero of input `Input` (0..3) of a decoded step, for 16 outputs.
template <int Bits, Zero Z, int Input>
[[gnu::always_inline]] inline __m512 step_weights(__m512i step, __m512 table, __m512 zero) noexcept {
  const __m512i shifted = Input == 0 ? step : _mm512_srli_epi32(step, 8 * Input);
  if constexpr (Bits == 8) {
    return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255))), zero);
  } else {
    const __m512 code = _mm512_permutexvar_ps(shifted, table);
    return Z == Zero::affine ? _mm512_sub_ps(code, zero) : code;
  }
}

/// Zero points of one group as floats; those of symmetric weights of 8 bits too, whose codes no table decodes.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512 group_zero(const std::byte* header) noexcept {
  if constexpr (Z == Zero::affine) {
    const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + group_scales_bytes));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros));
  } else {
    return _mm512_set1_ps(1 << (Bits - 1));
  }
}

[[gnu::always_inline]] inline __m512 group_scale(const std::byte* header) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(header)));
}

/// Decodes steps [Step, 8) of one block: 4 x 16 floats each.
template <int Bits, Zero Z, unsigned Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, __m512 table, __m512 zero, __m512 scale,
                                                float* out) noexcept {
  const __m512i step = decode_step<Bits, Step>(block);
  _mm512_storeu_ps(out, _mm512_mul_ps(scale, step_weights<Bits, Z, 0>(step, table, zero)));
  _mm512_storeu_ps(out + 16, _mm512_mul_ps(scale, step_weights<Bits, Z, 1>(step, table, zero)));
  _mm512_storeu_ps(out + 32, _mm512_mul_ps(scale, step_weights<Bits, Z, 2>(step, table, zero)));
  _mm512_storeu_ps(out + 48, _mm512_mul_ps(scale, step_weights<Bits, Z, 3>(step, table, zero)));
  if constexpr (Step < 7) decode_steps<Bits, Z, Step + 1>(block, table, zero, scale, out + 64);
}

/// See DecodeJob.
template <int Bits, Zero Z>
void decode_panel(const DecodeJob& job) noexcept {
  const __m512 table = code_table<Bits, Z>();
  for (std::size_t input = 0; input < job.inputs; input += block_inputs) {
    const std::size_t block = job.first_block + input / block_inputs;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const std::byte* codes = header + job.header_bytes + block % job.blocks_per_group * (Bits * 64);
    const __m512 scale = _mm512_mul_ps(group_scale(header), _mm512_set1_ps(job.multiplier));
    const __m512 zero = group_zero<Bits, Z>(header);
    float* out = job.out + input * panel_outputs;
    if (job.inputs - input >= block_inputs) {
      decode_steps<Bits, Z, 0>(codes, table, zero, scale, out);
    } else {
      float whole[block_inputs * panel_outputs];
      decode_steps<Bits, Z, 0>(codes, table, zero, scale, whole);
      __builtin_memcpy(out, whole, (job.inputs - input) * panel_outputs * sizeof(float));
    }
  }
}

/// See FixedPointConverter.
inline bool to_fixed_point(const FixedRow& row) noexcept {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i digit_bias = _mm512_set1_epi32(fixed_digit_bias);
  // In each 128-bit lane: from 4 values of 4 digits to 4 digits of 4 values, of which the last are zero.
  const __m512i by_digit = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i three_of_four = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 3, 3, 3);
  const __m512i ones = _mm512_set1_epi8(1);
  __m128i largest = _mm_setzero_si128();
  FixedBlock* out = row.blocks;
  for (std::size_t input = 0; input < row.inputs; input += block_inputs, ++out) {
    const std::size_t left = row.inputs - input;
    const std::uint32_t lanes = left >= block_inputs ? 0xffffffffu : (1u << left) - 1u;
    const float* values = row.values + input;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes & 0xffffu), values);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes >> 16), values + (left > 16 ? 16 : 0));
    const __m512i bits = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                          _mm512_and_si512(_mm512_castps_si512(high), magnitude));
    const __m256i half_bits = _mm256_max_epi32(_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64(bits, 1));
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(half_bits), _mm256_extracti128_si256(half_bits, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
    largest = _mm_max_epi32(largest, most);
    const __m128i exponent = _mm_max_epi32(_mm_srli_epi32(_mm_add_epi32(most, _mm_set1_epi32(fixed_room)), 23),
                                           _mm_set1_epi32(fixed_least_exponent));
    const __m128i scale = _mm_slli_epi32(_mm_sub_epi32(exponent, _mm_set1_epi32(fixed_exponent)), 23);
    const __m128i inverse = _mm_slli_epi32(_mm_sub_epi32(_mm_set1_epi32(254 + fixed_exponent), exponent), 23);
    const __m512 factor = _mm512_broadcastss_ps(_mm_castsi128_ps(inverse));
    const __m512i low_code = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(low, factor)), digit_bias);
    const __m512i high_code = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(high, factor)), digit_bias);
    const __m512i low_digits = _mm512_shuffle_epi8(_mm512_xor_si512(low_code, digit_bias), by_digit);
    const __m512i high_digits = _mm512_shuffle_epi8(_mm512_xor_si512(high_code, digit_bias), by_digit);
    // Each store is 16 bytes too long; the next one overwrites them.
    auto* to = reinterpret_cast<std::byte*>(out);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(three_of_four, low_digits));
    _mm512_storeu_si512(to + 48, _mm512_permutexvar_epi32(three_of_four, high_digits));
    const __m512i sums =
        _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, low_digits), ones, high_digits);
    const __m256i half_sums = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    const __m128i digit_sums = _mm_add_epi32(_mm256_castsi256_si128(half_sums), _mm256_extracti128_si256(half_sums, 1));
    const __m128i terms = _mm_mullo_epi32(digit_sums, _mm_set1_epi32(-row.zero_factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 96), _mm_blend_epi32(terms, scale, 8));
  }
  return _mm_cvtsi128_si32(largest) < 0x7f800000;
}

/// Asks for the lines of the block 8 KiB further on, which may lie outside of the array. Into L2 and not L1: 97 against
/// 77 % of the DRAM rate with one row of 4-bit codes on Zen 4; L1 has too few misses in flight. One row of 8-bit codes
/// is so little work per line that loads run ahead by themselves, and asking costs a quarter of the rate.
template <int Bits, std::size_t Rows>
[[gnu::always_inline]] inline void prefetch_block([[maybe_unused]] const std::byte* block) noexcept {
  if constexpr (Bits < 8 || Rows > 1) {
    const std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(block) + 8192;
    _Pragma("GCC unroll 9") for (int line = 0; line <= Bits; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + static_cast<std::uintptr_t>(line) * 64), _MM_HINT_T1);
    }
  }
}

/// Adds the products of steps [Step, 8) of one block; sums[d] is that of digit d.
template <int Bits, unsigned Step, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_digits(__m512i (&sums)[row_digits][Rows], const std::byte* block,
                                                   const FixedBlock* x, std::size_t x_stride) noexcept {
  const __m512i weights = decode_step<Bits, Step>(block);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d) {
      std::int32_t four;
      __builtin_memcpy(&four, x[r * x_stride].digits[Step][d], sizeof four);
      sums[d][r] = _mm512_dpbusd_epi32(sums[d][r], weights, _mm512_set1_epi32(four));
    }
  }
  if constexpr (Step < 7) multiply_digits<Bits, Step + 1, Rows>(sums, block, x, x_stride);
}

/// totals += weight scale * one block times Rows rows.
template <int Bits, Zero Z, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_block(__m512 (&totals)[Rows], const std::byte* header,
                                                  const std::byte* block, const FixedBlock* x,
                                                  std::size_t x_stride) noexcept {
  prefetch_block<Bits, Rows>(block);
  __m512i zero = _mm512_setzero_si512();
  if constexpr (Z == Zero::affine) {
    zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(header + group_scales_bytes)));
  }
  __m512i sums[row_digits][Rows];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 3") for (std::size_t d = 0; d < row_digits; ++d) {
      const __m512i term = _mm512_set1_epi32(x[r * x_stride].zero_terms[d]);
      // zero < 2^8 and |term| <= 32 * 128 are one 16-bit product.
      sums[d][r] = Z == Zero::affine ? _mm512_madd_epi16(zero, term) : term;
    }
  }
  multiply_digits<Bits, 0, Rows>(sums, block, x, x_stride);
  const __m512 scale = group_scale(header);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const __m512 high = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums[2][r], 8), sums[1][r]));
    const __m512 sum = _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), _mm512_cvtepi32_ps(sums[0][r]));
    totals[r] = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(x[r * x_stride].scale)), sum, totals[r]);
  }
}

/// Rows [first, first + Rows) of the tile.
template <int Bits, Zero Z, std::size_t Rows>
inline void fixed_point_rows_tile(const FixedPointTile& tile, std::size_t first) noexcept {
  __m512 totals[Rows];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r] = _mm512_setzero_ps();
  const std::byte* header = tile.panel;
  const FixedBlock* x = tile.x + first * tile.blocks;
  std::size_t left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group, header += tile.group_bytes) {
    const std::size_t count = left < tile.blocks_per_group ? left : tile.blocks_per_group;
    const std::byte* block = header + tile.header_bytes;
    for (std::size_t i = 0; i < count; ++i, ++x, block += Bits * 64) {
      multiply_block<Bits, Z, Rows>(totals, header, block, x, tile.blocks);
    }
    left -= count;
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _mm512_storeu_ps(tile.out + (first + r) * panel_outputs, _mm512_mul_ps(totals[r], _mm512_set1_ps(tile.multiplier)));
  }
}

/// See FixedPointTile. Rows are taken in even pieces of at most 4: taller ones gain nothing.
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
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
