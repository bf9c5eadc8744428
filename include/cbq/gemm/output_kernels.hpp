// SPDX-License-Identifier: Apache-2.0
#pragma once

// Finished sums through their epilogue and into the result, a patch at a time: rounded once to half and bfloat16, with
// the bits of to_half() and to_bfloat16() on every instruction set; to int8 to nearest even and clamped to [-127, 127],
// NaN to -127. The epilogue is instantiated inside each target region, where compilers turn it into vectors of that
// width: one copy of its loop per instruction set.

#include <cstddef>
#include <cstdint>

#include <cbq/core/cpu.hpp>
#include <cbq/core/element.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cbq {
inline namespace CBQ_ABI {

/// Rows x columns sums, their epilogue, and where they go.
template <class E, class T>
struct OutputPatch {
  const float* sums = nullptr;
  std::size_t stride = 0;  // of sums
  const E* epilogue = nullptr;
  std::size_t row = 0;  // place of the first sum in the result
  std::size_t column = 0;
  T* to = nullptr;
  std::size_t to_stride = 0;
  std::size_t rows = 0;
  std::size_t columns = 0;
};

template <class E, class T>
using OutputKernel = void (*)(const OutputPatch<E, T>&) noexcept;

/// Columns that pass an epilogue together.
inline constexpr std::size_t output_lanes = 16;

namespace isa::scalar {

/// Nearest even in [-127, 127]. The sum's unit is 1, so that the addition rounds, and its low bits are the integer.
[[nodiscard]] inline std::int8_t to_int8(float value) noexcept {
  const float above = value > -127.0f ? value : -127.0f;
  const float inside = above < 127.0f ? above : 127.0f;
  constexpr float unit_one = 0x1.8p23f;
  return static_cast<std::int8_t>(__builtin_bit_cast(std::int32_t, inside + unit_one) -
                                  __builtin_bit_cast(std::int32_t, unit_one));
}

template <class T>
[[gnu::always_inline]] inline void store_values(T* to, const float* values, std::size_t count) noexcept {
  if constexpr (sizeof(T) == sizeof(float)) {
    __builtin_memcpy(to, values, count * sizeof(float));
  } else {
    for (std::size_t j = 0; j < count; ++j) {
      if constexpr (sizeof(T) == 1) {
        to[j] = to_int8(values[j]);
      } else {
        to[j] = from_float<T>(values[j]);
      }
    }
  }
}

template <class E, class T>
void store_output(const OutputPatch<E, T>& patch) noexcept {
  const E& epilogue = *patch.epilogue;
  for (std::size_t r = 0; r < patch.rows; ++r) {
    const float* sums = patch.sums + r * patch.stride;
    T* to = patch.to + r * patch.to_stride;
    const std::size_t place = patch.row + r;
    for (std::size_t c = 0; c < patch.columns; c += output_lanes) {
      const std::size_t left = patch.columns - c;
      const std::size_t column = patch.column + c;
      float values[output_lanes];
      if (left >= output_lanes) {
        // Of constant length, and into memory that nothing else can mean: compilers make vectors of it.
        for (std::size_t j = 0; j < output_lanes; ++j) values[j] = epilogue(sums[c + j], place, column + j);
        store_values(to + c, values, output_lanes);
      } else {
        for (std::size_t j = 0; j < output_lanes; ++j)
          values[j] = j < left ? static_cast<float>(epilogue(sums[c + j], place, column + j)) : 0.0f;
        store_values(to + c, values, left);
      }
    }
  }
}

}  // namespace isa::scalar

#if defined(__x86_64__)
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

[[gnu::always_inline]] inline __m128i eight_outputs(const float* from, half) noexcept {
  return _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
}
[[gnu::always_inline]] inline __m128i eight_outputs(const float* from, bfloat16) noexcept {
  const __m256 value = _mm256_loadu_ps(from);
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i codes = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
}
[[gnu::always_inline]] inline __m128i eight_outputs(const float* from, std::int8_t) noexcept {
  const __m256 above = _mm256_max_ps(_mm256_loadu_ps(from), _mm256_set1_ps(-127.0f));
  const __m256i codes = _mm256_cvtps_epi32(_mm256_min_ps(above, _mm256_set1_ps(127.0f)));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  return _mm_packs_epi16(words, words);
}

template <class T>
[[gnu::always_inline]] inline void store_values(T* to, const float* values, std::size_t count) noexcept {
  if constexpr (sizeof(T) == sizeof(float)) {
    __builtin_memcpy(to, values, count * sizeof(float));
  } else {
    T codes[output_lanes];
    const __m128i low = eight_outputs(values, T{});
    const __m128i high = eight_outputs(values + 8, T{});
    __builtin_memcpy(static_cast<void*>(codes), &low, 8 * sizeof(T));
    __builtin_memcpy(static_cast<void*>(codes + 8), &high, 8 * sizeof(T));
    __builtin_memcpy(static_cast<void*>(to), codes, count * sizeof(T));
  }
}

template <class E, class T>
void store_output(const OutputPatch<E, T>& patch) noexcept {
  const E& epilogue = *patch.epilogue;
  for (std::size_t r = 0; r < patch.rows; ++r) {
    const float* sums = patch.sums + r * patch.stride;
    T* to = patch.to + r * patch.to_stride;
    const std::size_t place = patch.row + r;
    for (std::size_t c = 0; c < patch.columns; c += output_lanes) {
      const std::size_t left = patch.columns - c;
      const std::size_t column = patch.column + c;
      float values[output_lanes];
      if (left >= output_lanes) {
        // Of constant length, and into memory that nothing else can mean: compilers make vectors of it.
        for (std::size_t j = 0; j < output_lanes; ++j) values[j] = epilogue(sums[c + j], place, column + j);
        store_values(to + c, values, output_lanes);
      } else {
        for (std::size_t j = 0; j < output_lanes; ++j)
          values[j] = j < left ? static_cast<float>(epilogue(sums[c + j], place, column + j)) : 0.0f;
        store_values(to + c, values, left);
      }
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx2

namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

[[gnu::always_inline]] inline void store_lanes(float* to, __mmask16 lanes, __m512 value) noexcept {
  _mm512_mask_storeu_ps(to, lanes, value);
}
[[gnu::always_inline]] inline void store_lanes(half* to, __mmask16 lanes, __m512 value) noexcept {
  _mm256_mask_storeu_epi16(to, lanes, _mm512_maskz_cvtps_ph(lanes, value, _MM_FROUND_TO_NEAREST_INT));
}
[[gnu::always_inline]] inline void store_lanes(bfloat16* to, __mmask16 lanes, __m512 value) noexcept {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i codes = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_mask_storeu_epi16(to, lanes, _mm512_cvtepi32_epi16(codes));
}
[[gnu::always_inline]] inline void store_lanes(std::int8_t* to, __mmask16 lanes, __m512 value) noexcept {
  const __m512 inside = _mm512_min_ps(_mm512_max_ps(value, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f));
  _mm_mask_storeu_epi8(to, lanes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(inside)));
}

template <class T>
[[gnu::always_inline]] inline void store_values(T* to, const float* values, std::size_t count) noexcept {
  store_lanes(to, static_cast<__mmask16>((1u << count) - 1u), _mm512_loadu_ps(values));
}

template <class E, class T>
void store_output(const OutputPatch<E, T>& patch) noexcept {
  const E& epilogue = *patch.epilogue;
  for (std::size_t r = 0; r < patch.rows; ++r) {
    const float* sums = patch.sums + r * patch.stride;
    T* to = patch.to + r * patch.to_stride;
    const std::size_t place = patch.row + r;
    for (std::size_t c = 0; c < patch.columns; c += output_lanes) {
      const std::size_t left = patch.columns - c;
      const std::size_t column = patch.column + c;
      float values[output_lanes];
      if (left >= output_lanes) {
        // Of constant length, and into memory that nothing else can mean: compilers make vectors of it.
        for (std::size_t j = 0; j < output_lanes; ++j) values[j] = epilogue(sums[c + j], place, column + j);
        store_values(to + c, values, output_lanes);
      } else {
        for (std::size_t j = 0; j < output_lanes; ++j)
          values[j] = j < left ? static_cast<float>(epilogue(sums[c + j], place, column + j)) : 0.0f;
        store_values(to + c, values, left);
      }
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
#endif

/// The kernel for `isa`, which the machine has. E: an epilogue; T: float, half, bfloat16 or int8.
template <class E, class T>
[[nodiscard]] OutputKernel<E, T> output_kernel(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return &isa::avx512_vnni::store_output<E, T>;
    case Isa::avx2:
      return &isa::avx2::store_output<E, T>;
#endif
    default:
      return &isa::scalar::store_output<E, T>;
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
