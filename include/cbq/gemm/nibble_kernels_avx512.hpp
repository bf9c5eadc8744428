// SPDX-License-Identifier: Apache-2.0
#pragma once

// The 4-bit multiplier with AVX-512 BW: a panel's 32 lanes are one register, and one product makes 64. As with AVX2
// otherwise; register tile: 8 rows x 32 lanes.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/nibble_kernels_avx2.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

[[gnu::always_inline]] inline void add_widened(std::int32_t* to, __m512i words) noexcept {
  const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words));
  const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1));
  _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), first));
  _mm512_storeu_si512(to + 16, _mm512_add_epi32(_mm512_loadu_si512(to + 16), second));
}

/// At most 256 inputs of one panel times some rows.
template <std::size_t Rows>
inline void multiply_nibbles(const std::byte* pairs, std::size_t count, const std::uint32_t (*lanes)[lane_depth],
                             std::int32_t* sums) noexcept {
  __m512i all[Rows];
  __m512i upper[Rows];
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) all[r] = upper[r] = _mm512_setzero_si512();
  for (std::size_t k = 0; k < count; ++k, pairs += nibble_pairs) {
    const __m512i bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)));
    const __m512i weights =
        _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi16(bytes, 4)), _mm512_set1_epi16(0x0f0f));
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const __m512i activation = _mm512_set1_epi32(static_cast<std::int32_t>(lanes[r][k]));
      const __m512i product = _mm512_mullo_epi16(weights, activation);
      all[r] = _mm512_add_epi16(all[r], product);
      upper[r] = _mm512_add_epi16(upper[r], _mm512_srli_epi16(product, 8));
    }
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    add_widened(sums + r * nibble_outputs, upper[r]);
    add_widened(sums + r * nibble_outputs + nibble_pairs, _mm512_sub_epi16(all[r], _mm512_slli_epi16(upper[r], 8)));
  }
}

/// See NibbleTile.
inline void nibble_tile(const NibbleTile& tile) noexcept {
  std::uint32_t lanes[8][lane_depth];
  for (std::size_t first = 0; first < tile.inputs; first += lane_depth) {
    const std::size_t count = tile.inputs - first < lane_depth ? tile.inputs - first : lane_depth;
    const std::byte* pairs = tile.pairs + first * nibble_pairs;
    for (std::size_t row = 0; row < tile.rows;) {
      const std::size_t left = tile.rows - row;
      const std::size_t rows = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (std::size_t r = 0; r < rows; ++r) {
        tile.code_sums[row + r] +=
            isa::avx2::widen_nibbles(tile.codes + (row + r) * tile.stride + first, count, lanes[r]);
      }
      std::int32_t* sums = tile.sums + row * nibble_outputs;
      switch (rows) {
        case 8:
          multiply_nibbles<8>(pairs, count, lanes, sums);
          break;
        case 4:
          multiply_nibbles<4>(pairs, count, lanes, sums);
          break;
        case 2:
          multiply_nibbles<2>(pairs, count, lanes, sums);
          break;
        default:
          multiply_nibbles<1>(pairs, count, lanes, sums);
          break;
      }
      row += rows;
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
