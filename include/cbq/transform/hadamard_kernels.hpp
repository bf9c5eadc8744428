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

/// Strides 8, 4, 2 and 1 of one register. x * -1 + y is y - x with one rounding, as x + y is.
[[gnu::always_inline]] inline __m512 hadamard_16(__m512 x) noexcept {
  const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-1.0f);
  x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xff00, one, minus), _mm512_shuffle_f32x4(x, x, 0x4e));
  x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xf0f0, one, minus), _mm512_shuffle_f32x4(x, x, 0xb1));
  x = _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xcccc, one, minus), _mm512_permute_ps(x, 0x4e));
  return _mm512_fmadd_ps(x, _mm512_mask_blend_ps(0xaaaa, one, minus), _mm512_permute_ps(x, 0xb1));
}

[[gnu::always_inline]] inline void hadamard_32(float* x, __m512 scale) noexcept {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  _mm512_storeu_ps(x, _mm512_mul_ps(hadamard_16(_mm512_add_ps(a, b)), scale));
  _mm512_storeu_ps(x + 16, _mm512_mul_ps(hadamard_16(_mm512_sub_ps(a, b)), scale));
}

/// Strides up to 64 of 128 elements: one pass over memory less.
[[gnu::always_inline]] inline void hadamard_128(float* x, __m512 scale) noexcept {
  __m512 v[8];
  _Pragma("GCC unroll 4") for (int i = 0; i < 8; i += 2) {
    const __m512 a = _mm512_loadu_ps(x + 16 * i), b = _mm512_loadu_ps(x + 16 * i + 16);
    v[i] = hadamard_16(_mm512_add_ps(a, b));
    v[i + 1] = hadamard_16(_mm512_sub_ps(a, b));
  }
  _Pragma("GCC unroll 2") for (int i = 0; i < 2; ++i) {
    const __m512 ab = _mm512_add_ps(v[i], v[i + 2]), a_b = _mm512_sub_ps(v[i], v[i + 2]);
    const __m512 cd = _mm512_add_ps(v[i + 4], v[i + 6]), c_d = _mm512_sub_ps(v[i + 4], v[i + 6]);
    _mm512_storeu_ps(x + 16 * i, _mm512_mul_ps(_mm512_add_ps(ab, cd), scale));
    _mm512_storeu_ps(x + 16 * i + 32, _mm512_mul_ps(_mm512_add_ps(a_b, c_d), scale));
    _mm512_storeu_ps(x + 16 * i + 64, _mm512_mul_ps(_mm512_sub_ps(ab, cd), scale));
    _mm512_storeu_ps(x + 16 * i + 96, _mm512_mul_ps(_mm512_sub_ps(a_b, c_d), scale));
  }
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
  std::size_t stride = block.size < 128 ? 32 : 128;  // the first that remains
  const __m512 scale = _mm512_set1_ps(block.size == stride ? block.scale : 1.0f);
  if (stride == 32) {
    for (std::size_t i = 0; i < block.size; i += 32) hadamard_32(block.x + i, scale);
  } else {
    for (std::size_t i = 0; i < block.size; i += 128) hadamard_128(block.x + i, scale);
  }
  for (; 4 * stride <= block.size; stride *= 4) {
    hadamard_two_strides(block, stride, 4 * stride == block.size ? block.scale : 1.0f);
  }
  if (2 * stride == block.size) hadamard_last_stride(block);
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni

namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// Strides 4, 2 and 1 of one register. x * -1 + y is y - x with one rounding, as x + y is.
[[gnu::always_inline]] inline __m256 hadamard_8(__m256 x) noexcept {
  const __m256 one = _mm256_set1_ps(1.0f), minus = _mm256_set1_ps(-1.0f);
  x = _mm256_fmadd_ps(x, _mm256_blend_ps(one, minus, 0xf0), _mm256_permute2f128_ps(x, x, 0x01));
  x = _mm256_fmadd_ps(x, _mm256_blend_ps(one, minus, 0xcc), _mm256_permute_ps(x, 0x4e));
  return _mm256_fmadd_ps(x, _mm256_blend_ps(one, minus, 0xaa), _mm256_permute_ps(x, 0xb1));
}

[[gnu::always_inline]] inline void hadamard_32(float* x, __m256 scale) noexcept {
  const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
  const __m256 c = _mm256_loadu_ps(x + 16), d = _mm256_loadu_ps(x + 24);
  const __m256 ac = _mm256_add_ps(a, c), a_c = _mm256_sub_ps(a, c);
  const __m256 bd = _mm256_add_ps(b, d), b_d = _mm256_sub_ps(b, d);
  _mm256_storeu_ps(x, _mm256_mul_ps(hadamard_8(_mm256_add_ps(ac, bd)), scale));
  _mm256_storeu_ps(x + 8, _mm256_mul_ps(hadamard_8(_mm256_sub_ps(ac, bd)), scale));
  _mm256_storeu_ps(x + 16, _mm256_mul_ps(hadamard_8(_mm256_add_ps(a_c, b_d)), scale));
  _mm256_storeu_ps(x + 24, _mm256_mul_ps(hadamard_8(_mm256_sub_ps(a_c, b_d)), scale));
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
