// SPDX-License-Identifier: Apache-2.0
#pragma once

// The softmax of attention over one block of keys after another, with a running maximum, for the instruction set at
// hand: compiled for the flags of a baseline file it would cost as much as the products beside it. exp is that of
// <cbq/core/exponential.hpp>; NaN stays NaN.
//
//   softmax, block after block (Milakov and Gimelshein, 2018), scores s, weights of values o:
//     m' = max(m, max_j s_j)   p_j = exp(c (s_j - m'))   l' = l exp(c (m - m')) + sum_j p_j   o' = o exp(c (m - m'))

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/core/cpu.hpp>
#include <cbq/core/exponential.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cbq {
inline namespace CBQ_ABI {

/// Scores of some queries and one block of keys, replaced by softmax weights relative to the running maximum.
struct SoftmaxBlock {
  float* scores = nullptr;  ///< rows x columns
  std::size_t stride = 0;   ///< floats from one row of scores to the next
  std::size_t rows = 0;
  std::size_t columns = 0;             ///< a multiple of 16
  const std::size_t* valid = nullptr;  ///< [rows]: columns from here on become 0, whatever they hold
  const std::size_t* first = nullptr;  ///< [rows]: so do columns before it; at most valid. Null: none
  float scale = 1.0f;                  ///< c > 0
  float* maxima = nullptr;             ///< [rows] m, first -infinity
  float* sums = nullptr;               ///< [rows] l, first 0
  float* values = nullptr;             ///< rows x value_columns, o
  std::size_t value_stride = 0;
  std::size_t value_columns = 0;  ///< a multiple of 16
};

#if defined(__x86_64__)
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// Lanes of columns j .. j + 15 that lie in [first, valid).
[[gnu::always_inline]] inline __mmask16 lanes_between(std::size_t first, std::size_t valid, std::size_t j) noexcept {
  const unsigned before = first_lanes(j < first ? first - j : 0);
  return static_cast<__mmask16>(first_lanes(j < valid ? valid - j : 0) & ~before);
}

inline void softmax_block(const SoftmaxBlock& block) noexcept {
  const __m512 scale = _mm512_set1_ps(block.scale);
  for (std::size_t r = 0; r < block.rows; ++r) {
    float* scores = block.scores + r * block.stride;
    const std::size_t valid = block.valid[r];
    const std::size_t first = block.first != nullptr ? block.first[r] : 0;
    __m512 best = _mm512_set1_ps(block.maxima[r]);
    for (std::size_t j = first / 16 * 16; j < valid; j += 16) {
      best = _mm512_mask_max_ps(best, lanes_between(first, valid, j), best, _mm512_loadu_ps(scores + j));
    }
    const float maximum = _mm512_reduce_max_ps(best);
    const __m512 shift = _mm512_set1_ps(maximum);
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t j = 0; j < block.columns; j += 16) {
      const __mmask16 lanes = lanes_between(first, valid, j);
      const __m512 difference = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + j), shift), scale);
      const __m512 weight = _mm512_maskz_mov_ps(lanes, exponential(difference));
      sum = _mm512_add_ps(sum, weight);
      _mm512_storeu_ps(scores + j, weight);
    }
    if (maximum != block.maxima[r]) {
      const __m512 old = _mm512_set1_ps(block.maxima[r]);
      const __m512 correction = exponential(_mm512_mul_ps(_mm512_sub_ps(old, shift), scale));
      block.sums[r] *= _mm512_cvtss_f32(correction);
      float* values = block.values + r * block.value_stride;
      for (std::size_t i = 0; i < block.value_columns; i += 16) {
        _mm512_storeu_ps(values + i, _mm512_mul_ps(_mm512_loadu_ps(values + i), correction));
      }
      block.maxima[r] = maximum;
    }
    block.sums[r] += _mm512_reduce_add_ps(sum);
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni

namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

[[gnu::always_inline]] inline float lane_sum(__m256 x) noexcept {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

[[gnu::always_inline]] inline float lane_maximum(__m256 x) noexcept {
  __m128 best = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  best = _mm_max_ps(best, _mm_movehl_ps(best, best));
  return _mm_cvtss_f32(_mm_max_ss(best, _mm_shuffle_ps(best, best, 1)));
}

/// Lanes of columns j .. j + 7 that lie in [first, valid).
[[gnu::always_inline]] inline __m256 lanes_between(std::size_t first, std::size_t valid, std::size_t j) noexcept {
  return _mm256_andnot_ps(first_lanes(j < first ? first - j : 0), first_lanes(j < valid ? valid - j : 0));
}

inline void softmax_block(const SoftmaxBlock& block) noexcept {
  const __m256 scale = _mm256_set1_ps(block.scale);
  for (std::size_t r = 0; r < block.rows; ++r) {
    float* scores = block.scores + r * block.stride;
    const std::size_t valid = block.valid[r];
    const std::size_t first = block.first != nullptr ? block.first[r] : 0;
    const __m256 old = _mm256_set1_ps(block.maxima[r]);
    __m256 best = old;
    for (std::size_t j = first / 8 * 8; j < valid; j += 8) {
      const __m256 score = _mm256_blendv_ps(old, _mm256_loadu_ps(scores + j), lanes_between(first, valid, j));
      best = _mm256_max_ps(best, score);
    }
    const float maximum = lane_maximum(best);
    const __m256 shift = _mm256_set1_ps(maximum);
    __m256 sum = _mm256_setzero_ps();
    for (std::size_t j = 0; j < block.columns; j += 8) {
      const __m256 lanes = lanes_between(first, valid, j);
      const __m256 difference = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(scores + j), shift), scale);
      const __m256 weight = _mm256_and_ps(lanes, exponential(difference));
      sum = _mm256_add_ps(sum, weight);
      _mm256_storeu_ps(scores + j, weight);
    }
    if (maximum != block.maxima[r]) {
      const __m256 correction = exponential(_mm256_mul_ps(_mm256_sub_ps(old, shift), scale));
      block.sums[r] *= _mm256_cvtss_f32(correction);
      float* values = block.values + r * block.value_stride;
      for (std::size_t i = 0; i < block.value_columns; i += 8) {
        _mm256_storeu_ps(values + i, _mm256_mul_ps(_mm256_loadu_ps(values + i), correction));
      }
      block.maxima[r] = maximum;
    }
    block.sums[r] += lane_sum(sum);
  }
}

CBQ_END_REGION
}  // namespace isa::avx2
#endif

namespace isa::portable {

/// exp(scale * (x[j] - shift)) for j < valid, 0 for the rest up to columns; returns the sum.
inline float weigh_row(float* x, std::size_t valid, std::size_t columns, float shift, float scale) noexcept {
  using Floats = xsimd::batch<float>;
  const Floats shifts(shift), scales(scale);
  Floats sums(0.0f);
  std::size_t j = 0;
  for (; j + Floats::size <= valid; j += Floats::size) {
    const Floats weight = xsimd::exp((Floats::load_unaligned(x + j) - shifts) * scales);
    sums += weight;
    weight.store_unaligned(x + j);
  }
  float sum = xsimd::reduce_add(sums);
  for (; j < valid; ++j) {
    x[j] = __builtin_expf((x[j] - shift) * scale);
    sum += x[j];
  }
  for (; j < columns; ++j) x[j] = 0.0f;
  return sum;
}

inline void softmax_block(const SoftmaxBlock& block) noexcept {
  for (std::size_t r = 0; r < block.rows; ++r) {
    float* scores = block.scores + r * block.stride;
    const std::size_t first = block.first != nullptr ? block.first[r] : 0;
    float maximum = block.maxima[r];
    for (std::size_t j = first; j < block.valid[r]; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;
    if (maximum != block.maxima[r]) {
      const float correction = __builtin_expf((block.maxima[r] - maximum) * block.scale);
      float* values = block.values + r * block.value_stride;
      for (std::size_t i = 0; i < block.value_columns; ++i) values[i] *= correction;
      block.sums[r] *= correction;
      block.maxima[r] = maximum;
    }
    for (std::size_t j = 0; j < first; ++j) scores[j] = 0.0f;
    block.sums[r] += weigh_row(scores + first, block.valid[r] - first, block.columns - first, maximum, block.scale);
  }
}

}  // namespace isa::portable

/// See SoftmaxBlock; `isa` is already capped to what the machine has.
inline void softmax_block(const SoftmaxBlock& block, Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::softmax_block(block);
    case Isa::avx2:
      return isa::avx2::softmax_block(block);
#endif
    default:
      return isa::portable::softmax_block(block);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
