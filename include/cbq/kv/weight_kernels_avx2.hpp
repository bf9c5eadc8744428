// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX2, FMA, F16C: 8-bit weights of one row and page, see WeightRow of kv_tile.hpp.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/kv/kernels_scalar.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/softmax.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// 8 halves as floats.
[[gnu::always_inline]] inline __m256 load_halves(const std::byte* from) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

/// The codes round(products * 255 / largest) of one row, their sum and step.
struct WeightCodes {
  std::int32_t sum = 0;
  float step = 0.0f;
};
[[gnu::always_inline]] inline WeightCodes quantize_weights(const float* products, float largest,
                                                           std::uint8_t* codes) noexcept {
  const bool none = !(largest >= smallest_kv_weight);
  const __m256 inverse = _mm256_set1_ps(none ? 0.0f : 255.0f / largest);
  __m256i sum = _mm256_setzero_si256();
  for (std::size_t i = 0; i < kv_page_positions; i += 32) {
    __m256i rounded[4];
    // min returns its second operand where the first is not a number.
    _Pragma("GCC unroll 4") for (std::size_t k = 0; k < 4; ++k) rounded[k] = _mm256_cvtps_epi32(
        _mm256_min_ps(_mm256_mul_ps(_mm256_loadu_ps(products + i + 8 * k), inverse), _mm256_set1_ps(255.0f)));
    // Packing works within 128-bit lanes: the permutation puts the quadruples back in order.
    const __m256i packed =
        _mm256_packus_epi16(_mm256_packus_epi32(rounded[0], rounded[1]), _mm256_packus_epi32(rounded[2], rounded[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), ordered);
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(packed, _mm256_setzero_si256()));
  }
  const __m128i half_sum = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  const __m128i whole = _mm_add_epi64(half_sum, _mm_unpackhi_epi64(half_sum, half_sum));
  return {_mm_cvtsi128_si32(whole), none ? 0.0f : largest / 255.0f};
}

/// See WeightRow.
inline void weight_row(WeightRow& row) noexcept {
  alignas(32) float products[kv_page_positions];
  __m256 largest = _mm256_setzero_ps();
  __m256 offset_sum = _mm256_setzero_ps();
  for (std::size_t i = 0; i < kv_page_positions; i += 8) {
    const __m256 softmax = _mm256_loadu_ps(row.softmax + i);
    const std::byte* scales = row.scales + 2 * i;
    const __m256 product = _mm256_mul_ps(softmax, load_halves(scales));
    _mm256_store_ps(products + i, product);
    largest = _mm256_max_ps(product, largest);
    offset_sum = _mm256_fmadd_ps(softmax, load_halves(scales + 2 * kv_page_positions), offset_sum);
    offset_sum = _mm256_fmadd_ps(_mm256_set1_ps(row.middle), product, offset_sum);
  }
  const WeightCodes codes = quantize_weights(products, lane_maximum(largest), row.codes);
  row.code_sum = codes.sum;
  row.step = codes.step;
  row.offset_sum = lane_sum(offset_sum) - row.middle * codes.step * static_cast<float>(codes.sum);
}

CBQ_END_REGION
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
