// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX2, FMA, F16C: the kernels of kv_tile.hpp. pmaddubsw adds pairs of products in int16. Keys: 8 steps of codes up to
// 15 with queries up to 127 fit before widening; values: 4 steps of codes up to 15 with weights up to 255, 8 steps of
// codes up to 7. 8-bit codes would saturate: they are widened to 16 bits first. 8 outputs per register; 1 and 2 rows
// take both halves of a panel at once, 4 rows one after the other.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx2.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/lines_ahead.hpp>
#include <cbq/kv/weight_kernels_avx2.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {

static_assert(8 * 2 * 15 * 127 < 32768 && 4 * 2 * 15 * 255 < 32768 && 8 * 2 * 7 * 255 < 32768,
              "[cbq] sums of a few steps must fit int16");

CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// Codes of keys times 8-bit queries.
struct QueryOperand {
  using Number = std::int8_t;
  template <int Bits>
  static constexpr int steps = 8;  ///< that fit int16
  [[gnu::always_inline]] static __m256i pairs(__m256i codes, __m256i four) noexcept {
    return _mm256_maddubs_epi16(codes, four);
  }
  [[gnu::always_inline]] static __m256i even(__m256i four) noexcept {
    return _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8);
  }
  [[gnu::always_inline]] static __m256i odd(__m256i four) noexcept { return _mm256_srai_epi16(four, 8); }
};

/// Codes of values times 8-bit weights without sign.
struct WeightOperand {
  using Number = std::uint8_t;
  template <int Bits>
  static constexpr int steps = Bits == 4 ? 4 : 8;
  [[gnu::always_inline]] static __m256i pairs(__m256i codes, __m256i four) noexcept {
    return _mm256_maddubs_epi16(four, codes);
  }
  [[gnu::always_inline]] static __m256i even(__m256i four) noexcept {
    return _mm256_and_si256(four, _mm256_set1_epi16(255));
  }
  [[gnu::always_inline]] static __m256i odd(__m256i four) noexcept { return _mm256_srli_epi16(four, 8); }
};

/// Adds the products of steps [Step, 8) of one block with rows of numbers that lie `row_numbers` apart. `pairs`: int16
/// sums of narrow codes, 0 before and after.
template <class Operand, int Bits, int Step, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void multiply_block(__m256i (&sums)[Rows][Halves], __m256i (&pairs)[Rows][Halves],
                                                  const std::byte* block, const typename Operand::Number* numbers,
                                                  std::size_t row_numbers) noexcept {
  __m256i codes[Halves];
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) codes[h] = decode_step<Bits, Step>(block + 32 * h);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t number;
    __builtin_memcpy(&number, numbers + r * row_numbers + Step * 4, sizeof number);
    const __m256i four = _mm256_set1_epi32(number);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
      if constexpr (Bits == 8) {
        const __m256i low = _mm256_and_si256(codes[h], _mm256_set1_epi16(255));
        const __m256i high = _mm256_srli_epi16(codes[h], 8);
        const __m256i products =
            _mm256_add_epi32(_mm256_madd_epi16(low, Operand::even(four)), _mm256_madd_epi16(high, Operand::odd(four)));
        sums[r][h] = _mm256_add_epi32(sums[r][h], products);
      } else {
        pairs[r][h] = _mm256_add_epi16(pairs[r][h], Operand::pairs(codes[h], four));
        // Keeps GCC from turning the chain of additions into a tree, which needs more registers than there are.
        asm("" : "+x"(pairs[r][h]));
        if constexpr ((Step + 1) % Operand::template steps<Bits> == 0) {
          sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(pairs[r][h], _mm256_set1_epi16(1)));
          pairs[r][h] = _mm256_setzero_si256();
        }
      }
    }
  }
  if constexpr (Step < 7) multiply_block<Operand, Bits, Step + 1>(sums, pairs, block, numbers, row_numbers);
}

template <std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void clear_sums(__m256i (&sums)[Rows][Halves]) noexcept {
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) sums[r][h] = _mm256_setzero_si256();
}

/// Some rows of one panel of keys, from output `first_output` on.
struct KeyPiece {
  const std::byte* header = nullptr;
  std::size_t first_output = 0;
  std::size_t first_row = 0;
  float* scores = nullptr;  ///< of the first row and output
};

template <int Bits, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void score_piece(const KeyTile& tile, const KeyPiece& piece, LinesAhead& ahead) noexcept {
  const std::size_t row_bytes = block_inputs * tile.key_blocks;
  const std::size_t groups = tile.channel_keys ? 1 : tile.groups;
  const std::size_t group_blocks = tile.channel_keys ? tile.key_blocks : tile.blocks_per_group;
  const std::byte* block = piece.header + tile.key_header_bytes + piece.first_output * step_inputs;
  const std::int8_t* queries = tile.queries + piece.first_row * row_bytes;
  __m256 totals[Rows][Halves];
  __m256 offsets[Rows][Halves];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) totals[r][h] = offsets[r][h] =
          _mm256_setzero_ps();
  std::size_t blocks_left = tile.key_blocks;
  for (std::size_t group = 0; group < groups; ++group) {
    __m256i sums[Rows][Halves];
    clear_sums(sums);
    const std::size_t count = blocks_left < group_blocks ? blocks_left : group_blocks;
    blocks_left -= count;
    for (std::size_t i = 0; i < count; ++i, block += Bits * line_bytes, queries += block_inputs) {
      ask_for<Rows, (Bits * Halves + 1) / 2>(ahead);
      __m256i pairs[Rows][Halves];
      clear_sums(pairs);
      multiply_block<QueryOperand, Bits, 0>(sums, pairs, block, queries, row_bytes);
    }
    const float* query_sums = tile.query_sums + piece.first_row * tile.groups + group;
    const std::byte* halves = piece.header + group * 2 * group_scales_bytes + piece.first_output * sizeof(half);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
      __m256 scale = _mm256_set1_ps(1.0f);
      __m256 offset = _mm256_setzero_ps();
      if (!tile.channel_keys) {
        scale = load_halves(halves + 16 * h);
        offset = load_halves(halves + group_scales_bytes + 16 * h);
      }
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
        totals[r][h] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[r][h]), totals[r][h]);
        offsets[r][h] = _mm256_fmadd_ps(offset, _mm256_set1_ps(query_sums[r * tile.groups]), offsets[r][h]);
      }
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const __m256 scale = _mm256_set1_ps(tile.query_scales[piece.first_row + r]);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) _mm256_storeu_ps(
        piece.scores + r * tile.score_stride + 8 * h, _mm256_fmadd_ps(scale, totals[r][h], offsets[r][h]));
  }
}

/// Scores of rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows>
inline void key_rows(const KeyTile& tile, std::size_t first_row, LinesAhead ahead) noexcept {
  constexpr std::size_t halves = Rows <= 2 ? 2 : 1;
  KeyPiece piece{tile.keys, 0, first_row, tile.scores + first_row * tile.score_stride};
  for (std::size_t panel = 0; panel < tile.panels; ++panel, piece.header += tile.key_panel_bytes) {
    ask_for<Rows, 1>(ahead);
    for (piece.first_output = 0; piece.first_output < panel_outputs; piece.first_output += 8 * halves) {
      score_piece<Bits, Rows, halves>(tile, piece, ahead);
      piece.scores += 8 * halves;
    }
  }
}

/// See KeyTile. Rows go in pieces of 4, 2 and 1; the first one asks for what is read next.
template <int Bits>
void key_tile(const KeyTile& tile) noexcept {
  LinesAhead ahead = lines_from(tile.next, tile.keys, tile.every_line);
  std::size_t row = 0;
  while (row < tile.rows) {
    const std::size_t left = tile.rows - row;
    const std::size_t rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    switch (rows) {
      case 1:
        key_rows<Bits, 1>(tile, row, ahead);
        break;
      case 2:
        key_rows<Bits, 2>(tile, row, ahead);
        break;
      default:
        key_rows<Bits, 4>(tile, row, ahead);
        break;
    }
    row += rows;
    ahead = {};
  }
}

/// Adds to the results of rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows>
inline void value_rows(const ValueTile& tile, std::size_t first_row, LinesAhead ahead) noexcept {
  constexpr std::size_t halves = Rows <= 2 ? 2 : 1;
  const std::uint8_t* weights = tile.weights + first_row * kv_page_positions;
  float* out = tile.out + first_row * tile.out_stride;
  ask_for<Rows, 4 * kv_page_positions / line_bytes>(ahead);
  for (std::size_t half_panel = 0; half_panel < 2 * tile.panels; half_panel += halves, out += 8 * halves) {
    const std::byte* block = tile.blocks + half_panel / 2 * 2 * Bits * line_bytes + half_panel % 2 * 32;
    __m256i sums[Rows][halves];
    clear_sums(sums);
    for (std::size_t i = 0; i < kv_page_positions / block_inputs; ++i, block += Bits * line_bytes) {
      ask_for<Rows, (Bits * halves + 1) / 2>(ahead);
      __m256i pairs[Rows][halves];
      clear_sums(pairs);
      multiply_block<WeightOperand, Bits, 0>(sums, pairs, block, weights + i * block_inputs, kv_page_positions);
    }
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      const __m256 scale = _mm256_set1_ps(tile.weight_scales[first_row + r]);
      const __m256 offset = _mm256_set1_ps(tile.offset_sums[first_row + r]);
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < halves; ++h) {
        float* values = out + r * tile.out_stride + 8 * h;
        const __m256 added = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[r][h]), offset);
        _mm256_storeu_ps(values, _mm256_add_ps(_mm256_loadu_ps(values), added));
      }
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
    const std::size_t rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    switch (rows) {
      case 1:
        value_rows<Bits, 1>(tile, row, ahead);
        break;
      case 2:
        value_rows<Bits, 2>(tile, row, ahead);
        break;
      default:
        value_rows<Bits, 4>(tile, row, ahead);
        break;
    }
    row += rows;
    ahead = {};
  }
}

CBQ_END_REGION
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
