// SPDX-License-Identifier: Apache-2.0
#pragma once

// The scales that cover a group of 16 outputs, with AVX-512, and what its codes are made with: the bits of MinMaxRange
// at half's precision. Lanes of one register per output are joined to one lane per output by a tree of shuffles.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_panel.hpp>
#include <cbq/quant/scale.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni::float_packing {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// 16 elements as floats.
[[nodiscard, gnu::always_inline]] inline __m512 load_floats(const float* from) noexcept {
  return _mm512_loadu_ps(from);
}
[[nodiscard, gnu::always_inline]] inline __m512 load_floats(const half* from) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
[[nodiscard, gnu::always_inline]] inline __m512 load_floats(const bfloat16* from) noexcept {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

struct LargerBits {
  [[nodiscard, gnu::always_inline]] static __m512 of(__m512 a, __m512 b) noexcept {
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};
struct Larger {
  [[nodiscard, gnu::always_inline]] static __m512 of(__m512 a, __m512 b) noexcept { return _mm512_max_ps(a, b); }
};
struct Smaller {
  [[nodiscard, gnu::always_inline]] static __m512 of(__m512 a, __m512 b) noexcept { return _mm512_min_ps(a, b); }
};

/// Lane o: the most, in the sense of `Most`, of all lanes of rows[o].
template <class Most>
[[nodiscard, gnu::always_inline]] inline __m512 most_of_rows(const __m512 (&rows)[panel_outputs]) noexcept {
  __m512 four[4];
  _Pragma("GCC unroll 4") for (std::size_t j = 0; j < 4; ++j) {
    const __m512* const r = rows + 4 * j;
    const __m512 low = Most::of(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
    const __m512 high = Most::of(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
    const __m512d a = _mm512_castps_pd(low);
    const __m512d b = _mm512_castps_pd(high);
    four[j] = Most::of(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 x = Most::of(_mm512_shuffle_f32x4(four[0], four[1], 0x44), _mm512_shuffle_f32x4(four[0], four[1], 0xee));
  const __m512 y = Most::of(_mm512_shuffle_f32x4(four[2], four[3], 0x44), _mm512_shuffle_f32x4(four[2], four[3], 0xee));
  return Most::of(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

/// Scales to 11 significant bits, 0 where they are too small; none is negative.
[[nodiscard, gnu::always_inline]] inline __m512 stored_scales(__m512 scales) noexcept {
  const __m512i bits = _mm512_castps_si512(scales);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 13), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0xfff)), odd);
  const __m512i rounded = _mm512_and_si512(up, _mm512_set1_epi32(~0x1fff));
  const __m512i most = _mm512_min_epu32(rounded, _mm512_set1_epi32(0x7f7fe000));
  const __mmask16 enough = _mm512_cmp_ps_mask(scales, _mm512_set1_ps(smallest_scale), _CMP_GE_OQ);
  return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(enough, most));
}

/// The ends of a group of 16 outputs.
struct GroupEnds {
  __m512 size;  ///< largest magnitudes, compared as bits
  __m512 low;   ///< of affine grids: at most 0
  __m512 high;  ///< of affine grids: at least 0
};

template <Zero Z, class T>
[[nodiscard, gnu::always_inline]] inline GroupEnds group_ends(const packing::FloatPanel<T>& job,
                                                              const packing::GroupSpan& group) noexcept {
  const __m512 magnitude = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
  __m512 size[panel_outputs];
  __m512 low[panel_outputs];
  __m512 high[panel_outputs];
  _Pragma("GCC unroll 16") for (std::size_t o = 0; o < panel_outputs; ++o) {
    size[o] = low[o] = high[o] = _mm512_setzero_ps();
  }
  packing::BlockCopy<T> copy;
  for (std::size_t i = 0; i < group.count; i += block_inputs) {
    const std::size_t left = group.count - i;
    const std::size_t inputs = left < block_inputs ? left : block_inputs;
    const packing::BlockRows<T> rows = packing::block_rows(job, group.first + i, inputs, copy);
    _Pragma("GCC unroll 16") for (std::size_t o = 0; o < panel_outputs; ++o) {
      const __m512 a = load_floats(rows.from + o * rows.stride);
      const __m512 b = load_floats(rows.from + o * rows.stride + 16);
      size[o] = LargerBits::of(size[o], LargerBits::of(_mm512_and_ps(a, magnitude), _mm512_and_ps(b, magnitude)));
      if constexpr (Z == Zero::affine) {
        low[o] = _mm512_min_ps(low[o], _mm512_min_ps(a, b));
        high[o] = _mm512_max_ps(high[o], _mm512_max_ps(a, b));
      }
    }
  }
  GroupEnds ends = {most_of_rows<LargerBits>(size), _mm512_setzero_ps(), _mm512_setzero_ps()};
  if constexpr (Z == Zero::affine) {
    ends.low = most_of_rows<Smaller>(low);
    ends.high = most_of_rows<Larger>(high);
  }
  return ends;
}

/// What codes of a group are made with.
struct GroupGrid {
  alignas(64) float scale[panel_outputs];          ///< 1 in place of 0
  alignas(64) float below[panel_outputs];          ///< a little less than 1 / scale
  alignas(64) float above[panel_outputs];          ///< a little more; a NaN where these are not used
  alignas(64) std::int32_t offset[panel_outputs];  ///< rounding_magic_bits - zero point
  __m512i top;                                     ///< the largest code in every byte
};

/// Eight affine scales and zero points, with the bits of ranges::from_interval().
[[gnu::always_inline]] inline __m256 affine_eight(__m256 low, __m256 high, double top, __m256i& zeros) noexcept {
  const __m512d bottom = _mm512_cvtps_pd(low);
  const __m512d range = _mm512_div_pd(_mm512_sub_pd(_mm512_cvtps_pd(high), bottom), _mm512_set1_pd(top));
  const __m512 scales = stored_scales(_mm512_castps256_ps512(_mm512_cvtpd_ps(range)));
  const __m256 stored = _mm512_castps512_ps256(scales);
  const __m512d negated = _mm512_sub_pd(_mm512_setzero_pd(), bottom);
  const __m512d steps = _mm512_div_pd(negated, _mm512_cvtps_pd(stored));
  const __mmask8 some = _mm512_cmp_pd_mask(_mm512_cvtps_pd(stored), _mm512_setzero_pd(), _CMP_NEQ_OQ);
  zeros = _mm256_min_epi32(_mm512_maskz_cvtpd_epi32(some, steps), _mm256_set1_epi32(static_cast<int>(top)));
  return stored;
}

/// Scales and zero points of one group from its ends; false when an element is not finite. The symmetric quotient is
/// rounded to float at once: that is its double rounded to float, 53 bits being more than twice 24 and two.
template <Zero Z, class T>
[[gnu::always_inline]] inline bool cover(const packing::FloatPanel<T>& job, std::size_t group,
                                         const GroupEnds& ends) noexcept {
  const auto bits = static_cast<int>(job.panel.layout->bits);
  float* const scales = job.scales + group * panel_outputs;
  if constexpr (Z == Zero::symmetric) {
    const __m512 reach = _mm512_set1_ps(static_cast<float>((1 << (bits - 1)) - 1));
    _mm512_storeu_ps(scales, stored_scales(_mm512_div_ps(ends.size, reach)));
  } else {
    __m256i zeros[2];
    const __m256 low = _mm512_castps512_ps256(ends.low);
    const __m256 high = _mm512_castps512_ps256(ends.high);
    _mm256_storeu_ps(scales, affine_eight(low, high, (1 << bits) - 1, zeros[0]));
    const __m256 low8 = _mm512_extractf32x8_ps(ends.low, 1);
    const __m256 high8 = _mm512_extractf32x8_ps(ends.high, 1);
    _mm256_storeu_ps(scales + 8, affine_eight(low8, high8, (1 << bits) - 1, zeros[1]));
    for (std::size_t h = 0; h < 2; ++h) {
      auto* const to = reinterpret_cast<__m128i*>(job.zeros + group * panel_outputs + 8 * h);
      _mm_storel_epi64(to, _mm256_cvtepi32_epi8(zeros[h]));
    }
  }
  return _mm512_cmpge_epi32_mask(_mm512_castps_si512(ends.size), _mm512_set1_epi32(0x7f800000)) == 0;
}

/// Numbers from scales and zero points that are there. Given scales are divided by, whatever they are.
template <Zero Z, class T>
[[gnu::always_inline]] inline void prepare(const packing::FloatPanel<T>& job, std::size_t group,
                                           GroupGrid& grid) noexcept {
  const __m512 scales = _mm512_loadu_ps(job.scales + group * panel_outputs);
  const __mmask16 none = _mm512_cmp_ps_mask(scales, _mm512_setzero_ps(), _CMP_EQ_OQ);
  const __m512 used = _mm512_mask_mov_ps(scales, none, _mm512_set1_ps(1.0f));
  const __m512i inverse = _mm512_castps_si512(_mm512_div_ps(_mm512_set1_ps(1.0f), used));
  const __mmask16 usual =
      job.origin == packing::Scales::cover ? _mm512_cmp_ps_mask(used, _mm512_set1_ps(0x1p120f), _CMP_LT_OQ) : 0;
  const __m512i above = _mm512_add_epi32(inverse, _mm512_set1_epi32(1));
  _mm512_store_ps(grid.scale, used);
  _mm512_store_si512(grid.below, _mm512_sub_epi32(inverse, _mm512_set1_epi32(1)));
  _mm512_store_si512(grid.above, _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fc00000), usual, above));
  grid.top = _mm512_set1_epi8(static_cast<char>((1u << job.panel.layout->bits) - 1u));
  const __m512i magic = _mm512_set1_epi32(packing::rounding_magic_bits);
  __m512i zeros = _mm512_set1_epi32(1 << (job.panel.layout->bits - 1));
  if constexpr (Z == Zero::affine) {
    const auto* from = reinterpret_cast<const __m128i*>(job.zeros + group * panel_outputs);
    zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(from));
  }
  _mm512_store_si512(grid.offset, _mm512_sub_epi32(magic, zeros));
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni::float_packing
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
