// SPDX-License-Identifier: Apache-2.0
#pragma once

// The row loop of an MLP that is made of exponentials, the gate of a SwiGLU, for the instruction set at hand. Compiled
// for the flags of a baseline file it would cost as much as the integer matmul beside it; everything else in a block is
// left to xsimd. exp is that of <cbq/core/exponential.hpp>; NaN stays NaN.

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/core/cpu.hpp>
#include <cbq/core/exponential.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cbq {
inline namespace CBQ_ABI {

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
