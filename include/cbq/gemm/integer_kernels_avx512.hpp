// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 F, BW, DQ, VL, VNNI. Unsigned codes are the first operand of vpdpbusd and signed activations the second, so
// that neither signs nor tables are needed; the zero point is the initial value of the accumulator. Register tile: 5
// rows x 2 panels = 10 integer and 10 float accumulators, 2 decoded vectors, 1 broadcast. One broadcast of 4
// activations feeds two products, because a 512-bit load is as scarce as a product. Group epilogue: 1 conversion and 1
// FMA per row and panel, and 1 product where activations have a scale per group.
//
// Loads run ahead into memory only as far as waiting products leave room: far enough with one row, or few rows of 8-bit
// codes. The others ask for every line of what is read next; with some left out the processor recognizes no stream.

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

/// Codes of step `Step` of one block, one byte each: 16 outputs x 4 inputs.
template <int Bits, unsigned Step>
[[gnu::always_inline]] inline __m512i decode_step(const std::byte* block) noexcept {
  if constexpr (Bits == 8) {
    return _mm512_loadu_si512(block + Step * 64);
  } else if constexpr (Bits == 4) {
    const __m512i line = _mm512_loadu_si512(block + Step / 2 * 64);
    const __m512i mask = _mm512_set1_epi8(15);
    return _mm512_and_si512(Step % 2 == 0 ? line : _mm512_srli_epi16(line, 4), mask);
  } else {
    const __m512i line = _mm512_loadu_si512(block + Step / 4 * 64);
    const __m512i low =
        _mm512_and_si512(Step % 4 == 0 ? line : _mm512_srli_epi16(line, 2 * (Step % 4)), _mm512_set1_epi8(3));
    if constexpr (Bits == 2) {
      return low;
    } else {
      const __m512i high_line = _mm512_loadu_si512(block + 2 * 64);
      const __m512i high = Step < 2 ? _mm512_slli_epi16(high_line, Step < 2 ? 2 - Step : 0)
                                    : _mm512_srli_epi16(high_line, Step < 2 ? 0 : Step - 2);
      // low | (high & 4) in one ternary operation
      return _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(4), 0xf8);
    }
  }
}

/// Whether codes are multiplied where they lie in their bytes, 2^shift times too large, and sums shifted once per
/// group.
template <int Bits, std::size_t Rows, std::size_t Panels>
inline constexpr bool multiplies_in_place = Rows * Panels == 1 && (Bits == 2 || Bits == 4);

/// Shift of the codes of a step in their bytes.
template <int Bits>
[[nodiscard]] consteval unsigned step_shift(std::size_t step) noexcept {
  return static_cast<unsigned>(step % (8 / Bits)) * Bits;
}

/// Codes of step `Step` of one block of 2 or 4 bits, times 2^step_shift.
template <int Bits, unsigned Step>
[[gnu::always_inline]] inline __m512i step_in_place(const std::byte* block) noexcept {
  constexpr auto mask = static_cast<char>(((1 << Bits) - 1) << step_shift<Bits>(Step));
  return _mm512_and_si512(_mm512_loadu_si512(block + Step * Bits / 8 * 64), _mm512_set1_epi8(mask));
}

/// Adds the products of one step; Step counts down the template so that every decode has its shift as a constant.
template <int Bits, unsigned Step, std::size_t Rows, std::size_t Panels, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_steps(__m512i (&sums)[Chains][Rows][Panels], const std::byte* blocks,
                                                  std::size_t panel_bytes, const std::int8_t* codes) noexcept {
  __m512i weights[Panels];
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
    if constexpr (multiplies_in_place<Bits, Rows, Panels>) {
      weights[p] = step_in_place<Bits, Step>(blocks);
    } else {
      weights[p] = decode_step<Bits, Step>(blocks + p * panel_bytes);
    }
    // With one row memory is quickest when lines are touched in ascending order, which compilers do not keep: 99 % of
    // the DRAM rate, and 72 to 93 % otherwise.
    if constexpr (Bits == 8 && Rows == 1) asm volatile("" : "+v"(weights[p]));
  }
  _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, codes + r * block_inputs + Step * 4, sizeof four);
    const __m512i activations = _mm512_set1_epi32(four);
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      __m512i& sum = sums[Step % Chains][r][p];
      sum = _mm512_dpbusd_epi32(sum, weights[p], activations);
    }
  }
  if constexpr (Step < 7) multiply_steps<Bits, Step + 1, Rows, Panels, Chains>(sums, blocks, panel_bytes, codes);
}

/// Adds all chains to the first.
template <int Bits, std::size_t Chains, std::size_t Rows, std::size_t Panels>
[[gnu::always_inline]] inline void join_chains(__m512i (&sums)[Chains][Rows][Panels]) noexcept {
  if constexpr (multiplies_in_place<Bits, Rows, Panels>) {
    sums[1][0][0] = _mm512_srai_epi32(sums[1][0][0], step_shift<Bits>(1));
    if constexpr (Bits == 2) sums[2][0][0] = _mm512_srai_epi32(sums[2][0][0], step_shift<Bits>(2));
    sums[3][0][0] = _mm512_srai_epi32(sums[3][0][0], step_shift<Bits>(3));
  }
  _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c)
      _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
          _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) sums[0][r][p] =
              _mm512_add_epi32(sums[0][r][p], sums[c][r][p]);
}

/// Adds the sums of a group, which starts at `panel`, to the totals. `row_scales`: of the activations of this group, or
/// null.
template <std::size_t Rows, std::size_t Panels>
[[gnu::always_inline]] inline void add_group(__m512 (&totals)[Rows][Panels], const __m512i (&sums)[Rows][Panels],
                                             const std::byte* panel, std::size_t panel_bytes,
                                             const float* row_scales) noexcept {
  __m512 scales[Panels];
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) scales[p] =
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + p * panel_bytes)));
  if (row_scales == nullptr) [[likely]] {
    _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
        _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) totals[r][p] =
            _mm512_fmadd_ps(scales[p], _mm512_cvtepi32_ps(sums[r][p]), totals[r][p]);
  } else {
    _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
        _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) totals[r][p] = _mm512_fmadd_ps(
            _mm512_mul_ps(scales[p], _mm512_set1_ps(row_scales[r])), _mm512_cvtepi32_ps(sums[r][p]), totals[r][p]);
  }
}

/// Memory to ask for while something else is multiplied: from `first` on, as much as `panels` panels per panel that is
/// read. It may lie outside of the array.
struct Ahead {
  std::uintptr_t first = 0;
  std::size_t panels = 0;
};

/// Asks for the lines in front of `end` that were not yet asked for. Into L2: L1 has too few misses in flight.
[[gnu::always_inline]] inline void prefetch_until(std::uintptr_t& line, std::uintptr_t end) noexcept {
  for (; line < end; line += line_bytes) _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
}

/// Rows [first_row, first_row + Rows) of the tile. Chains: independent accumulators per result, where Rows x Panels
/// alone are too few to hide the latency of vpdpbusd. A single row asks for nothing.
template <int Bits, Zero Z, std::size_t Rows, std::size_t Panels>
inline void multiply_rows(const IntegerTile& tile, const std::byte* panel, std::size_t first_row, float* out,
                          const Ahead& ahead) noexcept {
  constexpr std::size_t Chains = Rows * Panels == 1 ? 4 : Rows * Panels == 2 ? 2 : 1;
  __m512 totals[Rows][Panels];
  _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) totals[r][p] = _mm512_setzero_ps();
  const std::int8_t* codes = tile.codes + first_row * block_inputs;
  const std::int32_t* zero_terms = tile.zero_terms + first_row;
  // A step of 0 where there are none: a condition here costs 4 rows 2 % of their speed.
  const bool grouped = tile.group_scales != nullptr;
  const float* group_scales = tile.group_scales + (grouped ? first_row : 0);
  const std::size_t group_scales_step = grouped ? tile.panel_rows : 0;
  const std::size_t block_stride = block_inputs * tile.panel_rows;
  std::size_t blocks_left = tile.blocks;
  [[maybe_unused]] std::uintptr_t line = ahead.first;
  [[maybe_unused]] std::uintptr_t ahead_end = ahead.first;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    if constexpr (Rows > 1) ahead_end += ahead.panels * tile.header_bytes;
    __m512i sums[Chains][Rows][Panels];
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      __m512i zero = _mm512_setzero_si512();
      if constexpr (Z == Zero::affine) {
        const std::byte* zeros = panel + p * tile.panel_bytes + group_scales_bytes;
        zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros)));
      }
      _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r) {
        const __m512i term = _mm512_set1_epi32(zero_terms[r]);
        sums[0][r][p] = Z == Zero::affine ? _mm512_mullo_epi32(zero, term) : term;
        _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c) sums[c][r][p] = _mm512_setzero_si512();
      }
    }
    const std::byte* blocks = panel + tile.header_bytes;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    for (std::size_t block = 0; block < count; ++block) {
      if constexpr (Rows > 1) prefetch_until(line, ahead_end += ahead.panels * (Bits * 64));
      multiply_steps<Bits, 0, Rows, Panels, Chains>(sums, blocks, tile.panel_bytes, codes);
      blocks += Bits * 64;
      codes += block_stride;
    }
    join_chains<Bits>(sums);
    add_group(totals, sums[0], panel, tile.panel_bytes, group_scales);
    group_scales += group_scales_step;
    zero_terms += tile.panel_rows;
    panel += tile.group_bytes;
  }
  _Pragma("GCC unroll 16") for (std::size_t r = 0; r < Rows; ++r) {
    const __m512 scale = _mm512_set1_ps(tile.row_scales[first_row + r] * tile.weight_multiplier);
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      _mm512_storeu_ps(out + (first_row + r) * tile.out_stride + p * panel_outputs, _mm512_mul_ps(totals[r][p], scale));
    }
  }
}

/// Most rows of one register tile.
inline constexpr std::size_t most_tile_rows = 5;

/// All rows of the tile in even pieces. Each of the first two asks for what `ahead` says, one after the other.
template <int Bits, Zero Z, std::size_t Panels>
inline void multiply_panels(const IntegerTile& tile, const std::byte* panel, float* out, Ahead ahead) noexcept {
  const std::size_t pieces = (tile.panel_rows + most_tile_rows - 1) / most_tile_rows;
  for (std::size_t piece = 0, row = 0; piece < pieces; ++piece) {
    const std::size_t rows = (tile.panel_rows - row + (pieces - piece) - 1) / (pieces - piece);
    switch (rows) {
      case 1:
        multiply_rows<Bits, Z, 1, Panels>(tile, panel, row, out, ahead);
        break;
      case 2:
        multiply_rows<Bits, Z, 2, Panels>(tile, panel, row, out, ahead);
        break;
      case 3:
        multiply_rows<Bits, Z, 3, Panels>(tile, panel, row, out, ahead);
        break;
      case 4:
        multiply_rows<Bits, Z, 4, Panels>(tile, panel, row, out, ahead);
        break;
      default:
        multiply_rows<Bits, Z, 5, Panels>(tile, panel, row, out, ahead);
        break;
    }
    row += rows;
    ahead.first += tile.panel_bytes;
    if (piece == 1) ahead = {};
  }
}

/// What two panels at once ask for: the next strip, half of it per piece where rows are cut into pieces.
template <int Bits>
[[nodiscard]] inline Ahead next_strip(const IntegerTile& tile) noexcept {
  const bool one_piece = tile.panel_rows <= most_tile_rows;
  if (tile.next == nullptr || (Bits == 8 && one_piece)) return {};
  return {.first = reinterpret_cast<std::uintptr_t>(tile.next), .panels = one_piece ? 2u : 1u};
}

/// See IntegerTile. Few rows read their panels one after another, which is one sequential stream from memory: a single
/// row, and up to three of 4-bit codes, which ask for what lies 6 KiB further on in this stream.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  constexpr std::size_t distance = 6144;
  constexpr std::size_t one_stream_rows = Bits == 4 ? 3 : 1;
  if (tile.panels == 2 && tile.panel_rows > one_stream_rows) {
    return multiply_panels<Bits, Z, 2>(tile, tile.panel, tile.out, next_strip<Bits>(tile));
  }
  for (std::size_t p = 0; p < tile.panels; ++p) {
    const std::byte* panel = tile.panel + p * tile.panel_bytes;
    Ahead ahead;
    if (Bits == 4 && tile.panel_rows <= one_stream_rows) {
      ahead = {.first = reinterpret_cast<std::uintptr_t>(panel) + distance, .panels = 1};
    }
    multiply_panels<Bits, Z, 1>(tile, panel, tile.out + p * panel_outputs, ahead);
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
