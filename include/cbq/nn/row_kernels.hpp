// SPDX-License-Identifier: Apache-2.0
#pragma once

// The two row loops of a transformer that are made of exponentials, for the instruction set at hand: the softmax of
// attention over one block of keys, and the gate of a SwiGLU. Compiled for the flags of a baseline file they would cost
// as much as the integer matmul beside them; everything else in a block is left to xsimd. exp is 2^n times a Taylor
// polynomial of degree 7 on |r| <= ln(2) / 2, with relative error below 2e-7; arguments are cut to [-87, 88]; NaN stays
// NaN.
//
//   softmax, block after block (Milakov and Gimelshein, 2018), scores s, weights of values o:
//     m' = max(m, max_j s_j)   p_j = exp(c (s_j - m'))   l' = l exp(c (m - m')) + sum_j p_j   o' = o exp(c (m - m'))

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/core/cpu.hpp>

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
  float scale = 1.0f;                  ///< c > 0
  float* maxima = nullptr;             ///< [rows] m, first -infinity
  float* sums = nullptr;               ///< [rows] l, first 0
  float* values = nullptr;             ///< rows x value_columns, o
  std::size_t value_stride = 0;
  std::size_t value_columns = 0;  ///< a multiple of 16
};

/// out[i] = up[i] * gate[i] / (1 + exp(-gate[i])); out may be either input.
struct SiluRow {
  const float* gate = nullptr;
  const float* up = nullptr;
  float* out = nullptr;
  std::size_t size = 0;
};

#if defined(__x86_64__)
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

[[gnu::always_inline]] inline __m512 exponential(__m512 x) noexcept {
  // The constants come first: min and max return their second operand when it is NaN.
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)));
  const __m512 whole = _mm512_cvtepi32_ps(n);
  __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0x1.62e400p-1f), x);
  r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)));
}

[[gnu::always_inline]] inline __mmask16 first_lanes(std::size_t count) noexcept {
  return static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u);
}

inline void softmax_block(const SoftmaxBlock& block) noexcept {
  const __m512 scale = _mm512_set1_ps(block.scale);
  for (std::size_t r = 0; r < block.rows; ++r) {
    float* scores = block.scores + r * block.stride;
    const std::size_t valid = block.valid[r];
    __m512 best = _mm512_set1_ps(block.maxima[r]);
    for (std::size_t j = 0; j < valid; j += 16) {
      best = _mm512_mask_max_ps(best, first_lanes(valid - j), best, _mm512_loadu_ps(scores + j));
    }
    const float maximum = _mm512_reduce_max_ps(best);
    const __m512 shift = _mm512_set1_ps(maximum);
    __m512 sum = _mm512_setzero_ps();
    for (std::size_t j = 0; j < block.columns; j += 16) {
      const __mmask16 lanes = first_lanes(j < valid ? valid - j : 0);
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

inline void silu_multiply(const SiluRow& row) noexcept {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (std::size_t i = 0; i < row.size; i += 16) {
    const __mmask16 lanes = first_lanes(row.size - i);
    const __m512 gate = _mm512_maskz_loadu_ps(lanes, row.gate + i);
    const __m512 up = _mm512_maskz_loadu_ps(lanes, row.up + i);
    const __m512 divisor = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
    _mm512_mask_storeu_ps(row.out + i, lanes, _mm512_mul_ps(up, _mm512_div_ps(gate, divisor)));
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni

namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

[[gnu::always_inline]] inline __m256 exponential(__m256 x) noexcept {
  x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(_mm256_set1_ps(-87.0f), x));
  const __m256i n = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)));
  const __m256 whole = _mm256_cvtepi32_ps(n);
  __m256 r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0x1.62e400p-1f), x);
  r = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040.0f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)));
}

/// All bits set in the first `count` lanes.
[[gnu::always_inline]] inline __m256 first_lanes(std::size_t count) noexcept {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count < 8 ? static_cast<int>(count) : 8), index));
}

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

inline void softmax_block(const SoftmaxBlock& block) noexcept {
  const __m256 scale = _mm256_set1_ps(block.scale);
  for (std::size_t r = 0; r < block.rows; ++r) {
    float* scores = block.scores + r * block.stride;
    const std::size_t valid = block.valid[r];
    const __m256 old = _mm256_set1_ps(block.maxima[r]);
    __m256 best = old;
    for (std::size_t j = 0; j < valid; j += 8) {
      const __m256 score = _mm256_blendv_ps(old, _mm256_loadu_ps(scores + j), first_lanes(valid - j));
      best = _mm256_max_ps(best, score);
    }
    const float maximum = lane_maximum(best);
    const __m256 shift = _mm256_set1_ps(maximum);
    __m256 sum = _mm256_setzero_ps();
    for (std::size_t j = 0; j < block.columns; j += 8) {
      const __m256 lanes = first_lanes(j < valid ? valid - j : 0);
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

inline void silu_multiply(const SiluRow& row) noexcept {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (std::size_t i = 0; i < row.size; i += 8) {
    const __m256i lanes = _mm256_castps_si256(first_lanes(row.size - i));
    const __m256 gate = _mm256_maskload_ps(row.gate + i, lanes);
    const __m256 up = _mm256_maskload_ps(row.up + i, lanes);
    const __m256 divisor = _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), gate)));
    _mm256_maskstore_ps(row.out + i, lanes, _mm256_mul_ps(up, _mm256_div_ps(gate, divisor)));
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
    float maximum = block.maxima[r];
    for (std::size_t j = 0; j < block.valid[r]; ++j) maximum = scores[j] > maximum ? scores[j] : maximum;
    if (maximum != block.maxima[r]) {
      const float correction = __builtin_expf((block.maxima[r] - maximum) * block.scale);
      float* values = block.values + r * block.value_stride;
      for (std::size_t i = 0; i < block.value_columns; ++i) values[i] *= correction;
      block.sums[r] *= correction;
      block.maxima[r] = maximum;
    }
    block.sums[r] += weigh_row(scores, block.valid[r], block.columns, maximum, block.scale);
  }
}

inline void silu_multiply(const SiluRow& row) noexcept {
  using Floats = xsimd::batch<float>;
  const Floats one(1.0f), lowest(-88.0f);  // exp(88) is finite
  std::size_t i = 0;
  for (; i + Floats::size <= row.size; i += Floats::size) {
    const Floats gate = Floats::load_unaligned(row.gate + i);
    const Floats bounded = xsimd::select(gate < lowest, lowest, gate);
    (Floats::load_unaligned(row.up + i) * (gate / (one + xsimd::exp(-bounded)))).store_unaligned(row.out + i);
  }
  for (; i < row.size; ++i) {
    const float gate = row.gate[i];
    row.out[i] = row.up[i] * (gate / (1.0f + __builtin_expf(gate < -88.0f ? 88.0f : -gate)));
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

/// See SiluRow; `isa` is already capped to what the machine has.
inline void silu_multiply(const SiluRow& row, Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::silu_multiply(row);
    case Isa::avx2:
      return isa::avx2::silu_multiply(row);
#endif
    default:
      return isa::portable::silu_multiply(row);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
