// SPDX-License-Identifier: Apache-2.0
#pragma once

// The 4-bit multiplier with AVX2: 16 lanes per register, so that pmullw makes 32 products; keeping the fields apart
// costs one shift and two additions. Register tile: 4 rows x 16 lanes. Codes of activations are widened to both halves
// of 32 bits first, because a broadcast of 32 bits from memory costs no vector operation and one of 16 does.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/nibble_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// Writes `count` codes as lanes, twice each, and returns their sum.
inline std::int32_t widen_nibbles(const std::uint8_t* codes, std::size_t count, std::uint32_t* lanes) noexcept {
  __m256i sums = _mm256_setzero_si256();
  std::size_t k = 0;
  for (; k + 8 <= count; k += 8) {
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + k)));
    sums = _mm256_add_epi32(sums, code);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes + k), _mm256_or_si256(code, _mm256_slli_epi32(code, 16)));
  }
  std::int32_t parts[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sums);
  std::int32_t sum = 0;
  for (const std::int32_t part : parts) sum += part;
  for (; k < count; ++k) {
    sum += codes[k];
    lanes[k] = codes[k] * 0x00010001u;
  }
  return sum;
}

[[gnu::always_inline]] inline void add_widened(std::int32_t* to, __m256i words) noexcept {
  auto* const low = reinterpret_cast<__m256i*>(to);
  auto* const high = reinterpret_cast<__m256i*>(to + 8);
  const __m256i first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(words));
  const __m256i second = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(words, 1));
  _mm256_storeu_si256(low, _mm256_add_epi32(_mm256_loadu_si256(low), first));
  _mm256_storeu_si256(high, _mm256_add_epi32(_mm256_loadu_si256(high), second));
}

/// At most 256 inputs of 16 pairs times some rows; `sums` are those of these pairs.
template <std::size_t Rows>
inline void multiply_nibbles(const std::byte* pairs, std::size_t count, const std::uint32_t (*lanes)[lane_depth],
                             std::int32_t* sums) noexcept {
  __m256i all[Rows];
  __m256i upper[Rows];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) all[r] = upper[r] = _mm256_setzero_si256();
  for (std::size_t k = 0; k < count; ++k, pairs += nibble_pairs) {
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs)));
    const __m256i weights =
        _mm256_and_si256(_mm256_or_si256(bytes, _mm256_slli_epi16(bytes, 4)), _mm256_set1_epi16(0x0f0f));
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      const __m256i activation = _mm256_set1_epi32(static_cast<std::int32_t>(lanes[r][k]));
      const __m256i product = _mm256_mullo_epi16(weights, activation);
      all[r] = _mm256_add_epi16(all[r], product);
      upper[r] = _mm256_add_epi16(upper[r], _mm256_srli_epi16(product, 8));
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    add_widened(sums + r * nibble_outputs, upper[r]);
    add_widened(sums + r * nibble_outputs + nibble_pairs, _mm256_sub_epi16(all[r], _mm256_slli_epi16(upper[r], 8)));
  }
}

/// See NibbleTile.
inline void nibble_tile(const NibbleTile& tile) noexcept {
  std::uint32_t lanes[4][lane_depth];
  for (std::size_t first = 0; first < tile.inputs; first += lane_depth) {
    const std::size_t count = tile.inputs - first < lane_depth ? tile.inputs - first : lane_depth;
    const std::byte* pairs = tile.pairs + first * nibble_pairs;
    for (std::size_t row = 0; row < tile.rows;) {
      const std::size_t rows = tile.rows - row >= 4 ? 4 : tile.rows - row >= 2 ? 2 : 1;
      for (std::size_t r = 0; r < rows; ++r) {
        tile.code_sums[row + r] += widen_nibbles(tile.codes + (row + r) * tile.stride + first, count, lanes[r]);
      }
      for (std::size_t pair = 0; pair < nibble_pairs; pair += 16) {
        std::int32_t* sums = tile.sums + row * nibble_outputs + pair;
        if (rows == 4) {
          multiply_nibbles<4>(pairs + pair, count, lanes, sums);
        } else if (rows == 2) {
          multiply_nibbles<2>(pairs + pair, count, lanes, sums);
        } else {
          multiply_nibbles<1>(pairs + pair, count, lanes, sums);
        }
      }
      row += rows;
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
