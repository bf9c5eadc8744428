// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packs floats with AVX-512, 16 outputs x 32 inputs at the time and without codes in memory between. Codes of 16 inputs
// are 16 integers of 32 bits: 4 steps, one per 128-bit lane. vpackusdw and vpackuswb work within lanes, so those of 4
// outputs become 16 bytes of each step's line; transposing the lanes of four such registers makes 4 whole steps.
//
//   outputs 0..3, inputs 0..15  ->  | step 0: o0 o1 o2 o3 | step 1: .. | step 2: .. | step 3: .. |

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_panel.hpp>
#include <cbq/gemm/float_scales_avx512.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni::float_packing {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// 16 bytes of four steps from the codes of four outputs.
[[nodiscard, gnu::always_inline]] inline __m512i join_outputs(const __m512i (&codes)[4], __m512i top) noexcept {
  const __m512i first = _mm512_packus_epi32(codes[0], codes[1]);
  return _mm512_min_epu8(_mm512_packus_epi16(first, _mm512_packus_epi32(codes[2], codes[3])), top);
}

/// Codes of 16 inputs of 16 outputs by division.
template <class T>
[[gnu::noinline, gnu::cold]] void divide_codes(const T* from, std::size_t stride, const GroupGrid& grid,
                                               __m512i* quads) noexcept {
  const __m512i magic = _mm512_set1_epi32(packing::rounding_magic_bits);
  const __m512 limit = _mm512_set1_ps(512.0f);  // beyond every grid and within int32
  for (std::size_t q = 0; q < 4; ++q) {
    __m512i codes[4];
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t o = 4 * q + i;
      const __m512 quotient = _mm512_div_ps(load_floats(from + o * stride), _mm512_set1_ps(grid.scale[o]));
      const __m512i zero = _mm512_sub_epi32(magic, _mm512_set1_epi32(grid.offset[o]));
      // Below int32 the conversion gives its least number, which packs to 0 like all others below the grid.
      codes[i] = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_min_ps(quotient, limit)), zero);
    }
    quads[q] = join_outputs(codes, grid.top);
  }
}

/// Four steps of a block from 16 inputs of its rows.
template <class T>
[[gnu::always_inline]] inline void half_block(const T* from, std::size_t stride, const GroupGrid& grid,
                                              __m512i* steps) noexcept {
  const __m512 magic = _mm512_set1_ps(packing::rounding_magic);
  __m512i quads[4];
  __m512i differ = _mm512_setzero_si512();
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < 4; ++q) {
    __m512i codes[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t o = 4 * q + i;
      const __m512 x = load_floats(from + o * stride);
      const __m512i low = _mm512_castps_si512(_mm512_fmadd_ps(x, _mm512_set1_ps(grid.below[o]), magic));
      const __m512i high = _mm512_castps_si512(_mm512_fmadd_ps(x, _mm512_set1_ps(grid.above[o]), magic));
      differ = _mm512_ternarylogic_epi32(differ, low, high, 0xf6);  // differ | (low ^ high)
      codes[i] = _mm512_sub_epi32(low, _mm512_set1_epi32(grid.offset[o]));
    }
    quads[q] = join_outputs(codes, grid.top);
  }
  if (__builtin_expect(_mm512_test_epi32_mask(differ, differ) != 0, 0)) divide_codes(from, stride, grid, quads);
  const __m512i low01 = _mm512_shuffle_i32x4(quads[0], quads[1], 0x44);
  const __m512i high01 = _mm512_shuffle_i32x4(quads[0], quads[1], 0xee);
  const __m512i low23 = _mm512_shuffle_i32x4(quads[2], quads[3], 0x44);
  const __m512i high23 = _mm512_shuffle_i32x4(quads[2], quads[3], 0xee);
  steps[0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
  steps[1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
  steps[2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
  steps[3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
}

/// Writes one block of `bits`-bit codes from its 8 steps.
[[gnu::always_inline]] inline void store_steps(const __m512i (&s)[8], std::size_t bits, std::byte* block) noexcept {
  if (bits == 8) {
    _Pragma("GCC unroll 8") for (std::size_t l = 0; l < 8; ++l) _mm512_storeu_si512(block + l * line_bytes, s[l]);
  } else if (bits == 4) {
    _Pragma("GCC unroll 4") for (std::size_t l = 0; l < 4; ++l) {
      _mm512_storeu_si512(block + l * line_bytes, _mm512_or_si512(s[2 * l], _mm512_slli_epi32(s[2 * l + 1], 4)));
    }
  } else {
    const __m512i two_bits = _mm512_set1_epi8(3);
    __m512i high = _mm512_setzero_si512();
    _Pragma("GCC unroll 2") for (std::size_t l = 0; l < 2; ++l) {
      __m512i line = _mm512_setzero_si512();
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
        const __m512i low = _mm512_and_si512(s[4 * l + i], two_bits);
        const __m512i third = _mm512_srli_epi32(_mm512_andnot_si512(two_bits, s[4 * l + i]), 2);
        line = _mm512_or_si512(line, _mm512_slli_epi32(low, static_cast<unsigned>(2 * i)));
        high = _mm512_or_si512(high, _mm512_slli_epi32(third, static_cast<unsigned>(4 * l + i)));
      }
      _mm512_storeu_si512(block + l * line_bytes, line);
    }
    if (bits == 3) _mm512_storeu_si512(block + 2 * line_bytes, high);
  }
}

/// Packs the blocks of a group.
template <class T>
[[gnu::always_inline]] inline void pack_group(const packing::FloatPanel<T>& job, const packing::GroupSpan& group,
                                              const GroupGrid& grid) noexcept {
  const PackedLayout& layout = *job.panel.layout;
  std::byte* out = job.panel.data + group.index * layout.group_bytes + layout.header_bytes;
  packing::BlockCopy<T> copy;
  for (std::size_t i = 0; i < group.count; i += block_inputs, out += block_bytes(layout.bits)) {
    const std::size_t left = group.count - i;
    const std::size_t inputs = left < block_inputs ? left : block_inputs;
    packing::read_ahead(job, group.first + i);
    const packing::BlockRows<T> rows = packing::block_rows(job, group.first + i, inputs, copy);
    __m512i steps[8];
    half_block(rows.from, rows.stride, grid, steps);
    half_block(rows.from + 16, rows.stride, grid, steps + 4);
    if (rows.from == copy.values) {
      for (std::size_t s = 0; s < 8; ++s) {
        steps[s] = _mm512_maskz_mov_epi8(packing::step_mask(s, job.panel.count, inputs), steps[s]);
      }
    }
    store_steps(steps, layout.bits, out);
  }
}

/// See packing::FloatPanelKernel. A group's scales are found before the group before it is packed: the long way from
/// its ends to its scales costs no time then.
template <Zero Z, class T>
bool pack_panel(const packing::FloatPanel<T>& job) noexcept {
  GroupGrid grids[2];
  const std::size_t groups = job.panel.layout->groups;
  bool finite = true;
  for (std::size_t g = 0; g <= groups; ++g) {
    if (g < groups) {
      const packing::GroupSpan group = packing::group_span(job.panel, g);
      if (job.origin == packing::Scales::cover) finite = cover<Z>(job, g, group_ends<Z>(job, group)) && finite;
      prepare<Z>(job, g, grids[g % 2]);
    }
    if (g != 0) pack_group(job, packing::group_span(job.panel, g - 1), grids[(g - 1) % 2]);
  }
  return finite;
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni::float_packing
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
