// SPDX-License-Identifier: Apache-2.0
#pragma once

// The scales that cover a group of 16 outputs, with AVX2, and what its codes are made with: the bits of MinMaxRange at
// half's precision. Lanes of one register per output are joined to one lane per output by a tree of shuffles. Affine
// scales are found one by one.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_panel.hpp>
#include <cbq/quant/range.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2::float_packing {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// 8 elements as floats.
[[nodiscard, gnu::always_inline]] inline __m256 load_floats(const float* from) noexcept {
  return _mm256_loadu_ps(from);
}
[[nodiscard, gnu::always_inline]] inline __m256 load_floats(const half* from) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
[[nodiscard, gnu::always_inline]] inline __m256 load_floats(const bfloat16* from) noexcept {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

struct LargerBits {
  [[nodiscard, gnu::always_inline]] static __m256 of(__m256 a, __m256 b) noexcept {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
};
struct Larger {
  [[nodiscard, gnu::always_inline]] static __m256 of(__m256 a, __m256 b) noexcept { return _mm256_max_ps(a, b); }
};
struct Smaller {
  [[nodiscard, gnu::always_inline]] static __m256 of(__m256 a, __m256 b) noexcept { return _mm256_min_ps(a, b); }
};

/// Lane o: the most, in the sense of `Most`, of all lanes of rows[o].
template <class Most>
[[nodiscard, gnu::always_inline]] inline __m256 most_of_rows(const __m256 (&rows)[8]) noexcept {
  __m256 four[2];
  _Pragma("GCC unroll 2") for (std::size_t j = 0; j < 2; ++j) {
    const __m256* const r = rows + 4 * j;
    const __m256 low = Most::of(_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
    const __m256 high = Most::of(_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
    const __m256d a = _mm256_castps_pd(low);
    const __m256d b = _mm256_castps_pd(high);
    four[j] = Most::of(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
  }
  return Most::of(_mm256_permute2f128_ps(four[0], four[1], 0x20), _mm256_permute2f128_ps(four[0], four[1], 0x31));
}

/// Scales to 11 significant bits, 0 where they are too small; none is negative.
[[nodiscard, gnu::always_inline]] inline __m256 stored_scales(__m256 scales) noexcept {
  const __m256i bits = _mm256_castps_si256(scales);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 13), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0xfff)), odd);
  const __m256i rounded = _mm256_and_si256(up, _mm256_set1_epi32(~0x1fff));
  const __m256i most = _mm256_min_epu32(rounded, _mm256_set1_epi32(0x7f7fe000));
  const __m256 enough = _mm256_cmp_ps(scales, _mm256_set1_ps(smallest_scale), _CMP_GE_OQ);
  return _mm256_and_ps(enough, _mm256_castsi256_ps(most));
}

/// The ends of a group of 16 outputs: largest magnitudes, compared as bits, and of affine grids the values' own.
struct GroupEnds {
  alignas(32) float size[panel_outputs];
  alignas(32) float low[panel_outputs];
  alignas(32) float high[panel_outputs];
};

template <Zero Z, class T>
[[gnu::always_inline]] inline void group_ends(const packing::FloatPanel<T>& job, const packing::GroupSpan& group,
                                              GroupEnds& ends) noexcept {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  packing::BlockCopy<T> copy;
  for (std::size_t first = 0; first < panel_outputs; first += 8) {
    __m256 size[8];
    __m256 low[8];
    __m256 high[8];
    _Pragma("GCC unroll 8") for (std::size_t o = 0; o < 8; ++o) size[o] = low[o] = high[o] = _mm256_setzero_ps();
    for (std::size_t i = 0; i < group.count; i += block_inputs) {
      const std::size_t left = group.count - i;
      const std::size_t inputs = left < block_inputs ? left : block_inputs;
      const packing::BlockRows<T> rows = packing::block_rows(job, group.first + i, inputs, copy);
      _Pragma("GCC unroll 8") for (std::size_t o = 0; o < 8; ++o) {
        const T* const from = rows.from + (first + o) * rows.stride;
        _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) {
          const __m256 x = load_floats(from + 8 * v);
          size[o] = LargerBits::of(size[o], _mm256_and_ps(x, magnitude));
          if constexpr (Z == Zero::affine) {
            low[o] = _mm256_min_ps(low[o], x);
            high[o] = _mm256_max_ps(high[o], x);
          }
        }
      }
    }
    _mm256_store_ps(ends.size + first, most_of_rows<LargerBits>(size));
    if constexpr (Z == Zero::affine) {
      _mm256_store_ps(ends.low + first, most_of_rows<Smaller>(low));
      _mm256_store_ps(ends.high + first, most_of_rows<Larger>(high));
    }
  }
}

/// Scales and zero points of one group from its ends; false when an element is not finite.
template <Zero Z, class T>
[[gnu::always_inline]] inline bool cover(const packing::FloatPanel<T>& job, std::size_t group,
                                         const GroupEnds& ends) noexcept {
  const auto bits = static_cast<int>(job.panel.layout->bits);
  float* const scales = job.scales + group * panel_outputs;
  bool finite = true;
  for (std::size_t o = 0; o < panel_outputs; o += 8) {
    const __m256 size = _mm256_load_ps(ends.size + o);
    const __m256i above = _mm256_cmpgt_epi32(_mm256_castps_si256(size), _mm256_set1_epi32(0x7f7fffff));
    finite = finite && _mm256_testz_si256(above, above) != 0;
    if constexpr (Z == Zero::symmetric) {
      const __m256 reach = _mm256_set1_ps(static_cast<float>((1 << (bits - 1)) - 1));
      _mm256_storeu_ps(scales + o, stored_scales(_mm256_div_ps(size, reach)));
    }
  }
  if constexpr (Z == Zero::affine) {
    Grid grid;
    grid.bits = bits;
    grid.zero = Zero::affine;
    for (std::size_t o = 0; o < panel_outputs && finite; ++o) {
      const CodeGrid found = ranges::from_interval({ends.low[o], ends.high[o]}, grid, ScalePrecision::half);
      scales[o] = found.scale;
      job.zeros[group * panel_outputs + o] = static_cast<std::uint8_t>(found.zero);
    }
  }
  return finite;
}

/// What codes of a group are made with.
struct GroupGrid {
  alignas(32) float scale[panel_outputs];          ///< 1 in place of 0
  alignas(32) float below[panel_outputs];          ///< a little less than 1 / scale
  alignas(32) float above[panel_outputs];          ///< a little more; a NaN where these are not used
  alignas(32) std::int32_t offset[panel_outputs];  ///< rounding_magic_bits - zero point
  __m256i top;                                     ///< the largest code in every byte
};

/// Numbers from scales and zero points that are there. Given scales are divided by, whatever they are.
template <Zero Z, class T>
[[gnu::always_inline]] inline void prepare(const packing::FloatPanel<T>& job, std::size_t group,
                                           GroupGrid& grid) noexcept {
  grid.top = _mm256_set1_epi8(static_cast<char>((1u << job.panel.layout->bits) - 1u));
  const __m256i one = _mm256_set1_epi32(1);
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));  // not the bits that `below` may have
  const __m256 given = _mm256_castsi256_ps(_mm256_set1_epi32(job.origin == packing::Scales::given ? -1 : 0));
  for (std::size_t o = 0; o < panel_outputs; o += 8) {
    const __m256 scales = _mm256_loadu_ps(job.scales + group * panel_outputs + o);
    const __m256 none = _mm256_cmp_ps(scales, _mm256_setzero_ps(), _CMP_EQ_OQ);
    const __m256 used = _mm256_blendv_ps(scales, _mm256_set1_ps(1.0f), none);
    const __m256i inverse = _mm256_castps_si256(_mm256_div_ps(_mm256_set1_ps(1.0f), used));
    const __m256 unusual = _mm256_or_ps(given, _mm256_cmp_ps(used, _mm256_set1_ps(0x1p120f), _CMP_NLT_UQ));
    _mm256_store_ps(grid.scale + o, used);
    _mm256_store_ps(grid.below + o, _mm256_castsi256_ps(_mm256_sub_epi32(inverse, one)));
    const __m256 above = _mm256_castsi256_ps(_mm256_add_epi32(inverse, one));
    _mm256_store_ps(grid.above + o, _mm256_blendv_ps(above, nan, unusual));
    __m256i zeros = _mm256_set1_epi32(1 << (job.panel.layout->bits - 1));
    if constexpr (Z == Zero::affine) {
      const auto* from = reinterpret_cast<const __m128i*>(job.zeros + group * panel_outputs + o);
      zeros = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from));
    }
    const __m256i offset = _mm256_sub_epi32(_mm256_set1_epi32(packing::rounding_magic_bits), zeros);
    _mm256_store_si256(reinterpret_cast<__m256i*>(grid.offset + o), offset);
  }
}

CBQ_END_REGION
}  // namespace isa::avx2::float_packing
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
