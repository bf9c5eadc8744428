// SPDX-License-Identifier: Apache-2.0
#pragma once

// Encoders of keys and values with AVX-512, 16 elements at a time; use affine_group.hpp. The same operations in the
// same order as the portable ones, and the same bits: an empty asm keeps GCC from fusing products into the sums.

#include <cstddef>
#include <cstdint>

#include <cbq/kv/affine_steps.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni::affine {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

[[nodiscard, gnu::always_inline]] inline __mmask16 valid(std::size_t rest) noexcept {
  return rest >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << rest) - 1);
}

/// Codes of 16 elements, 0 behind the last.
[[nodiscard, gnu::always_inline]] inline __m512i codes_of(const float* x, std::size_t rest,
                                                          const AffineSteps& steps) noexcept {
  const __m512 offset = _mm512_set1_ps(steps.offset);
  const __m512 values = _mm512_mask_loadu_ps(offset, valid(rest), x);
  const __m512 u = _mm512_div_ps(_mm512_sub_ps(values, offset), _mm512_set1_ps(steps.divisor));
  const __m512 clamped = _mm512_min_ps(_mm512_max_ps(u, _mm512_setzero_ps()), _mm512_set1_ps(steps.top));
  return _mm512_cvtps_epi32(clamped);
}

inline AffineExtent extent(const float* x, std::size_t size) noexcept {
  const __m512 first = _mm512_set1_ps(x[0]);
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  __m512 low = first, high = first;
  unsigned bad = 0;
  for (std::size_t i = 0; i < size; i += 16) {
    const __m512 values = _mm512_mask_loadu_ps(first, valid(size - i), x + i);
    low = _mm512_min_ps(low, values);
    high = _mm512_max_ps(high, values);
    bad |= _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(values), exponent), exponent);
  }
  return {_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high), bad == 0};
}

/// One byte per code, `size` rounded up to a multiple of 16.
inline void codes(const float* x, std::size_t size, const AffineSteps& steps, std::uint8_t* out) noexcept {
  for (std::size_t i = 0; i < size; i += 16) {
    const __m128i bytes = _mm512_cvtepi32_epi8(codes_of(x + i, size - i, steps));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), bytes);
  }
}

inline void fields(const float* x, std::size_t size, const AffineSteps& steps, const AffineFields& to) noexcept {
  const __m128i left = _mm_cvtsi32_si128(to.shift), right = _mm_cvtsi32_si128(to.from);
  const __m512i mask = _mm512_sll_epi32(_mm512_set1_epi32(to.mask), left);
  std::byte* words = to.words;
  for (std::size_t i = 0; i < size; i += 16, words += to.panel_bytes) {
    const __m512i code = _mm512_srl_epi32(codes_of(x + i, size - i, steps), right);
    const __m512i field = _mm512_and_si512(_mm512_sll_epi32(code, left), mask);
    _mm512_storeu_si512(words, _mm512_or_si512(_mm512_andnot_si512(mask, _mm512_loadu_si512(words)), field));
  }
}

[[nodiscard, gnu::always_inline]] inline float tree(__m512 sums) noexcept {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// weights null: 1.
inline AffineSums sums(const float* x, const float* weights, std::size_t size, const AffineSteps& steps) noexcept {
  const __m512 offset = _mm512_set1_ps(steps.offset), divisor = _mm512_set1_ps(steps.divisor);
  const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f), top = _mm512_set1_ps(steps.top);
  __m512 w = zero, c = zero, u = zero, cc = zero, cu = zero, error = zero;
  for (std::size_t i = 0; i < size; i += 16) {
    const __mmask16 here = valid(size - i);
    const __m512 cost = weights == nullptr ? _mm512_maskz_mov_ps(here, one) : _mm512_maskz_loadu_ps(here, weights + i);
    const __m512 values = _mm512_maskz_loadu_ps(here, x + i);
    const __m512 at = _mm512_div_ps(_mm512_sub_ps(values, offset), divisor);
    const __m512 code = _mm512_cvtepi32_ps(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(at, zero), top)));
    const __m512 off = _mm512_sub_ps(at, code);
    __m512 code_cost = _mm512_mul_ps(cost, code), at_cost = _mm512_mul_ps(cost, at);
    asm("" : "+v"(code_cost), "+v"(at_cost));
    __m512 codes_cost = _mm512_mul_ps(code_cost, code), product = _mm512_mul_ps(code_cost, at);
    __m512 square = _mm512_mul_ps(_mm512_mul_ps(cost, off), off);
    asm("" : "+v"(codes_cost), "+v"(product), "+v"(square));
    w = _mm512_add_ps(w, cost);
    c = _mm512_add_ps(c, code_cost);
    u = _mm512_add_ps(u, at_cost);
    cc = _mm512_add_ps(cc, codes_cost);
    cu = _mm512_add_ps(cu, product);
    error = _mm512_add_ps(error, square);
  }
  return {tree(w), tree(c), tree(u), tree(cc), tree(cu), tree(error)};
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni::affine
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
