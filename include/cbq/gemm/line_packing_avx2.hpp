// SPDX-License-Identifier: Apache-2.0
#pragma once

// line_packing.hpp with AVX2: codes of an output are one register, and eight outputs are packed at the time, with half
// of the instructions for 32 codes. The lanes of joined quads hold
//
//   even   line 0 | line 2       odd   line 1 | line 3       (4 bits; of fewer, pairs of steps that are joined again)

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/line_packing.hpp>
#include <cbq/gemm/packed_layout.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// Lines' words of four outputs, see above.
struct JoinedQuad {
  __m256i even;
  __m256i odd;
};

/// Outputs that are packed at the time.
inline constexpr std::size_t packed_octet = 8;

/// From the codes of four outputs: step 2 j | step (2 j + 1) << (32 - Shift), byte by byte.
template <int Shift>
[[nodiscard, gnu::always_inline]] inline JoinedQuad join_quad(const __m256i* codes) noexcept {
  __m256 words[4];
  _Pragma("GCC unroll 4") for (std::size_t o = 0; o < 4; ++o) {
    words[o] = _mm256_castsi256_ps(_mm256_or_si256(codes[o], _mm256_srli_epi64(codes[o], Shift)));
  }
  const __m256 first = _mm256_shuffle_ps(words[0], words[1], 0x88);
  const __m256 second = _mm256_shuffle_ps(words[2], words[3], 0x88);
  return {_mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88)),
          _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xdd))};
}

/// Stores the low lanes of both quads at `line`, the high ones `Apart` lines later.
template <std::size_t Apart>
[[gnu::always_inline]] inline void store_lanes(__m256i first, __m256i second, std::byte* line) noexcept {
  auto* const low = reinterpret_cast<__m256i*>(line);
  auto* const high = reinterpret_cast<__m256i*>(line + Apart * line_bytes);
  _mm256_storeu_si256(low, _mm256_permute2x128_si256(first, second, 0x20));
  _mm256_storeu_si256(high, _mm256_permute2x128_si256(first, second, 0x31));
}

/// Steps of four outputs: element s has step s in its low lane and step s + 4 in its high one.
struct QuadSteps {
  __m256i step[4];
};

[[nodiscard, gnu::always_inline]] inline QuadSteps quad_steps(const __m256i* codes) noexcept {
  const __m256i low01 = _mm256_unpacklo_epi32(codes[0], codes[1]);
  const __m256i high01 = _mm256_unpackhi_epi32(codes[0], codes[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(codes[2], codes[3]);
  const __m256i high23 = _mm256_unpackhi_epi32(codes[2], codes[3]);
  return {{_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
           _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)}};
}

/// Lanes: lines 0 and 1 of codes of 2 bits.
[[nodiscard, gnu::always_inline]] inline __m256i join_twice(const JoinedQuad& pairs, int shift) noexcept {
  return _mm256_or_si256(pairs.even, _mm256_slli_epi32(pairs.odd, shift));
}

/// Writes the codes of eight outputs; `lines` points at their 32 bytes in the first line of the block. What codes above
/// the largest of `Bits` bits become is unspecified.
template <int Bits>
[[gnu::always_inline]] inline void store_octet(const __m256i (&codes)[packed_octet], std::byte* lines) noexcept {
  if constexpr (Bits == 8) {
    const QuadSteps first = quad_steps(codes);
    const QuadSteps second = quad_steps(codes + 4);
    _Pragma("GCC unroll 4") for (std::size_t s = 0; s < 4; ++s) {
      store_lanes<4>(first.step[s], second.step[s], lines + s * line_bytes);
    }
  } else if constexpr (Bits == 4) {
    const JoinedQuad first = join_quad<28>(codes);
    const JoinedQuad second = join_quad<28>(codes + 4);
    store_lanes<2>(first.even, second.even, lines);
    store_lanes<2>(first.odd, second.odd, lines + line_bytes);
  } else {
    __m256i low[packed_octet];
    const __m256i two_bits = _mm256_set1_epi8(3);
    _Pragma("GCC unroll 8") for (std::size_t o = 0; o < packed_octet; ++o) {
      low[o] = _mm256_and_si256(codes[o], two_bits);
    }
    store_lanes<1>(join_twice(join_quad<30>(low), 4), join_twice(join_quad<30>(low + 4), 4), lines);
    if constexpr (Bits == 3) {
      _Pragma("GCC unroll 8") for (std::size_t o = 0; o < packed_octet; ++o) {
        low[o] = _mm256_and_si256(_mm256_srli_epi64(codes[o], 2), _mm256_set1_epi8(1));
      }
      const __m256i first = join_twice(join_quad<31>(low), 2);
      const __m256i second = join_twice(join_quad<31>(low + 4), 2);
      const __m256i steps_0_to_3 = _mm256_permute2x128_si256(first, second, 0x20);
      const __m256i steps_4_to_7 = _mm256_permute2x128_si256(first, second, 0x31);
      const __m256i line = _mm256_or_si256(steps_0_to_3, _mm256_slli_epi32(steps_4_to_7, 4));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(lines + 2 * line_bytes), line);
    }
  }
}

/// Packs the blocks at `places` of a panel whose first output is `first`; codes are ored into `seen`.
template <int Bits, class Source, class Place, std::size_t Most>
void pack_places(const Source& source, const Place (&places)[Most], std::size_t blocks, std::size_t first,
                 packing::BlockCodes& seen) noexcept {
  __m256i all = _mm256_setzero_si256();
  for (std::size_t o = 0; o < panel_outputs; o += packed_octet) {
    for (std::size_t b = 0; b < blocks; ++b) {
      __m256i codes[packed_octet];
      _Pragma("GCC unroll 8") for (std::size_t i = 0; i < packed_octet; ++i) {
        const packing::BlockCodes row = source.codes(first + o + i, places[b].input, places[b].count);
        // Not through memory: a load of 32 bytes would wait for both stores of 16.
        const auto low = _mm256_castsi128_si256(__builtin_bit_cast(__m128i, row.half[0]));
        codes[i] = _mm256_inserti128_si256(low, __builtin_bit_cast(__m128i, row.half[1]), 1);
        all = _mm256_or_si256(all, codes[i]);
      }
      store_octet<Bits>(codes, places[b].block + o * step_inputs);
    }
  }
  packing::BlockCodes ored;
  __builtin_memcpy(&ored, &all, sizeof ored);
  seen.half[0] |= ored.half[0];
  seen.half[1] |= ored.half[1];
}

CBQ_END_REGION
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
