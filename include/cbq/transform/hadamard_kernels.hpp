// SPDX-License-Identifier: Apache-2.0
#pragma once

// Fast Walsh-Hadamard kernels per instruction set; use hadamard.hpp. A block of n = 2^k >= 32 floats takes the
// butterflies (a, b) -> (a + b, a - b) of stride 16, 8, 4, 2, 1 inside each 32 elements, in registers, then of stride
// 32, 64, .., n/2, two strides per pass over memory. Every instruction set adds in this order, so all give the same
// bits.
//
// In registers the constant geometry (Pease, 1968) needs no shuffles that depend on the stride: five times the lower
// and the upper half of the 32 are added, subtracted and the results interleaved; afterwards all elements are back in
// order.

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/core/cpu.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cbq {
inline namespace CBQ_ABI {

/// In place: x = scale * H x for one block; size is a power of two, at least 32.
struct HadamardBlock {
  float* x = nullptr;
  std::size_t size = 0;
  float scale = 1.0f;
};

#if defined(__x86_64__)
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

[[gnu::always_inline]] inline void hadamard_32(float* x, __m512 scale) noexcept {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  _Pragma("GCC unroll 5") for (int stage = 0; stage < 5; ++stage) {
    const __m512 sum = _mm512_add_ps(a, b), difference = _mm512_sub_ps(a, b);
    a = _mm512_permutex2var_ps(sum, low, difference);
    b = _mm512_permutex2var_ps(sum, high, difference);
  }
  _mm512_storeu_ps(x, _mm512_mul_ps(a, scale));
  _mm512_storeu_ps(x + 16, _mm512_mul_ps(b, scale));
}

/// Strides `stride` and 2 * stride.
inline void hadamard_two_strides(const HadamardBlock& block, std::size_t stride, float factor) noexcept {
  const __m512 scale = _mm512_set1_ps(factor);
  for (std::size_t first = 0; first < block.size; first += 4 * stride) {
    for (std::size_t i = first; i < first + stride; i += 16) {
      float* x = block.x + i;
      const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + stride);
      const __m512 c = _mm512_loadu_ps(x + 2 * stride), d = _mm512_loadu_ps(x + 3 * stride);
      const __m512 ab = _mm512_add_ps(a, b), a_b = _mm512_sub_ps(a, b);
      const __m512 cd = _mm512_add_ps(c, d), c_d = _mm512_sub_ps(c, d);
      _mm512_storeu_ps(x, _mm512_mul_ps(_mm512_add_ps(ab, cd), scale));
      _mm512_storeu_ps(x + stride, _mm512_mul_ps(_mm512_add_ps(a_b, c_d), scale));
      _mm512_storeu_ps(x + 2 * stride, _mm512_mul_ps(_mm512_sub_ps(ab, cd), scale));
      _mm512_storeu_ps(x + 3 * stride, _mm512_mul_ps(_mm512_sub_ps(a_b, c_d), scale));
    }
  }
}

/// The last stride, half of the block.
inline void hadamard_last_stride(const HadamardBlock& block) noexcept {
  const __m512 scale = _mm512_set1_ps(block.scale);
  for (std::size_t i = 0; i < block.size / 2; i += 16) {
    const __m512 a = _mm512_loadu_ps(block.x + i), b = _mm512_loadu_ps(block.x + block.size / 2 + i);
    _mm512_storeu_ps(block.x + i, _mm512_mul_ps(_mm512_add_ps(a, b), scale));
    _mm512_storeu_ps(block.x + block.size / 2 + i, _mm512_mul_ps(_mm512_sub_ps(a, b), scale));
  }
}

inline void hadamard(const HadamardBlock& block) noexcept {
  const __m512 scale = _mm512_set1_ps(block.size == 32 ? block.scale : 1.0f);
  for (std::size_t i = 0; i < block.size; i += 32) hadamard_32(block.x + i, scale);
  std::size_t stride = 32;
  for (; 4 * stride <= block.size; stride *= 4) {
    hadamard_two_strides(block, stride, 4 * stride == block.size ? block.scale : 1.0f);
  }
  if (2 * stride == block.size) hadamard_last_stride(block);
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni

namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// One stage of constant geometry on the halves (a, c) of which b and d are the continuations.
[[gnu::always_inline]] inline void interleave(__m256 sum, __m256 difference, __m256& low, __m256& high) noexcept {
  const __m256 even = _mm256_unpacklo_ps(sum, difference), odd = _mm256_unpackhi_ps(sum, difference);
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
}

[[gnu::always_inline]] inline void hadamard_32(float* x, __m256 scale) noexcept {
  __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
  __m256 c = _mm256_loadu_ps(x + 16), d = _mm256_loadu_ps(x + 24);
  _Pragma("GCC unroll 5") for (int stage = 0; stage < 5; ++stage) {
    const __m256 ac = _mm256_add_ps(a, c), a_c = _mm256_sub_ps(a, c);
    const __m256 bd = _mm256_add_ps(b, d), b_d = _mm256_sub_ps(b, d);
    interleave(ac, a_c, a, b);
    interleave(bd, b_d, c, d);
  }
  _mm256_storeu_ps(x, _mm256_mul_ps(a, scale));
  _mm256_storeu_ps(x + 8, _mm256_mul_ps(b, scale));
  _mm256_storeu_ps(x + 16, _mm256_mul_ps(c, scale));
  _mm256_storeu_ps(x + 24, _mm256_mul_ps(d, scale));
}

/// Strides `stride` and 2 * stride.
inline void hadamard_two_strides(const HadamardBlock& block, std::size_t stride, float factor) noexcept {
  const __m256 scale = _mm256_set1_ps(factor);
  for (std::size_t first = 0; first < block.size; first += 4 * stride) {
    for (std::size_t i = first; i < first + stride; i += 8) {
      float* x = block.x + i;
      const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + stride);
      const __m256 c = _mm256_loadu_ps(x + 2 * stride), d = _mm256_loadu_ps(x + 3 * stride);
      const __m256 ab = _mm256_add_ps(a, b), a_b = _mm256_sub_ps(a, b);
      const __m256 cd = _mm256_add_ps(c, d), c_d = _mm256_sub_ps(c, d);
      _mm256_storeu_ps(x, _mm256_mul_ps(_mm256_add_ps(ab, cd), scale));
      _mm256_storeu_ps(x + stride, _mm256_mul_ps(_mm256_add_ps(a_b, c_d), scale));
      _mm256_storeu_ps(x + 2 * stride, _mm256_mul_ps(_mm256_sub_ps(ab, cd), scale));
      _mm256_storeu_ps(x + 3 * stride, _mm256_mul_ps(_mm256_sub_ps(a_b, c_d), scale));
    }
  }
}

/// The last stride, half of the block.
inline void hadamard_last_stride(const HadamardBlock& block) noexcept {
  const __m256 scale = _mm256_set1_ps(block.scale);
  for (std::size_t i = 0; i < block.size / 2; i += 8) {
    const __m256 a = _mm256_loadu_ps(block.x + i), b = _mm256_loadu_ps(block.x + block.size / 2 + i);
    _mm256_storeu_ps(block.x + i, _mm256_mul_ps(_mm256_add_ps(a, b), scale));
    _mm256_storeu_ps(block.x + block.size / 2 + i, _mm256_mul_ps(_mm256_sub_ps(a, b), scale));
  }
}

inline void hadamard(const HadamardBlock& block) noexcept {
  const __m256 scale = _mm256_set1_ps(block.size == 32 ? block.scale : 1.0f);
  for (std::size_t i = 0; i < block.size; i += 32) hadamard_32(block.x + i, scale);
  std::size_t stride = 32;
  for (; 4 * stride <= block.size; stride *= 4) {
    hadamard_two_strides(block, stride, 4 * stride == block.size ? block.scale : 1.0f);
  }
  if (2 * stride == block.size) hadamard_last_stride(block);
}

CBQ_END_REGION
}  // namespace isa::avx2
#endif

namespace isa::portable {

using HadamardFloats = xsimd::batch<float>;
static_assert(16 % HadamardFloats::size == 0,
              "[cbq] Hadamard: registers of more than 512 bits need a larger first step");

inline void hadamard_32(float* x, float factor) noexcept {
  constexpr std::size_t lanes = HadamardFloats::size;
  constexpr std::size_t half = 16 / lanes;
  HadamardFloats v[2 * half];
  for (std::size_t i = 0; i < 2 * half; ++i) v[i] = HadamardFloats::load_unaligned(x + i * lanes);
  for (int stage = 0; stage < 5; ++stage) {
    HadamardFloats next[2 * half];
    for (std::size_t i = 0; i < half; ++i) {
      const HadamardFloats sum = v[i] + v[i + half], difference = v[i] - v[i + half];
      next[2 * i] = xsimd::zip_lo(sum, difference);
      next[2 * i + 1] = xsimd::zip_hi(sum, difference);
    }
    for (std::size_t i = 0; i < 2 * half; ++i) v[i] = next[i];
  }
  for (std::size_t i = 0; i < 2 * half; ++i) (v[i] * HadamardFloats(factor)).store_unaligned(x + i * lanes);
}

inline void hadamard_stride(const HadamardBlock& block, std::size_t stride, float factor) noexcept {
  const HadamardFloats scale(factor);
  for (std::size_t first = 0; first < block.size; first += 2 * stride) {
    for (std::size_t i = first; i < first + stride; i += HadamardFloats::size) {
      const auto a = HadamardFloats::load_unaligned(block.x + i);
      const auto b = HadamardFloats::load_unaligned(block.x + i + stride);
      ((a + b) * scale).store_unaligned(block.x + i);
      ((a - b) * scale).store_unaligned(block.x + i + stride);
    }
  }
}

inline void hadamard(const HadamardBlock& block) noexcept {
  for (std::size_t i = 0; i < block.size; i += 32) hadamard_32(block.x + i, block.size == 32 ? block.scale : 1.0f);
  for (std::size_t stride = 32; stride < block.size; stride *= 2) {
    hadamard_stride(block, stride, 2 * stride == block.size ? block.scale : 1.0f);
  }
}

}  // namespace isa::portable

namespace isa::scalar {

/// In the order of the other instruction sets; any power of two, float or double.
template <class T>
void hadamard(T* x, std::size_t size, T scale) noexcept {
  const auto butterflies = [&](std::size_t stride) {
    for (std::size_t first = 0; first < size; first += 2 * stride) {
      for (std::size_t i = first; i < first + stride; ++i) {
        const T a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
    }
  };
  for (std::size_t stride = (size < 32 ? size : 32) / 2; stride != 0; stride /= 2) butterflies(stride);
  for (std::size_t stride = 32; stride < size; stride *= 2) butterflies(stride);
  for (std::size_t i = 0; i < size; ++i) x[i] *= scale;
}

}  // namespace isa::scalar

/// See HadamardBlock; `isa` is already capped to what the machine has.
inline void hadamard_block(const HadamardBlock& block, Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::hadamard(block);
    case Isa::avx2:
      return isa::avx2::hadamard(block);
#endif
    case Isa::scalar:
      return isa::scalar::hadamard(block.x, block.size, block.scale);
    default:
      return isa::portable::hadamard(block);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
