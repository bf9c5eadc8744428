// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantization of activations into the panels that AMX reads: slices of 64 inputs instead of blocks of 32. AVX-512 does
// the work; range and shorter slices are isa::avx512_vnni's.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::amx_int8 {
CBQ_BEGIN_REGION(CBQ_TARGET_AMX)

/// See isa::scalar::quantize_row; for slices of 64 inputs.
inline void quantize_row(const ActivationRow& row) noexcept {
  const __m512 inverse = _mm512_set1_ps(row.inverse_scale);
  const __m512 lowest = _mm512_set1_ps(row.lowest);
  const __m512 highest = _mm512_set1_ps(row.highest);
  std::int8_t* out = row.codes;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    __m512i sums = _mm512_setzero_si512();
    for (std::size_t begin = 0; begin < length; begin += 64) {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 64; i += 16) {
        const std::size_t left = begin + i < length ? length - begin - i : 0;
        const __mmask16 lanes = left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1u);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, row.values + first + begin + i), inverse);
        const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(highest, _mm512_max_ps(lowest, scaled)));
        sums = _mm512_add_epi32(sums, code);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(code));
      }
      out += row.slice_inputs * row.panel_rows;
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * _mm512_reduce_add_epi32(sums);
  }
}

CBQ_END_REGION
}  // namespace isa::amx_int8
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
