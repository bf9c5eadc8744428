// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whole rows of stored elements to float: what to_float() gives for each, bit for bit. Halves are converted by F16C
// where the CPU has it, 8 per instruction; element by element they would take longer than reading them from memory.

#include <cstddef>
#include <span>

#include <cbq/core/cpu.hpp>
#include <cbq/core/element.hpp>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cbq {
inline namespace CBQ_ABI {

#if defined(__x86_64__)
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// Converts whole vectors of 8 halves; returns how many elements that were.
inline std::size_t convert_halves(const std::byte* from, std::size_t count, float* to) noexcept {
  std::size_t i = 0;
  for (; count - i >= 8; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 2 * i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(halves));
  }
  return i;
}

CBQ_END_REGION
}  // namespace isa::avx2
#endif

/// `out.size()` stored elements, which need no alignment, as floats: exact for half and bfloat16, rounded for double
/// (infinite beyond float's range).
template <Element T>
void decode_elements(const std::byte* from, std::span<float> out) noexcept {
  std::size_t i = 0;
#if defined(__x86_64__)
  if constexpr (std::same_as<T, half>) {
    if (usable_features().avx2) i = isa::avx2::convert_halves(from, out.size(), out.data());
  }
#endif
  for (; i < out.size(); ++i) {
    T element;
    __builtin_memcpy(&element, from + i * sizeof(T), sizeof element);
    out[i] = to_float(element);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
