// SPDX-License-Identifier: Apache-2.0
#pragma once

// The int32 sums of one group, which AMX tiles leave in memory, on their way to float totals: one conversion and one
// FMA per 16 results, by AVX-512, and one product where activations have a scale per group.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/amx_tiles.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::amx_int8 {
CBQ_BEGIN_REGION(CBQ_TARGET_AMX)

/// Sums of one group and panel of activations that wait for being scaled and added to the totals.
struct GroupSums {
  const std::int32_t* sums = nullptr;
  float* totals = nullptr;
  const std::byte* header = nullptr;  // of the group in the first panel of weights
  const std::int32_t* zero_terms = nullptr;
  const float* row_scales = nullptr;  // of the activations of this group, or null
  std::size_t rows = 0;
};

/// Scales of a group, and what decoding left of its zero points.
template <std::size_t Panels>
struct GroupScales {
  __m512 scales[Panels];
  __m512i zeros[Panels];
};

/// `Left`: affine where decoding could not subtract the zero points.
template <Zero Left, std::size_t Panels>
[[gnu::always_inline]] inline void load_scales(GroupScales<Panels>& to, const GroupSums& group,
                                               std::size_t panel_bytes) noexcept {
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
    to.scales[p] = _mm512_setzero_ps();
    to.zeros[p] = _mm512_setzero_si512();
    if (group.rows == 0) continue;
    const std::byte* header = group.header + p * panel_bytes;
    to.scales[p] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(header)));
    if constexpr (Left == Zero::affine) {
      const std::byte* codes = header + group_scales_bytes;
      const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
      to.zeros[p] = _mm512_sub_epi32(zero, _mm512_set1_epi32(128));
    }
  }
}

/// totals += scale * (sums - what is left of the zero points) for the next `rows` rows of a group.
template <Zero Left, std::size_t Panels>
[[gnu::always_inline]] inline void add_rows(const GroupScales<Panels>& by, GroupSums& group,
                                            std::size_t rows) noexcept {
  const bool grouped = group.row_scales != nullptr;
  for (const std::size_t end = group.rows < rows ? 0 : group.rows - rows; group.rows > end; --group.rows) {
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      const std::size_t at = p * panel_outputs;
      __m512i sum = _mm512_loadu_si512(group.sums + at);
      if constexpr (Left == Zero::affine) {
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(by.zeros[p], _mm512_set1_epi32(*group.zero_terms)));
      }
      const __m512 total = _mm512_loadu_ps(group.totals + at);
      __m512 scale = by.scales[p];
      if (grouped) scale = _mm512_mul_ps(scale, _mm512_set1_ps(*group.row_scales));
      _mm512_storeu_ps(group.totals + at, _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum), total));
    }
    if (grouped) ++group.row_scales;
    group.sums += strip_outputs;
    group.totals += strip_outputs;
    ++group.zero_terms;
  }
}

CBQ_END_REGION
}  // namespace isa::amx_int8
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
