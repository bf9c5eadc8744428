// SPDX-License-Identifier: Apache-2.0
#pragma once

// Range and quantization of a row of activations in AVX-512, 16 values at a time: once per row and matmul, whatever the
// kernel. Codes are as those of isa::scalar bit for bit.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// See isa::scalar::row_range.
inline RowRange row_range(const float* values, std::size_t count) noexcept {
  __m512 lowest = _mm512_setzero_ps();
  __m512 highest = _mm512_setzero_ps();
  __m512i largest_bits = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (std::size_t i = 0; i < count; i += 16) {
    const __mmask16 lanes =
        count - i >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (count - i)) - 1u);
    const __m512 value = _mm512_maskz_loadu_ps(lanes, values + i);
    lowest = _mm512_min_ps(value, lowest);
    highest = _mm512_max_ps(value, highest);
    largest_bits = _mm512_max_epi32(largest_bits, _mm512_and_si512(_mm512_castps_si512(value), magnitude));
  }
  RowRange range;
  range.lowest = _mm512_reduce_min_ps(lowest);
  range.highest = _mm512_reduce_max_ps(highest);
  range.finite = _mm512_reduce_max_epi32(largest_bits) < 0x7f800000;
  return range;
}

/// See isa::scalar::quantize_row.
inline void quantize_row(const ActivationRow& row) noexcept {
  const __m512 inverse = _mm512_set1_ps(row.inverse_scale);
  const __m512 lowest = _mm512_set1_ps(row.lowest);
  const __m512 highest = _mm512_set1_ps(row.highest);
  std::int8_t* out = row.codes;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    __m512i sums = _mm512_setzero_si512();
    for (std::size_t begin = 0; begin < length; begin += 16) {
      const std::size_t left = length - begin;
      const __mmask16 lanes = left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1u);
      const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, row.values + first + begin), inverse);
      const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(highest, _mm512_max_ps(lowest, scaled)));
      sums = _mm512_add_epi32(sums, code);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + begin % block_inputs), _mm512_cvtepi32_epi8(code));
      if (begin % block_inputs == 16) out += block_inputs * row.panel_rows;
    }
    const std::size_t in_last_block = length % block_inputs;
    if (in_last_block != 0) {
      if (in_last_block <= 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_setzero_si128());
      if (in_last_block <= 16) out += block_inputs * row.panel_rows;
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * _mm512_reduce_add_epi32(sums);
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
