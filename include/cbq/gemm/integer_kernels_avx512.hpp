// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 F, BW, DQ, VL, VNNI. Unsigned codes are the first operand of vpdpbusd and signed activations the second, so
// that neither signs nor tables are needed; the zero point is the initial value of the accumulator. Register tile: 5
// rows x 2 panels = 10 integer and 10 float accumulators, 2 decoded vectors, 1 broadcast. One broadcast of 4
// activations feeds two products, because a 512-bit load is as scarce as a product. Group epilogue: 1 conversion and 1
// FMA per row and panel, and 1 product where activations have a scale per group.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// Codes of step `Step` of one block, one byte each: 16 outputs x 4 inputs.
template <int Bits, unsigned Step>
[[gnu::always_inline]] inline __m512i decode_step(const std::byte* block) noexcept {
  if constexpr (Bits == 8) {
    return _mm512_loadu_si512(block + Step * 64);
  } else if constexpr (Bits == 4) {
    const __m512i line = _mm512_loadu_si512(block + Step / 2 * 64);
    const __m512i mask = _mm512_set1_epi8(15);
    return _mm512_and_si512(Step % 2 == 0 ? line : _mm512_srli_epi16(line, 4), mask);
  } else {
    const __m512i line = _mm512_loadu_si512(block + Step / 4 * 64);
    const __m512i low =
        _mm512_and_si512(Step % 4 == 0 ? line : _mm512_srli_epi16(line, 2 * (Step % 4)), _mm512_set1_epi8(3));
    if constexpr (Bits == 2) {
      return low;
    } else {
      const __m512i high_line = _mm512_loadu_si512(block + 2 * 64);
      const __m512i high = Step < 2 ? _mm512_slli_epi16(high_line, Step < 2 ? 2 - Step : 0)
                                    : _mm512_srli_epi16(high_line, Step < 2 ? 0 : Step - 2);
      // low | (high & 4) in one ternary operation
      return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(4), 0xf8);
    }
  }
}

/// Adds the products of one step; Step counts down the template so that every decode has its shift as a constant.
template <int Bits, unsigned Step, std::size_t Rows, std::size_t Panels, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_steps(__m512i (&sums)[Chains][Rows][Panels], const std::byte* blocks,
                                                  std::size_t panel_bytes, const std::int8_t* codes) noexcept {
  __m512i weights[Panels];
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) weights[p] =
      decode_step<Bits, Step>(blocks + p * panel_bytes);
  _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, codes + r * block_inputs + Step * 4, sizeof four);
    const __m512i activations = _mm512_set1_epi32(four);
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      __m512i& sum = sums[Step % Chains][r][p];
      sum = _mm512_dpbusd_epi32(sum, weights[p], activations);
    }
  }
  if constexpr (Step < 7) multiply_steps<Bits, Step + 1, Rows, Panels, Chains>(sums, blocks, panel_bytes, codes);
}

/// Adds the sums of a group, which starts at `panel`, to the totals. `row_scales`: of the activations of this group, or
/// null.
template <std::size_t Rows, std::size_t Panels>
[[gnu::always_inline]] inline void add_group(__m512 (&totals)[Rows][Panels], const __m512i (&sums)[Rows][Panels],
                                             const std::byte* panel, std::size_t panel_bytes,
                                             const float* row_scales) noexcept {
  __m512 scales[Panels];
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) scales[p] =
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + p * panel_bytes)));
  if (row_scales == nullptr) [[likely]] {
    _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
        _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) totals[r][p] =
            _mm512_fmadd_ps(scales[p], _mm512_cvtepi32_ps(sums[r][p]), totals[r][p]);
  } else {
    _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
        _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) totals[r][p] = _mm512_fmadd_ps(
            _mm512_mul_ps(scales[p], _mm512_set1_ps(row_scales[r])), _mm512_cvtepi32_ps(sums[r][p]), totals[r][p]);
  }
}

/// Rows [first_row, first_row + Rows) of the tile. Chains: independent accumulators per result, where Rows x Panels
/// alone are too few to hide the latency of vpdpbusd.
template <int Bits, Zero Z, std::size_t Rows, std::size_t Panels>
inline void multiply_rows(const IntegerTile& tile, const std::byte* panel, std::size_t first_row, float* out) noexcept {
  constexpr std::size_t Chains = Rows * Panels == 1 ? 4 : Rows * Panels == 2 ? 2 : 1;
  __m512 totals[Rows][Panels];
  _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) totals[r][p] = _mm512_setzero_ps();
  const std::int8_t* codes = tile.codes + first_row * block_inputs;
  const std::int32_t* zero_terms = tile.zero_terms + first_row;
  // A step of 0 where there are none: a condition here costs 4 rows 2 % of their speed.
  const bool grouped = tile.group_scales != nullptr;
  const float* group_scales = tile.group_scales + (grouped ? first_row : 0);
  const std::size_t group_scales_step = grouped ? tile.panel_rows : 0;
  const std::size_t block_stride = block_inputs * tile.panel_rows;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    __m512i sums[Chains][Rows][Panels];
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      __m512i zero = _mm512_setzero_si512();
      if constexpr (Z == Zero::affine) {
        const std::byte* zeros = panel + p * tile.panel_bytes + group_scales_bytes;
        zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
      }
      _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r) {
        const __m512i term = _mm512_set1_epi32(zero_terms[r]);
        sums[0][r][p] = Z == Zero::affine ? _mm512_mullo_epi32(zero, term) : term;
        _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c) sums[c][r][p] = _mm512_setzero_si512();
      }
    }
    const std::byte* blocks = panel + tile.header_bytes;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    for (std::size_t block = 0; block < count; ++block) {
      multiply_steps<Bits, 0, Rows, Panels, Chains>(sums, blocks, tile.panel_bytes, codes);
      blocks += Bits * 64;
      codes += block_stride;
    }
    _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
        _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p)
            _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c) sums[0][r][p] =
                _mm512_add_epi32(sums[0][r][p], sums[c][r][p]);
    add_group(totals, sums[0], panel, tile.panel_bytes, group_scales);
    group_scales += group_scales_step;
    zero_terms += tile.panel_rows;
    panel += tile.group_bytes;
  }
  _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r) {
    const __m512 scale = _mm512_set1_ps(tile.row_scales[first_row + r] * tile.weight_multiplier);
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      _mm512_storeu_ps(out + (first_row + r) * tile.out_stride + p * panel_outputs, _mm512_mul_ps(totals[r][p], scale));
    }
  }
}

/// All rows of the tile in even pieces of at most 5.
template <int Bits, Zero Z, std::size_t Panels>
inline void multiply_panels(const IntegerTile& tile, const std::byte* panel, float* out) noexcept {
  const std::size_t pieces = (tile.panel_rows + 4) / 5;
  std::size_t row = 0;
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const std::size_t rows = (tile.panel_rows - row + (pieces - piece) - 1) / (pieces - piece);
    switch (rows) {
      case 1:
        multiply_rows<Bits, Z, 1, Panels>(tile, panel, row, out);
        break;
      case 2:
        multiply_rows<Bits, Z, 2, Panels>(tile, panel, row, out);
        break;
      case 3:
        multiply_rows<Bits, Z, 3, Panels>(tile, panel, row, out);
        break;
      case 4:
        multiply_rows<Bits, Z, 4, Panels>(tile, panel, row, out);
        break;
      default:
        multiply_rows<Bits, Z, 5, Panels>(tile, panel, row, out);
        break;
    }
    row += rows;
  }
}

/// See IntegerTile. A single row reads its panels one after another: one sequential stream from memory.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  if (tile.panels == 2 && tile.panel_rows > 1) {
    multiply_panels<Bits, Z, 2>(tile, tile.panel, tile.out);
  } else {
    for (std::size_t p = 0; p < tile.panels; ++p) {
      multiply_panels<Bits, Z, 1>(tile, tile.panel + p * tile.panel_bytes, tile.out + p * panel_outputs);
    }
  }
}

/// See isa::scalar::row_range.
inline RowRange row_range(const float* values, std::size_t count) noexcept {
  __m512 lowest = _mm512_setzero_ps();
  __m512 highest = _mm512_setzero_ps();
  __m512i largest_bits = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (std::size_t i = 0; i < count; i += 16) {
    const __mmask16 lanes =
        count - i >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (count - i)) - 1u);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, values + i);
    lowest = _mm512_min_ps(value, lowest);
    highest = _mm512_max_ps(value, highest);
    largest_bits = _mm512_max_epi32(largest_bits, _mm512_and_si512(_mm512_castps_si512(value), magnitude));
  }
  RowRange range;
  range.lowest = _mm512_reduce_min_ps(lowest);
  range.highest = _mm512_reduce_max_ps(highest);
  range.finite = _mm512_reduce_max_epi32(largest_bits) < 0x7f800000;
  return range;
}

/// See isa::scalar::quantize_row.
inline void quantize_row(const ActivationRow& row) noexcept {
  const __m512 inverse = _mm512_set1_ps(row.inverse_scale);
  const __m512 lowest = _mm512_set1_ps(row.lowest);
  const __m512 highest = _mm512_set1_ps(row.highest);
  std::int8_t* out = row.codes;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    __m512i sums = _mm512_setzero_si512();
    for (std::size_t begin = 0; begin < length; begin += 16) {
      const std::size_t left = length - begin;
      const __mmask16 lanes = left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1u);
      const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, row.values + first + begin), inverse);
      const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(highest, _mm512_max_ps(lowest, scaled)));
      sums = _mm512_add_epi32(sums, code);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + begin % block_inputs), _mm512_cvtepi32_epi8(code));
      if (begin % block_inputs == 16) out += block_inputs * row.panel_rows;
    }
    const std::size_t in_last_block = length % block_inputs;
    if (in_last_block != 0) {
      if (in_last_block <= 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_setzero_si128());
      if (in_last_block <= 16) out += block_inputs * row.panel_rows;
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * _mm512_reduce_add_epi32(sums);
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
