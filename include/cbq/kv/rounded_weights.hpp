// SPDX-License-Identifier: Apache-2.0
#pragma once

// Softmax weights as integers of 16 bits, 2^15 standing for 1, before they multiply values: rounded to the nearest, or
// to powers of two (<cbq/quant/log2.hpp>), whose products with values are shifts by 15 - q. In front of 8-bit dot
// products an integer is cut into two planes of 8 bits; of a power of two, codes 0 .. 7 live in one and 8 .. 15 in the
// other. 3 operations per weight, in intrinsics: compilers make vectors of such loops by luck.
//
//   w = floor(2^15 p + 1/2)   or   w = 2^(15 - q), 0 where q > 15;  q = round(-log2 p)        w = 256 high + low

#include <cstddef>
#include <cstdint>

#include <cbq/core/cpu.hpp>
#include <cbq/kv/attention_scores.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/quant/log2.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cbq {

/// One row of weights that are to be rounded in place.
struct WeightRounding {
  float* weights = nullptr;  ///< [columns], of sum `sum`; becomes 0 .. 2^15
  std::size_t columns = 0;   ///< a multiple of 16
  float sum = 1.0f;          ///< of all positions
  SoftmaxWeights kind = SoftmaxWeights::exact;
};

/// Rounded weights of one row and page of 64 positions as two planes of bytes.
struct WeightPlanes {
  const float* weights = nullptr;
  std::uint8_t* high = nullptr;
  std::uint8_t* low = nullptr;
  std::int32_t high_sum = 0;  ///< result
  std::int32_t low_sum = 0;   ///< result
};

inline namespace CBQ_ABI {
namespace attention {

/// What stands for a weight of 1.
inline constexpr float whole_weight = 0x1p15f;

}  // namespace attention

#if defined(__x86_64__)
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// See WeightRounding.
inline void round_weights(const WeightRounding& row) noexcept {
  const __m512 factor = _mm512_set1_ps(attention::whole_weight / row.sum);
  const __m512 half = _mm512_set1_ps(0.5f);
  const __m512i carry = _mm512_set1_epi32(static_cast<int>(log2_carry));
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  const __m512i one = _mm512_castps_si512(_mm512_set1_ps(1.0f));
  for (std::size_t i = 0; i < row.columns; i += 16) {
    const __m512 weight = _mm512_mul_ps(_mm512_loadu_ps(row.weights + i), factor);
    __m512 rounded;
    if (row.kind != SoftmaxWeights::exact) {
      const __m512i power = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(weight), carry), exponent);
      rounded = _mm512_castsi512_ps(_mm512_maskz_mov_epi32(_mm512_cmpge_epi32_mask(power, one), power));
    } else {
      rounded = _mm512_cvtepi32_ps(_mm512_cvttps_epi32(_mm512_add_ps(weight, half)));
    }
    _mm512_storeu_ps(row.weights + i, rounded);
  }
}

/// See WeightPlanes.
inline void split_weights(WeightPlanes& row) noexcept {
  __m512i highs = _mm512_setzero_si512();
  __m512i lows = _mm512_setzero_si512();
  for (std::size_t i = 0; i < kv_page_positions; i += 16) {
    const __m512i whole = _mm512_cvttps_epi32(_mm512_loadu_ps(row.weights + i));
    const __m512i high = _mm512_srli_epi32(whole, 8);
    highs = _mm512_add_epi32(highs, high);
    lows = _mm512_add_epi32(lows, _mm512_and_si512(whole, _mm512_set1_epi32(255)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row.high + i), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row.low + i), _mm512_cvtepi32_epi8(whole));
  }
  row.high_sum = _mm512_reduce_add_epi32(highs);
  row.low_sum = _mm512_reduce_add_epi32(lows);
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni

namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// See WeightRounding.
inline void round_weights(const WeightRounding& row) noexcept {
  const __m256 factor = _mm256_set1_ps(attention::whole_weight / row.sum);
  const __m256 half = _mm256_set1_ps(0.5f);
  const __m256i carry = _mm256_set1_epi32(static_cast<int>(log2_carry));
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  const __m256i below_one = _mm256_set1_epi32(0x3f7fffff);
  for (std::size_t i = 0; i < row.columns; i += 8) {
    const __m256 weight = _mm256_mul_ps(_mm256_loadu_ps(row.weights + i), factor);
    __m256 rounded;
    if (row.kind != SoftmaxWeights::exact) {
      const __m256i power = _mm256_and_si256(_mm256_add_epi32(_mm256_castps_si256(weight), carry), exponent);
      rounded = _mm256_castsi256_ps(_mm256_and_si256(power, _mm256_cmpgt_epi32(power, below_one)));
    } else {
      rounded = _mm256_cvtepi32_ps(_mm256_cvttps_epi32(_mm256_add_ps(weight, half)));
    }
    _mm256_storeu_ps(row.weights + i, rounded);
  }
}

/// Numbers of 8 bits in 32 of them, as bytes.
[[gnu::always_inline]] inline __m256i pack_bytes(const __m256i (&x)[4]) noexcept {
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

[[gnu::always_inline]] inline std::int32_t lane_sum(__m256i x) noexcept {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

/// See WeightPlanes.
inline void split_weights(WeightPlanes& row) noexcept {
  __m256i highs = _mm256_setzero_si256();
  __m256i lows = _mm256_setzero_si256();
  for (std::size_t i = 0; i < kv_page_positions; i += 32) {
    __m256i high[4], low[4];
    for (std::size_t v = 0; v < 4; ++v) {
      const __m256i whole = _mm256_cvttps_epi32(_mm256_loadu_ps(row.weights + i + 8 * v));
      high[v] = _mm256_srli_epi32(whole, 8);
      low[v] = _mm256_and_si256(whole, _mm256_set1_epi32(255));
      highs = _mm256_add_epi32(highs, high[v]);
      lows = _mm256_add_epi32(lows, low[v]);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row.high + i), pack_bytes(high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row.low + i), pack_bytes(low));
  }
  row.high_sum = lane_sum(highs);
  row.low_sum = lane_sum(lows);
}

CBQ_END_REGION
}  // namespace isa::avx2
#endif

namespace isa::scalar {

/// See WeightRounding.
inline void round_weights(const WeightRounding& row) noexcept {
  const float factor = attention::whole_weight / row.sum;
  for (std::size_t i = 0; i < row.columns; ++i) {
    const float weight = row.weights[i] * factor;
    if (row.kind != SoftmaxWeights::exact) {
      const float power = nearest_power_of_two(weight);
      row.weights[i] = power < 1.0f ? 0.0f : power;
    } else {
      row.weights[i] = static_cast<float>(static_cast<std::int32_t>(weight + 0.5f));
    }
  }
}

/// See WeightPlanes.
inline void split_weights(WeightPlanes& row) noexcept {
  row.high_sum = row.low_sum = 0;
  for (std::size_t i = 0; i < kv_page_positions; ++i) {
    const auto whole = static_cast<std::int32_t>(row.weights[i]);
    row.high[i] = static_cast<std::uint8_t>(whole >> 8);
    row.low[i] = static_cast<std::uint8_t>(whole & 255);
    row.high_sum += row.high[i];
    row.low_sum += row.low[i];
  }
}

}  // namespace isa::scalar

namespace attention {

/// Rounds a row of weights; `isa` is already capped to what the machine has.
inline void round_weights(const WeightRounding& row, Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::round_weights(row);
    case Isa::avx2:
      return isa::avx2::round_weights(row);
#endif
    default:
      return isa::scalar::round_weights(row);
  }
}

/// Cuts rounded weights into planes.
inline void split_weights(WeightPlanes& row, Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::split_weights(row);
    case Isa::avx2:
      return isa::avx2::split_weights(row);
#endif
    default:
      return isa::scalar::split_weights(row);
  }
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
