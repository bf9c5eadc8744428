// SPDX-License-Identifier: Apache-2.0
#pragma once

// Armv8.6 with 8-bit matrix products. smmla multiplies 2 rows x 8 inputs with 2 outputs x 8 inputs: twice the work of
// sdot. The packed line has 4 inputs per output; interleaving two neighbouring steps in registers (zip) makes 8, so
// there is no second layout. The price, 4 instructions instead of 2 per decoded pair of vectors, is shared by all rows
// of an activation panel: the tile is 20 rows x 4 outputs, 20 integer sums. Pairs of rows are interleaved too, once per
// 128 inputs for all 32 outputs, on the stack; float sums, and integer sums of longer groups, wait there as well. Up to
// 3 rows run the tiles of integer_kernels_neon_dotprod.hpp, which need fewer instructions for them.

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

inline constexpr std::size_t most_pairs = activation_panel_rows / 2;
/// Blocks whose activations are interleaved at once, and pieces of 8 inputs in a block.
inline constexpr std::size_t chunk_blocks = 4;
inline constexpr std::size_t block_pieces = block_inputs / 8;
/// Vectors of 4 outputs in two panels.
inline constexpr std::size_t most_quads = 2 * panel_outputs / quad_outputs;

/// What a tile keeps in memory, in vectors of 2 rows x 2 outputs. Filled as far as there are rows and outputs.
struct Workspace {
  alignas(16) std::int8_t activations[chunk_blocks * block_pieces][most_pairs][16];  // 8 inputs of each row
  alignas(16) std::int32_t zero_terms[most_pairs][4];                                // of both rows, twice each
  alignas(16) std::int32_t sums[most_quads][most_pairs][2][4];
  alignas(16) float totals[most_quads][most_pairs][2][4];
};

/// Blocks of one group that are multiplied at once.
struct Chunk {
  const std::byte* group = nullptr;   // header of the group, of these 4 outputs' panel
  const std::byte* blocks = nullptr;  // their bytes in the first line of the chunk
  std::size_t first_output = 0;
  std::size_t count = 0;
  bool begins_group = false;
  bool ends_group = false;
};

CBQ_BEGIN_REGION(CBQ_TARGET_NEON_I8MM)

/// Interleaves the activations of two rows in pieces of 8 inputs; a last row without a partner is its own.
inline void interleave_rows(const IntegerTile& tile, const std::int8_t* codes, std::size_t blocks,
                            Workspace& work) noexcept {
  for (std::size_t block = 0; block < blocks; ++block, codes += block_inputs * tile.panel_rows) {
    for (std::size_t row = 0; row < tile.panel_rows; row += 2) {
      const std::int8_t* even = codes + row * block_inputs;
      const std::int8_t* odd = row + 1 < tile.panel_rows ? even + block_inputs : even;
      _Pragma("GCC unroll 2") for (std::size_t half_block = 0; half_block < 2; ++half_block) {
        const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(even + 16 * half_block));
        const int64x2_t second = vreinterpretq_s64_s8(vld1q_s8(odd + 16 * half_block));
        auto& low = work.activations[block * block_pieces + 2 * half_block][row / 2];
        auto& high = work.activations[block * block_pieces + 2 * half_block + 1][row / 2];
        vst1q_s8(low, vreinterpretq_s8_s64(vzip1q_s64(first, second)));
        vst1q_s8(high, vreinterpretq_s8_s64(vzip2q_s64(first, second)));
      }
    }
  }
}

inline void interleave_zero_terms(const std::int32_t* terms, std::size_t rows, Workspace& work) noexcept {
  for (std::size_t row = 0; row < rows; row += 2) {
    std::int32_t(&out)[4] = work.zero_terms[row / 2];
    out[0] = out[1] = terms[row];
    out[2] = out[3] = terms[row + 1 < rows ? row + 1 : row];
  }
}

/// Adds the products of the pieces [Piece, 4) of one block of 4 outputs.
template <int Bits, int Piece, std::size_t Pairs>
[[gnu::always_inline]] inline void multiply_pieces(int32x4_t (&sums)[Pairs][2], const std::byte* block,
                                                   const std::int8_t (*pieces)[most_pairs][16]) noexcept {
  const int32x4_t even = vreinterpretq_s32_s8(neon::decode_step<Bits, 2 * Piece>(block));
  const int32x4_t odd = vreinterpretq_s32_s8(neon::decode_step<Bits, 2 * Piece + 1>(block));
  const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
  const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
  _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
    const int8x16_t x = vld1q_s8(pieces[Piece][p]);
    sums[p][0] = vmmlaq_s32(sums[p][0], x, low);
    sums[p][1] = vmmlaq_s32(sums[p][1], x, high);
  }
  if constexpr (Piece < 3) multiply_pieces<Bits, Piece + 1, Pairs>(sums, block, pieces);
}

/// The sums that a chunk continues, or begins with.
template <int Bits, Zero Z, std::size_t Pairs>
[[gnu::always_inline]] inline void load_sums(int32x4_t (&sums)[Pairs][2], const Chunk& chunk, const Workspace& work,
                                             std::size_t quad) noexcept {
  if (!chunk.begins_group) {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      sums[p][0] = vld1q_s32(work.sums[quad][p][0]);
      sums[p][1] = vld1q_s32(work.sums[quad][p][1]);
    }
  } else if constexpr (Z == Zero::affine) {
    const int64x2_t zero = vreinterpretq_s64_s32(neon::group_zero<Bits>(chunk.group, chunk.first_output));
    const int32x4_t low = vreinterpretq_s32_s64(vzip1q_s64(zero, zero));
    const int32x4_t high = vreinterpretq_s32_s64(vzip2q_s64(zero, zero));
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      const int32x4_t terms = vld1q_s32(work.zero_terms[p]);
      sums[p][0] = vmulq_s32(low, terms);
      sums[p][1] = vmulq_s32(high, terms);
    }
  } else {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      sums[p][0] = sums[p][1] = Bits == 8 ? vdupq_n_s32(0) : vld1q_s32(work.zero_terms[p]);
    }
  }
}

/// One chunk of 4 outputs times all rows of the panel.
template <int Bits, Zero Z, std::size_t Pairs>
inline void multiply_chunk(const Chunk& chunk, Workspace& work, std::size_t quad) noexcept {
  int32x4_t sums[Pairs][2];
  load_sums<Bits, Z>(sums, chunk, work, quad);
  const std::byte* block = chunk.blocks;
  for (std::size_t i = 0; i < chunk.count; ++i, block += Bits * 64) {
    multiply_pieces<Bits, 0>(sums, block, work.activations + i * block_pieces);
  }
  if (!chunk.ends_group) {
    _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
      vst1q_s32(work.sums[quad][p][0], sums[p][0]);
      vst1q_s32(work.sums[quad][p][1], sums[p][1]);
    }
    return;
  }
  const float64x2_t scale = vreinterpretq_f64_f32(neon::group_scale(chunk.group, chunk.first_output));
  const float32x4_t scales[2] = {vreinterpretq_f32_f64(vzip1q_f64(scale, scale)),
                                 vreinterpretq_f32_f64(vzip2q_f64(scale, scale))};
  _Pragma("GCC unroll 10") for (std::size_t p = 0; p < Pairs; ++p) {
    _Pragma("GCC unroll 2") for (std::size_t v = 0; v < 2; ++v) {
      float* totals = work.totals[quad][p][v];
      vst1q_f32(totals, vfmaq_f32(vld1q_f32(totals), scales[v], vcvtq_f32_s32(sums[p][v])));
    }
  }
}

/// All rows, scaled and in their order, to the result.
inline void store_rows(const IntegerTile& tile, const Workspace& work) noexcept {
  for (std::size_t row = 0; row < tile.panel_rows; ++row) {
    const float scale = tile.row_scales[row] * tile.weight_multiplier;
    float* out = tile.out + row * tile.out_stride;
    for (std::size_t quad = 0; quad < tile.panels * (panel_outputs / quad_outputs); ++quad) {
      const auto& totals = work.totals[quad][row / 2];
      const float32x4_t values = vcombine_f32(vld1_f32(totals[0] + row % 2 * 2), vld1_f32(totals[1] + row % 2 * 2));
      vst1q_f32(out + quad_outputs * quad, vmulq_n_f32(values, scale));
    }
  }
}

/// All panels of the tile times Pairs pairs of rows, the last of which may be a single row.
template <int Bits, Zero Z, std::size_t Pairs>
void multiply_panels(const IntegerTile& tile) noexcept {
  Workspace work;
  const std::size_t quads = tile.panels * (panel_outputs / quad_outputs);
  __builtin_memset(work.totals, 0, quads * sizeof work.totals[0]);
  const std::int8_t* codes = tile.codes;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    interleave_zero_terms(tile.zero_terms + group * tile.panel_rows, tile.panel_rows, work);
    const std::size_t blocks = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= blocks;
    for (std::size_t first = 0; first < blocks; first += chunk_blocks) {
      Chunk chunk;
      chunk.count = blocks - first < chunk_blocks ? blocks - first : chunk_blocks;
      chunk.begins_group = first == 0;
      chunk.ends_group = first + chunk.count == blocks;
      interleave_rows(tile, codes, chunk.count, work);
      codes += chunk.count * block_inputs * tile.panel_rows;
      for (std::size_t quad = 0; quad < quads; ++quad) {
        chunk.first_output = quad * quad_outputs % panel_outputs;
        chunk.group = tile.panel + quad * quad_outputs / panel_outputs * tile.panel_bytes + group * tile.group_bytes;
        chunk.blocks = chunk.group + tile.header_bytes + first * (Bits * 64) + chunk.first_output * step_inputs;
        multiply_chunk<Bits, Z, Pairs>(chunk, work, quad);
      }
    }
  }
  store_rows(tile, work);
}

/// multiply_panels() for a number of pairs known at run time.
template <int Bits, Zero Z, std::size_t Pairs = 2>
[[gnu::always_inline]] inline void multiply_any_pairs(const IntegerTile& tile, std::size_t pairs) noexcept {
  if constexpr (Pairs < most_pairs) {
    if (pairs != Pairs) return multiply_any_pairs<Bits, Z, Pairs + 1>(tile, pairs);
  }
  multiply_panels<Bits, Z, Pairs>(tile);
}

/// See IntegerTile.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  if (tile.panel_rows <= 3) {
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
