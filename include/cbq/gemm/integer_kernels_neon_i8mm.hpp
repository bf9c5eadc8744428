// SPDX-License-Identifier: Apache-2.0
#pragma once

// Armv8.6 with 8-bit matrix products. smmla multiplies 2 rows x 8 inputs with 2 outputs x 8 inputs: twice the work of
// sdot. The packed line has 4 inputs per output; interleaving two neighbouring steps in registers (zip) makes 8, so
// there is no second layout. The price, 4 instructions instead of 2 per decoded pair of vectors, is shared by all rows
// of an activation panel: the tile is 20 rows x 4 outputs, 20 integer sums. Pairs of rows are interleaved too, once per
// 128 inputs for all 32 outputs, on the stack; float sums, and integer sums of longer groups, wait there as well. Fewer
// than 8 rows run the tiles of integer_kernels_neon_dotprod.hpp, which need fewer instructions then.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_neon_dotprod.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon_i8mm {

using neon::quad_bytes;
using neon::quad_outputs;

inline constexpr std::size_t least_rows = 8;
inline constexpr std::size_t most_pairs = activation_panel_rows / 2;
/// Blocks whose activations are interleaved at once, and pieces of 8 inputs in a block.
inline constexpr std::size_t chunk_blocks = 4;
inline constexpr std::size_t block_pieces = block_inputs / 8;
/// Vectors of 4 outputs in two panels.
inline constexpr std::size_t most_quads = 2 * panel_outputs / quad_outputs;

/// 2 rows x 8 inputs, 2 rows x 2 outputs, and those of 2 rows x 4 outputs.
using PairCodes = std::int8_t[16];
using PairTerms = std::int32_t[4];
using PairScales = float[4];
using PairSums = std::int32_t[2][4];
using PairTotals = float[2][4];

/// What a tile keeps in memory. Filled as far as there are rows and outputs.
struct Workspace {
  alignas(16) PairCodes codes[chunk_blocks * block_pieces * most_pairs];
  alignas(16) PairTerms zero_terms[most_pairs];  // of both rows, twice each
  alignas(16) PairScales scales[most_pairs];     // the same; where activations have a scale per group
  alignas(16) PairSums sums[most_quads][most_pairs];
  alignas(16) PairTotals totals[most_quads][most_pairs];
};

/// Blocks of one group that are multiplied with 4 outputs at once, and where their results go.
struct Chunk {
  const std::byte* group = nullptr;   // header of the group, of these outputs' panel
  const std::byte* blocks = nullptr;  // the outputs' bytes in the first line of the chunk
  std::size_t first_output = 0;       // in the panel
  std::size_t count = 0;
  bool begins_group = false;
  bool ends_group = false;
  bool scales_rows = false;  // activations have a scale per group
  PairSums* sums = nullptr;
  PairTotals* totals = nullptr;
};

CBQ_BEGIN_REGION(CBQ_TARGET_NEON_I8MM)

/// Interleaves the activations of two rows in pieces of 8 inputs; a last row without a partner is its own.
template <std::size_t Pairs>
inline void interleave_codes(const IntegerTile& tile, const std::int8_t* codes, std::size_t blocks,
                             Workspace& work) noexcept {
  const bool single = tile.panel_rows % 2 != 0;
  PairCodes* out = work.codes;
  for (std::size_t block = 0; block < blocks; ++block) {
    for (std::size_t pair = 0; pair < Pairs; ++pair, ++out) {
      const std::int8_t* odd = single && pair + 1 == Pairs ? codes : codes + block_inputs;
      const int64x2_t even_low = vreinterpretq_s64_s8(vld1q_s8(codes));
      const int64x2_t even_high = vreinterpretq_s64_s8(vld1q_s8(codes + 16));
      const int64x2_t odd_low = vreinterpretq_s64_s8(vld1q_s8(odd));
      const int64x2_t odd_high = vreinterpretq_s64_s8(vld1q_s8(odd + 16));
      vst1q_s8(out[0], vreinterpretq_s8_s64(vzip1q_s64(even_low, odd_low)));
      vst1q_s8(out[most_pairs], vreinterpretq_s8_s64(vzip2q_s64(even_low, odd_low)));
      vst1q_s8(out[2 * most_pairs], vreinterpretq_s8_s64(vzip1q_s64(even_high, odd_high)));
      vst1q_s8(out[3 * most_pairs], vreinterpretq_s8_s64(vzip2q_s64(even_high, odd_high)));
      codes = odd + block_inputs;
    }
    out += block_pieces * most_pairs - Pairs;
  }
}

template <std::size_t Pairs>
inline void interleave_zero_terms(const std::int32_t* terms, std::size_t rows, Workspace& work) noexcept {
  for (std::size_t pair = 0; pair < Pairs; ++pair) {
    const int32x2_t two = 2 * pair + 1 < rows ? vld1_s32(terms + 2 * pair) : vld1_dup_s32(terms + 2 * pair);
    vst1q_s32(work.zero_terms[pair], vcombine_s32(vdup_lane_s32(two, 0), vdup_lane_s32(two, 1)));
  }
}

template <std::size_t Pairs>
inline void interleave_scales(const float* scales, std::size_t rows, Workspace& work) noexcept {
  for (std::size_t pair = 0; pair < Pairs; ++pair) {
    const float32x2_t two = 2 * pair + 1 < rows ? vld1_f32(scales + 2 * pair) : vld1_dup_f32(scales + 2 * pair);
    vst1q_f32(work.scales[pair], vcombine_f32(vdup_lane_f32(two, 0), vdup_lane_f32(two, 1)));
  }
}

/// Adds the products of the pieces [Piece, 4) of one block of 4 outputs.
template <int Bits, int Piece, std::size_t Pairs>
[[gnu::always_inline]] inline void multiply_pieces(int32x4_t (&sums)[Pairs][2], const std::byte* block,
                                                   const PairCodes* codes) noexcept {
  const int32x4_t even = vreinterpretq_s32_s8(neon::decode_step<Bits, 2 * Piece>(block));
  const int32x4_t odd = vreinterpretq_s32_s8(neon::decode_step<Bits, 2 * Piece + 1>(block));
  const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
  const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
  _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
    const int8x16_t x = vld1q_s8(codes[Piece * most_pairs + p]);
    sums[p][0] = vmmlaq_s32(sums[p][0], x, low);
    sums[p][1] = vmmlaq_s32(sums[p][1], x, high);
  }
  if constexpr (Piece < 3) multiply_pieces<Bits, Piece + 1, Pairs>(sums, block, codes);
}

/// The sums that a chunk continues, or begins with.
template <int Bits, Zero Z, std::size_t Pairs>
[[gnu::always_inline]] inline void load_sums(int32x4_t (&sums)[Pairs][2], const Chunk& chunk,
                                             const PairTerms* zero_terms) noexcept {
  if (!chunk.begins_group) {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      sums[p][0] = vld1q_s32(chunk.sums[p][0]);
      sums[p][1] = vld1q_s32(chunk.sums[p][1]);
    }
  } else if constexpr (Z == Zero::affine) {
    const int64x2_t zero = vreinterpretq_s64_s32(neon::group_zero<Bits>(chunk.group, chunk.first_output));
    const int32x4_t low = vreinterpretq_s32_s64(vzip1q_s64(zero, zero));
    const int32x4_t high = vreinterpretq_s32_s64(vzip2q_s64(zero, zero));
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      const int32x4_t terms = vld1q_s32(zero_terms[p]);
      sums[p][0] = vmulq_s32(low, terms);
      sums[p][1] = vmulq_s32(high, terms);
    }
  } else {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      sums[p][0] = sums[p][1] = Bits == 8 ? vdupq_n_s32(0) : vld1q_s32(zero_terms[p]);
    }
  }
}

/// Adds the sums of 2 rows x 2 outputs of a group to their totals.
[[gnu::always_inline]] inline void add_pair(float (&totals)[4], float32x4_t scale, int32x4_t sums) noexcept {
  vst1q_f32(totals, vfmaq_f32(vld1q_f32(totals), scale, vcvtq_f32_s32(sums)));
}

/// One chunk of 4 outputs times all rows of the panel.
template <int Bits, Zero Z, std::size_t Pairs>
void multiply_chunk(const Chunk& chunk, const Workspace& work) noexcept {
  int32x4_t sums[Pairs][2];
  load_sums<Bits, Z>(sums, chunk, work.zero_terms);
  const std::byte* block = chunk.blocks;
  for (std::size_t i = 0; i < chunk.count; ++i, block += Bits * 64) {
    multiply_pieces<Bits, 0>(sums, block, work.codes + i * block_pieces * most_pairs);
  }
  if (!chunk.ends_group) {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      vst1q_s32(chunk.sums[p][0], sums[p][0]);
      vst1q_s32(chunk.sums[p][1], sums[p][1]);
    }
    return;
  }
  const float64x2_t scale = vreinterpretq_f64_f32(neon::group_scale(chunk.group, chunk.first_output));
  const float32x4_t low = vreinterpretq_f32_f64(vzip1q_f64(scale, scale));
  const float32x4_t high = vreinterpretq_f32_f64(vzip2q_f64(scale, scale));
  PairTotals* totals = chunk.totals;
  if (chunk.scales_rows) {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      const float32x4_t rows = vld1q_f32(work.scales[p]);
      add_pair(totals[p][0], vmulq_f32(low, rows), sums[p][0]);
      add_pair(totals[p][1], vmulq_f32(high, rows), sums[p][1]);
    }
  } else {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      add_pair(totals[p][0], low, sums[p][0]);
      add_pair(totals[p][1], high, sums[p][1]);
    }
  }
}

/// All rows, scaled and in their order, to the result.
inline void store_rows(const IntegerTile& tile, const Workspace& work) noexcept {
  for (std::size_t row = 0; row < tile.panel_rows; ++row) {
    const float scale = tile.row_scales[row] * tile.weight_multiplier;
    float* out = tile.out + row * tile.out_stride;
    for (std::size_t quad = 0; quad < tile.panels * (panel_outputs / quad_outputs); ++quad) {
      const PairTotals& totals = work.totals[quad][row / 2];
      const float32x4_t values = vcombine_f32(vld1_f32(totals[0] + row % 2 * 2), vld1_f32(totals[1] + row % 2 * 2));
      vst1q_f32(out + quad_outputs * quad, vmulq_n_f32(values, scale));
    }
  }
}

/// All panels of the tile times Pairs pairs of rows, the last of which may be a single row.
template <int Bits, Zero Z, std::size_t Pairs>
void multiply_panels(const IntegerTile& tile) noexcept {
  Workspace work;
  __builtin_memset(work.totals, 0, tile.panels * (panel_outputs / quad_outputs) * sizeof work.totals[0]);
  const std::int8_t* codes = tile.codes;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    interleave_zero_terms<Pairs>(tile.zero_terms + group * tile.panel_rows, tile.panel_rows, work);
    if (tile.group_scales != nullptr) {
      interleave_scales<Pairs>(tile.group_scales + group * tile.panel_rows, tile.panel_rows, work);
    }
    const std::size_t blocks = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= blocks;
    for (std::size_t first = 0; first < blocks; first += chunk_blocks) {
      Chunk chunk;
      chunk.count = blocks - first < chunk_blocks ? blocks - first : chunk_blocks;
      chunk.begins_group = first == 0;
      chunk.ends_group = first + chunk.count == blocks;
      chunk.scales_rows = tile.group_scales != nullptr;
      interleave_codes<Pairs>(tile, codes, chunk.count, work);
      codes += chunk.count * block_inputs * tile.panel_rows;
      chunk.sums = work.sums[0];
      chunk.totals = work.totals[0];
      for (std::size_t panel = 0; panel < tile.panels; ++panel) {
        chunk.group = tile.panel + panel * tile.panel_bytes + group * tile.group_bytes;
        chunk.blocks = chunk.group + tile.header_bytes + first * (Bits * 64);
        for (chunk.first_output = 0; chunk.first_output < panel_outputs; chunk.first_output += quad_outputs) {
          multiply_chunk<Bits, Z, Pairs>(chunk, work);
          chunk.blocks += quad_bytes;
          chunk.sums += most_pairs;
          chunk.totals += most_pairs;
        }
      }
    }
  }
  store_rows(tile, work);
}

/// multiply_panels() for a number of pairs known at run time.
template <int Bits, Zero Z, std::size_t Pairs = least_rows / 2>
[[gnu::always_inline]] inline void multiply_any_pairs(const IntegerTile& tile, std::size_t pairs) noexcept {
  if constexpr (Pairs < most_pairs) {
    if (pairs != Pairs) return multiply_any_pairs<Bits, Z, Pairs + 1>(tile, pairs);
  }
  multiply_panels<Bits, Z, Pairs>(tile);
}

/// See IntegerTile.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  if (tile.panel_rows < least_rows) {
    neon_dotprod::integer_tile<Bits, Z>(tile);
  } else {
    multiply_any_pairs<Bits, Z>(tile, (tile.panel_rows + 1) / 2);
  }
}

CBQ_END_REGION
}  // namespace isa::neon_i8mm
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
