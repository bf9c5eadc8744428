// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packs floats with AVX2: what float_packing_avx512.hpp does, with 8 inputs in a register and thus two steps in the
// lanes of what 4 outputs become. The steps of a block pass through 512 bytes of the stack before they are joined to
// lines.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_panel.hpp>
#include <cbq/gemm/float_scales_avx2.hpp>

#if defined(__x86_64__)
#include <immintrin.h>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2::float_packing {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// 16 bytes of two steps from the codes of four outputs.
[[nodiscard, gnu::always_inline]] inline __m256i join_outputs(const __m256i (&codes)[4], __m256i top) noexcept {
  const __m256i first = _mm256_packus_epi32(codes[0], codes[1]);
  return _mm256_min_epu8(_mm256_packus_epi16(first, _mm256_packus_epi32(codes[2], codes[3])), top);
}

/// Codes of 8 inputs of 16 outputs by division.
template <class T>
[[gnu::noinline, gnu::cold]] void divide_codes(const T* from, std::size_t stride, const GroupGrid& grid,
                                               __m256i* quads) noexcept {
  const __m256i magic = _mm256_set1_epi32(packing::rounding_magic_bits);
  const __m256 limit = _mm256_set1_ps(512.0f);  // beyond every grid and within int32
  for (std::size_t q = 0; q < 4; ++q) {
    __m256i codes[4];
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t o = 4 * q + i;
      const __m256 quotient = _mm256_div_ps(load_floats(from + o * stride), _mm256_set1_ps(grid.scale[o]));
      const __m256i zero = _mm256_sub_epi32(magic, _mm256_set1_epi32(grid.offset[o]));
      // Below int32 the conversion gives its least number, which packs to 0 like all others below the grid.
      codes[i] = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_min_ps(quotient, limit)), zero);
    }
    quads[q] = join_outputs(codes, grid.top);
  }
}

/// Eight steps of a block, 64 bytes each.
struct alignas(64) BlockSteps {
  std::byte bytes[8 * line_bytes];
};

/// Two steps of a block from 8 inputs of its rows.
template <class T>
[[gnu::always_inline]] inline void two_steps(const T* from, std::size_t stride, const GroupGrid& grid,
                                             std::byte* steps) noexcept {
  const __m256 magic = _mm256_set1_ps(packing::rounding_magic);
  __m256i quads[4];
  __m256i differ = _mm256_setzero_si256();
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < 4; ++q) {
    __m256i codes[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t o = 4 * q + i;
      const __m256 x = load_floats(from + o * stride);
      const __m256 low = _mm256_fmadd_ps(x, _mm256_broadcast_ss(grid.below + o), magic);
      const __m256 high = _mm256_fmadd_ps(x, _mm256_broadcast_ss(grid.above + o), magic);
      differ = _mm256_or_si256(differ, _mm256_castps_si256(_mm256_xor_ps(low, high)));
      codes[i] = _mm256_sub_epi32(_mm256_castps_si256(low), _mm256_set1_epi32(grid.offset[o]));
    }
    quads[q] = join_outputs(codes, grid.top);
  }
  if (__builtin_expect(_mm256_testz_si256(differ, differ) == 0, 0)) divide_codes(from, stride, grid, quads);
  for (std::size_t h = 0; h < 2; ++h) {
    auto* const first = reinterpret_cast<__m256i*>(steps + 32 * h);
    auto* const second = reinterpret_cast<__m256i*>(steps + line_bytes + 32 * h);
    _mm256_store_si256(first, _mm256_permute2x128_si256(quads[2 * h], quads[2 * h + 1], 0x20));
    _mm256_store_si256(second, _mm256_permute2x128_si256(quads[2 * h], quads[2 * h + 1], 0x31));
  }
}

/// Writes one block of `bits`-bit codes from its 8 steps.
[[gnu::always_inline]] inline void store_steps(const BlockSteps& steps, std::size_t bits, std::byte* block) noexcept {
  for (std::size_t h = 0; h < line_bytes; h += 32) {
    __m256i s[8];
    _Pragma("GCC unroll 8") for (std::size_t i = 0; i < 8; ++i) {
      s[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(steps.bytes + i * line_bytes + h));
    }
    if (bits == 8) {
      _Pragma("GCC unroll 8") for (std::size_t l = 0; l < 8; ++l) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(block + l * line_bytes + h), s[l]);
      }
    } else if (bits == 4) {
      _Pragma("GCC unroll 4") for (std::size_t l = 0; l < 4; ++l) {
        const __m256i line = _mm256_or_si256(s[2 * l], _mm256_slli_epi32(s[2 * l + 1], 4));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(block + l * line_bytes + h), line);
      }
    } else {
      const __m256i two_bits = _mm256_set1_epi8(3);
      __m256i high = _mm256_setzero_si256();
      _Pragma("GCC unroll 2") for (std::size_t l = 0; l < 2; ++l) {
        __m256i line = _mm256_setzero_si256();
        _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
          const __m256i low = _mm256_and_si256(s[4 * l + i], two_bits);
          const __m256i third = _mm256_srli_epi32(_mm256_andnot_si256(two_bits, s[4 * l + i]), 2);
          line = _mm256_or_si256(line, _mm256_slli_epi32(low, static_cast<int>(2 * i)));
          high = _mm256_or_si256(high, _mm256_slli_epi32(third, static_cast<int>(4 * l + i)));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(block + l * line_bytes + h), line);
      }
      if (bits == 3) _mm256_storeu_si256(reinterpret_cast<__m256i*>(block + 2 * line_bytes + h), high);
    }
  }
}

/// Zeros in place of codes of inputs and outputs that the matrix does not have.
[[gnu::noinline, gnu::cold]] inline void clear_padding(BlockSteps& steps, std::size_t outputs,
                                                       std::size_t inputs) noexcept {
  for (std::size_t s = 0; s < 8; ++s) {
    const std::uint64_t mask = packing::step_mask(s, outputs, inputs);
    for (std::size_t i = 0; i < line_bytes; ++i) {
      if ((mask >> i & 1u) == 0) steps.bytes[s * line_bytes + i] = std::byte{0};
    }
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
    BlockSteps steps;
    for (std::size_t p = 0; p < 4; ++p) {
      two_steps(rows.from + 8 * p, rows.stride, grid, steps.bytes + 2 * p * line_bytes);
    }
    if (rows.from == copy.values) clear_padding(steps, job.panel.count, inputs);
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
      if (job.origin == packing::Scales::cover) {
        GroupEnds ends;
        group_ends<Z>(job, group, ends);
        finite = cover<Z>(job, g, ends) && finite;
      }
      prepare<Z>(job, g, grids[g % 2]);
    }
    if (g != 0) pack_group(job, packing::group_span(job.panel, g - 1), grids[(g - 1) % 2]);
  }
  return finite;
}

CBQ_END_REGION
}  // namespace isa::avx2::float_packing
}  // namespace CBQ_ABI
}  // namespace cbq
#endif
