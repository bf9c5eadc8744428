// SPDX-License-Identifier: Apache-2.0
#pragma once

// Encoders of keys and values with AVX2, two registers of 8 elements at a time; use affine_group.hpp. The same
// operations in the same order as the portable ones, and the same bits: an empty asm keeps GCC from fusing products
// into the sums.

#include <cstddef>
#include <cstdint>

#include <cbq/kv/affine_steps.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2::affine {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// 8 elements, `fill` behind the last; reads no others. `rest` may be 0.
[[nodiscard, gnu::always_inline]] inline __m256 load(const float* x, std::size_t rest, __m256 fill) noexcept {
  if (rest >= 8) return _mm256_loadu_ps(x);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(rest)), lanes);
  return _mm256_blendv_ps(fill, _mm256_maskload_ps(x, valid), _mm256_castsi256_ps(valid));
}

[[nodiscard, gnu::always_inline]] inline std::size_t behind(std::size_t rest, std::size_t count) noexcept {
  return rest > count ? rest - count : 0;
}

/// Codes of 8 elements, 0 behind the last.
[[nodiscard, gnu::always_inline]] inline __m256i codes_of(const float* x, std::size_t rest,
                                                          const AffineSteps& steps) noexcept {
  const __m256 offset = _mm256_set1_ps(steps.offset);
  const __m256 u = _mm256_div_ps(_mm256_sub_ps(load(x, rest, offset), offset), _mm256_set1_ps(steps.divisor));
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(u, _mm256_setzero_ps()), _mm256_set1_ps(steps.top)));
}

inline AffineExtent extent(const float* x, std::size_t size) noexcept {
  const __m256 first = _mm256_set1_ps(x[0]);
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  __m256 low = first, high = first;
  __m256i bad = _mm256_setzero_si256();
  for (std::size_t i = 0; i < size; i += 8) {
    const __m256 values = load(x + i, size - i, first);
    low = _mm256_min_ps(low, values);
    high = _mm256_max_ps(high, values);
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(values), exponent);
    bad = _mm256_or_si256(bad, _mm256_cmpeq_epi32(bits, exponent));
  }
  float lows[8], highs[8];
  _mm256_storeu_ps(lows, low);
  _mm256_storeu_ps(highs, high);
  AffineExtent all{lows[0], highs[0], _mm256_testz_si256(bad, bad) != 0};
  for (int i = 1; i < 8; ++i) {
    all.low = lows[i] < all.low ? lows[i] : all.low;
    all.high = highs[i] > all.high ? highs[i] : all.high;
  }
  return all;
}

/// One byte per code, `size` rounded up to a multiple of 16.
inline void codes(const float* x, std::size_t size, const AffineSteps& steps, std::uint8_t* out) noexcept {
  for (std::size_t i = 0; i < size; i += 16) {
    const std::size_t more = behind(size - i, 8);
    const __m256i a = codes_of(x + i, size - i, steps);
    const __m256i b = more == 0 ? _mm256_setzero_si256() : codes_of(x + i + 8, more, steps);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), bytes);
  }
}

inline void fields(const float* x, std::size_t size, const AffineSteps& steps, const AffineFields& to) noexcept {
  const __m128i left = _mm_cvtsi32_si128(to.shift), right = _mm_cvtsi32_si128(to.from);
  const __m256i mask = _mm256_sll_epi32(_mm256_set1_epi32(to.mask), left);
  std::byte* panel = to.words;
  for (std::size_t i = 0; i < size; i += 16, panel += to.panel_bytes) {
    for (std::size_t half = 0; half < 2; ++half) {
      const std::size_t rest = behind(size - i, 8 * half);
      const __m256i codes = rest == 0 ? _mm256_setzero_si256() : codes_of(x + i + 8 * half, rest, steps);
      const __m256i field = _mm256_and_si256(_mm256_sll_epi32(_mm256_srl_epi32(codes, right), left), mask);
      auto* words = reinterpret_cast<__m256i*>(panel + 32 * half);
      _mm256_storeu_si256(words, _mm256_or_si256(_mm256_andnot_si256(mask, _mm256_loadu_si256(words)), field));
    }
  }
}

[[nodiscard, gnu::always_inline]] inline float tree(__m256 eight) noexcept {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// weights null: 1.
inline AffineSums sums(const float* x, const float* weights, std::size_t size, const AffineSteps& steps) noexcept {
  const __m256 offset = _mm256_set1_ps(steps.offset), divisor = _mm256_set1_ps(steps.divisor);
  const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f), top = _mm256_set1_ps(steps.top);
  const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  __m256 total[6];
  for (std::size_t half = 0; half < 2; ++half) {
    __m256 w = zero, c = zero, u = zero, cc = zero, cu = zero, error = zero;
    for (std::size_t i = 8 * half; i < size; i += 16) {
      const std::size_t rest = size - i;
      const __m256 cost = weights != nullptr ? load(weights + i, rest, zero) : rest >= 8 ? one : load(ones, rest, zero);
      const __m256 at = _mm256_div_ps(_mm256_sub_ps(load(x + i, rest, zero), offset), divisor);
      const __m256 code = _mm256_cvtepi32_ps(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(at, zero), top)));
      const __m256 off = _mm256_sub_ps(at, code);
      __m256 code_cost = _mm256_mul_ps(cost, code), at_cost = _mm256_mul_ps(cost, at);
      asm("" : "+x"(code_cost), "+x"(at_cost));
      __m256 codes_cost = _mm256_mul_ps(code_cost, code), product = _mm256_mul_ps(code_cost, at);
      __m256 square = _mm256_mul_ps(_mm256_mul_ps(cost, off), off);
      asm("" : "+x"(codes_cost), "+x"(product), "+x"(square));
      w = _mm256_add_ps(w, cost);
      c = _mm256_add_ps(c, code_cost);
      u = _mm256_add_ps(u, at_cost);
      cc = _mm256_add_ps(cc, codes_cost);
      cu = _mm256_add_ps(cu, product);
      error = _mm256_add_ps(error, square);
    }
    const __m256 here[6] = {w, c, u, cc, cu, error};
    for (int term = 0; term < 6; ++term) total[term] = half == 0 ? here[term] : _mm256_add_ps(total[term], here[term]);
  }
  return {tree(total[0]), tree(total[1]), tree(total[2]), tree(total[3]), tree(total[4]), tree(total[5])};
}

CBQ_END_REGION
}  // namespace isa::avx2::affine
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
