// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 F, BW, DQ, VL, VNNI: softmax of the scores of a page and the 8-bit weights that come of it, see PageWeights
// and WeightRow of kv_tile.hpp. About 200 instructions per row and page, 90 cycles on Zen 4; softmax and rounding one
// after the other take 130.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/kv/kernels_scalar.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// 16 halves as floats.
[[gnu::always_inline]] inline __m512 load_halves(const std::byte* from) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// The largest of the products, numbers only.
[[gnu::always_inline]] inline float largest_product(const __m512 (&products)[4]) noexcept {
  // max and min return their second operand where the first is not a number.
  __m512 best = _mm512_setzero_ps();
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) best = _mm512_max_ps(products[i], best);
  return _mm512_reduce_max_ps(best);
}

/// The codes round(products * 255 / largest) of one row, their sum and step.
struct WeightCodes {
  std::int32_t sum = 0;
  float step = 0.0f;
};
[[gnu::always_inline]] inline WeightCodes quantize_weights(const __m512 (&products)[4], float largest,
                                                           std::uint8_t* codes) noexcept {
  const bool none = !(largest >= smallest_kv_weight);
  const __m512 inverse = _mm512_set1_ps(none ? 0.0f : 255.0f / largest);
  __m512i rounded[4];
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) rounded[i] =
      _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(products[i], inverse), _mm512_set1_ps(255.0f)));
  // Packing works within 128-bit lanes: the permutation puts the quadruples back in order.
  const __m512i packed =
      _mm512_packus_epi16(_mm512_packus_epi32(rounded[0], rounded[1]), _mm512_packus_epi32(rounded[2], rounded[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(codes, _mm512_permutexvar_epi32(order, packed));
  const __m512i quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), packed, _mm512_set1_epi8(1));
  return {_mm512_reduce_add_epi32(quads), none ? 0.0f : largest / 255.0f};
}

/// See WeightRow.
inline void weight_row(WeightRow& row) noexcept {
  __m512 products[4];
  __m512 offset_sum = _mm512_setzero_ps();
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
    const __m512 softmax = _mm512_loadu_ps(row.softmax + 16 * i);
    const std::byte* scales = row.scales + 32 * i;
    products[i] = _mm512_mul_ps(softmax, load_halves(scales));
    offset_sum = _mm512_fmadd_ps(softmax, load_halves(scales + 2 * kv_page_positions), offset_sum);
    offset_sum = _mm512_fmadd_ps(_mm512_set1_ps(row.middle), products[i], offset_sum);
  }
  const WeightCodes codes = quantize_weights(products, largest_product(products), row.codes);
  row.code_sum = codes.sum;
  row.step = codes.step;
  row.offset_sum = _mm512_reduce_add_ps(offset_sum) - row.middle * codes.step * static_cast<float>(codes.sum);
}

/// 2^(scale * x) for x <= 0, at least 2^-100: 2^n times a polynomial of degree 5 on |f| <= 1/2, minimax with p(0) = 1,
/// relative error below 2e-7.
struct PowerOfTwo {
  __m512 scale;
  __m512 lowest;

  /// In place, one operation on all registers after another: the chain of a single one is longer than the processor
  /// looks ahead.
  template <std::size_t Count>
  [[gnu::always_inline]] void operator()(__m512 (&x)[Count]) const noexcept {
    constexpr float coefficients[5] = {0x1.3cea88p-7f, 0x1.c6b752p-5f, 0x1.ebf9bcp-3f, 0x1.62e42ap-1f, 1.0f};
    const __m512 to_integer = _mm512_set1_ps(0x1.8p23f);  // adding it leaves n in the low bits
    __m512 shifted[Count];
    __m512 p[Count];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) x[i] = _mm512_max_ps(lowest, x[i]);
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) shifted[i] =
        _mm512_fmadd_ps(x[i], scale, to_integer);
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) p[i] = _mm512_sub_ps(shifted[i], to_integer);
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) x[i] = _mm512_fmsub_ps(x[i], scale, p[i]);
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) p[i] = _mm512_set1_ps(0x1.5bba14p-10f);
    _Pragma("GCC unroll 5") for (std::size_t k = 0; k < 5; ++k)
        _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) p[i] =
            _mm512_fmadd_ps(p[i], x[i], _mm512_set1_ps(coefficients[k]));
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < Count; ++i) {
      const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted[i]), 23);
      x[i] = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p[i]), exponent));
    }
  }
};

/// Bits of the first `count` positions of a page.
[[gnu::always_inline]] inline std::uint64_t first_positions(std::size_t count) noexcept {
  return count >= kv_page_positions ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

/// The positions of the page that row r sees, one bit each.
[[gnu::always_inline]] inline std::uint64_t seen_positions(const PageWeights& page, std::size_t r) noexcept {
  const std::uint64_t before = page.first == nullptr ? 0 : first_positions(page.first[r]);
  return first_positions(page.valid[r]) & ~before;
}

/// Maxima of all rows with the scores of the page among them. What a row gathered before shrinks where
/// its maximum grows.
[[gnu::always_inline]] inline void raise_maxima(const PageWeights& page, const PowerOfTwo& power) noexcept {
  for (std::size_t r = 0; r < page.rows; ++r) {
    const float* scores = page.scores + r * page.score_stride;
    const std::uint64_t seen = seen_positions(page, r);
    const float before = page.maxima[r];
    __m512 best = _mm512_set1_ps(before);
    if (seen == ~std::uint64_t{0}) [[likely]] {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) best =
          _mm512_max_ps(best, _mm512_loadu_ps(scores + 16 * i));
    } else {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) best =
          _mm512_mask_max_ps(best, static_cast<__mmask16>(seen >> (16 * i)), best, _mm512_loadu_ps(scores + 16 * i));
    }
    const float maximum = _mm512_reduce_max_ps(best);
    if (maximum == before) continue;
    __m512 shrink[1] = {_mm512_set1_ps(before - maximum)};
    power(shrink);
    const __m512 factor = shrink[0];
    page.maxima[r] = maximum;
    page.sums[r] *= _mm512_cvtss_f32(factor);
    float* values = page.values + r * page.value_stride;
    for (std::size_t i = 0; i < page.value_columns; i += 16) {
      _mm512_storeu_ps(values + i, _mm512_mul_ps(_mm512_loadu_ps(values + i), factor));
    }
  }
}

/// Softmax weights in place of the scores, and their sums.
[[gnu::always_inline]] inline void weigh_scores(const PageWeights& page, const PowerOfTwo& power) noexcept {
  for (std::size_t r = 0; r < page.rows; ++r) {
    float* scores = page.scores + r * page.score_stride;
    const std::uint64_t seen = seen_positions(page, r);
    const __m512 maximum = _mm512_set1_ps(page.maxima[r]);
    __m512 softmax[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) softmax[i] =
        _mm512_sub_ps(_mm512_loadu_ps(scores + 16 * i), maximum);
    power(softmax);
    if (seen != ~std::uint64_t{0}) [[unlikely]] {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) softmax[i] =
          _mm512_maskz_mov_ps(static_cast<__mmask16>(seen >> (16 * i)), softmax[i]);
    }
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) _mm512_storeu_ps(scores + 16 * i, softmax[i]);
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(softmax[0], softmax[1]), _mm512_add_ps(softmax[2], softmax[3]));
    page.sums[r] += _mm512_reduce_add_ps(sum);
  }
}

/// See PageWeights. One loop over the rows after another: a single one would wait for every maximum and sum, its chain
/// being longer than the processor looks ahead.
inline void page_weights(const PageWeights& page) noexcept {
  const float exponent_scale = page.scale * 0x1.715476p+0f;  // 1 / ln(2)
  const PowerOfTwo power{_mm512_set1_ps(exponent_scale), _mm512_set1_ps(-100.0f / exponent_scale)};
  raise_maxima(page, power);
  weigh_scores(page, power);
  for (std::size_t group = 0; group < page.groups; ++group) {
    const std::byte* halves = page.scales + group * page.group_bytes;
    __m512 scales[4];
    __m512 offsets[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
      scales[i] = load_halves(halves + 32 * i);
      offsets[i] = load_halves(halves + 2 * kv_page_positions + 32 * i);
      offsets[i] = _mm512_fmadd_ps(_mm512_set1_ps(page.middle), scales[i], offsets[i]);
    }
    float* steps = page.steps + group * page.rows;
    float* offset_sums = page.offset_sums + group * page.rows;
    for (std::size_t r = 0; r < page.rows; ++r) {
      const float* softmax = page.scores + r * page.score_stride;
      __m512 products[4];
      __m512 offset_sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
        products[i] = _mm512_mul_ps(_mm512_loadu_ps(softmax + 16 * i), scales[i]);
        offset_sum[i % 2] = _mm512_fmadd_ps(_mm512_loadu_ps(softmax + 16 * i), offsets[i], offset_sum[i % 2]);
      }
      steps[r] = largest_product(products);
      offset_sums[r] = _mm512_reduce_add_ps(_mm512_add_ps(offset_sum[0], offset_sum[1]));
    }
    for (std::size_t r = 0; r < page.rows; ++r) {
      const float* softmax = page.scores + r * page.score_stride;
      const std::size_t result = group * page.rows + r;
      __m512 products[4];
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) products[i] =
          _mm512_mul_ps(_mm512_loadu_ps(softmax + 16 * i), scales[i]);
      const WeightCodes codes = quantize_weights(products, steps[r], page.codes + result * kv_page_positions);
      page.code_sums[result] = codes.sum;
      steps[r] = codes.step;
      offset_sums[r] -= page.middle * codes.step * static_cast<float>(codes.sum);
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
