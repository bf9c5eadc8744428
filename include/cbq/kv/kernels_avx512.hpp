// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 F, BW, DQ, VL, VNNI: the kernels of kv_tile.hpp. One panel at a time, so that a page is one sequential
// stream; 1, 2, 3, 4 or 8 rows share a decoded vector. Keys: codes are the unsigned operand of vpdpbusd, queries are
// broadcast inside the instruction. Values: weights are the unsigned operand and codes the signed one, 8-bit codes
// minus 128. A line of 4-bit codes costs a row 2 products, and all rows together 2 ands and a shift; keys of at most 4
// rows no shift. A panel costs a row 5 more instructions.
//
// Pages lie anywhere in memory, and a head of one is too short for the processor to recognize a stream: every kernel
// asks for as many lines of what is read next as it reads itself.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/lines_ahead.hpp>
#include <cbq/kv/weight_kernels_avx512.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// Independent accumulators per row, where the rows alone are too few to hide the latency of vpdpbusd.
template <std::size_t Rows>
inline constexpr std::size_t kv_chains = Rows == 1   ? 4
                                         : Rows <= 3 ? 2
                                                     : 1;

/// Whether codes are multiplied where they lie in their bytes, 2^step_shift times too large, and sums shifted once per
/// group: where steps of different shifts have accumulators of their own.
template <int Bits, std::size_t Rows>
inline constexpr bool kv_in_place = (Bits == 4 && kv_chains<Rows> >= 2) || (Bits == 2 && kv_chains<Rows> == 4);

/// Adds the products of steps [Step, 8) of one block of keys.
template <int Bits, unsigned Step, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_keys(__m512i (&sums)[Chains][Rows], const std::byte* block,
                                                 const std::int8_t* queries, std::size_t row_bytes) noexcept {
  __m512i codes;
  if constexpr (kv_in_place<Bits, Rows>) {
    codes = step_in_place<Bits, Step>(block);
  } else {
    codes = decode_step<Bits, Step>(block);
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, queries + r * row_bytes + Step * 4, sizeof four);
    __m512i& sum = sums[Step % Chains][r];
    sum = _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(four));
  }
  if constexpr (Step < 7) multiply_keys<Bits, Step + 1>(sums, block, queries, row_bytes);
}

/// Adds all chains of keys to the first.
template <int Bits, std::size_t Chain, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void join_keys(__m512i (&sums)[Chains][Rows]) noexcept {
  if constexpr (Chain < Chains) {
    constexpr unsigned shift = kv_in_place<Bits, Rows> ? step_shift<Bits>(Chain) : 0;
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const __m512i sum = shift == 0 ? sums[Chain][r] : _mm512_srai_epi32(sums[Chain][r], shift);
      sums[0][r] = _mm512_add_epi32(sums[0][r], sum);
    }
    join_keys<Bits, Chain + 1>(sums);
  }
}

/// Scores of rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows>
inline void key_rows(const KeyTile& tile, std::size_t first_row, LinesAhead ahead) noexcept {
  const std::size_t row_bytes = block_inputs * tile.key_blocks;
  const std::size_t groups = tile.channel_keys ? 1 : tile.groups;
  const std::size_t group_blocks = tile.channel_keys ? tile.key_blocks : tile.blocks_per_group;
  const std::byte* header = tile.keys;
  float* scores = tile.scores + first_row * tile.score_stride;
  for (std::size_t panel = 0; panel < tile.panels; ++panel, header += tile.key_panel_bytes, scores += panel_outputs) {
    const std::byte* block = header + tile.key_header_bytes;
    const std::int8_t* queries = tile.queries + first_row * row_bytes;
    __m512 totals[Rows];
    __m512 offsets[Rows];
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) totals[r] = offsets[r] = _mm512_setzero_ps();
    std::size_t blocks_left = tile.key_blocks;
    for (std::size_t group = 0; group < groups; ++group) {
      __m512i sums[kv_chains<Rows>][Rows];
      _Pragma("GCC unroll 4") for (std::size_t c = 0; c < kv_chains<Rows>; ++c)
          _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) sums[c][r] = _mm512_setzero_si512();
      const std::size_t count = blocks_left < group_blocks ? blocks_left : group_blocks;
      blocks_left -= count;
      ask_for<Rows, 1>(ahead);
      for (std::size_t i = 0; i < count; ++i, block += Bits * line_bytes, queries += block_inputs) {
        ask_for<Rows, Bits>(ahead);
        multiply_keys<Bits, 0>(sums, block, queries, row_bytes);
      }
      join_keys<Bits, 1>(sums);
      __m512 scale = _mm512_set1_ps(1.0f);
      __m512 offset = _mm512_setzero_ps();
      if (!tile.channel_keys) {
        const std::byte* halves = header + group * 2 * group_scales_bytes;
        scale = load_halves(halves);
        offset = load_halves(halves + group_scales_bytes);
      }
      const float* query_sums = tile.query_sums + first_row * tile.groups + group;
      _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
        totals[r] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[0][r]), totals[r]);
        offsets[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(query_sums[r * tile.groups]), offsets[r]);
      }
    }
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const __m512 query_scale = _mm512_set1_ps(tile.query_scales[first_row + r]);
      _mm512_storeu_ps(scores + r * tile.score_stride, _mm512_fmadd_ps(query_scale, totals[r], offsets[r]));
    }
  }
}

/// See KeyTile. 8 rows at once as long as there are, the others in even pieces of at most 4. The first piece asks for
/// what is read next.
template <int Bits>
void key_tile(const KeyTile& tile) noexcept {
  LinesAhead ahead = lines_from(tile.next, tile.keys, tile.every_line);
  std::size_t row = 0;
  while (row < tile.rows) {
    const std::size_t left = tile.rows - row;
    const std::size_t rows = left >= 8 ? 8 : left > 4 ? (left + 1) / 2 : left;
    switch (rows) {
      case 1:
        key_rows<Bits, 1>(tile, row, ahead);
        break;
      case 2:
        key_rows<Bits, 2>(tile, row, ahead);
        break;
      case 3:
        key_rows<Bits, 3>(tile, row, ahead);
        break;
      case 4:
        key_rows<Bits, 4>(tile, row, ahead);
        break;
      default:
        key_rows<Bits, 8>(tile, row, ahead);
        break;
    }
    row += rows;
    ahead = {};
  }
}

/// Steps of 4 positions in a page.
inline constexpr unsigned kv_page_steps = static_cast<unsigned>(kv_page_positions / step_inputs);

/// Weights of one row and one step in all lanes.
[[gnu::always_inline]] inline __m512i broadcast_weights(const std::uint8_t* weights) noexcept {
  std::int32_t four;
  __builtin_memcpy(&four, weights, sizeof four);
  return _mm512_set1_epi32(four);
}

/// Adds the products of steps [Step, 8) of one block of values. `first`: weights of a single row, already broadcast.
template <int Bits, unsigned Step, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_values(__m512i (&sums)[Chains][Rows], const std::byte* block,
                                                   const std::uint8_t* weights, const __m512i* first) noexcept {
  __m512i codes = decode_step<Bits, Step>(block);
  if constexpr (Bits == 8) codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    const __m512i four = Rows == 1 ? first[Step] : broadcast_weights(weights + r * kv_page_positions + Step * 4);
    sums[Step % Chains][r] = _mm512_dpbusd_epi32(sums[Step % Chains][r], four, codes);
  }
  if constexpr (Step < 7) multiply_values<Bits, Step + 1>(sums, block, weights, first);
}

/// Adds to the results of rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows>
inline void value_rows(const ValueTile& tile, std::size_t first_row, LinesAhead ahead) noexcept {
  constexpr std::size_t chains = Rows <= 4 ? 2 : 1;
  const std::uint8_t* weights = tile.weights + first_row * kv_page_positions;
  __m512i first[Rows == 1 ? kv_page_steps : 1];
  if constexpr (Rows == 1) {
    _Pragma("GCC unroll 16") for (std::size_t s = 0; s < kv_page_steps; ++s) first[s] =
        broadcast_weights(weights + s * step_inputs);
  }
  ask_for<Rows, 4 * kv_page_positions / line_bytes>(ahead);
  const std::byte* block = tile.blocks;
  float* out = tile.out + first_row * tile.out_stride;
  for (std::size_t p = 0; p < tile.panels; ++p, out += panel_outputs) {
    __m512i sums[chains][Rows];
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      sums[0][r] = Bits == 8 ? _mm512_set1_epi32(tile.weight_sums[first_row + r] * 128) : _mm512_setzero_si512();
      if constexpr (chains == 2) sums[1][r] = _mm512_setzero_si512();
    }
    if constexpr (Rows == 1) {
      ask_for<Rows, 2 * Bits>(ahead);
      multiply_values<Bits, 0>(sums, block, weights, first);
      multiply_values<Bits, 0>(sums, block + Bits * line_bytes, weights, first + block_inputs / step_inputs);
      block += 2 * Bits * line_bytes;
    } else {
      for (std::size_t i = 0; i < kv_page_positions; i += block_inputs, block += Bits * line_bytes) {
        ask_for<Rows, Bits>(ahead);
        multiply_values<Bits, 0>(sums, block, weights + i, nullptr);
      }
    }
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      if constexpr (chains == 2) sums[0][r] = _mm512_add_epi32(sums[0][r], sums[1][r]);
      float* values = out + r * tile.out_stride;
      const __m512 scale = _mm512_set1_ps(tile.weight_scales[first_row + r]);
      const __m512 offset = _mm512_set1_ps(tile.offset_sums[first_row + r]);
      const __m512 added = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[0][r]), offset);
      _mm512_storeu_ps(values, _mm512_add_ps(_mm512_loadu_ps(values), added));
    }
  }
}

/// See ValueTile. Rows go in the pieces of key_tile.
template <int Bits>
void value_tile(const ValueTile& tile) noexcept {
  LinesAhead ahead = lines_from(tile.next, tile.blocks, tile.every_line);
  std::size_t row = 0;
  while (row < tile.rows) {
    const std::size_t left = tile.rows - row;
    const std::size_t rows = left >= 8 ? 8 : left > 4 ? (left + 1) / 2 : left;
    switch (rows) {
      case 1:
        value_rows<Bits, 1>(tile, row, ahead);
        break;
      case 2:
        value_rows<Bits, 2>(tile, row, ahead);
        break;
      case 3:
        value_rows<Bits, 3>(tile, row, ahead);
        break;
      case 4:
        value_rows<Bits, 4>(tile, row, ahead);
        break;
      default:
        value_rows<Bits, 8>(tile, row, ahead);
        break;
    }
    row += rows;
    ahead = {};
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
