// SPDX-License-Identifier: Apache-2.0
#pragma once

// AMX-INT8: registers ("tiles") of 16 rows x 64 bytes. tdpbssd multiplies 16 rows x 64 inputs of activations with 64
// inputs x 16 outputs of weights; the latter wants 4 inputs of one output side by side, which is what a line of packed
// weights is. Decoding subtracts the zero point, so that products need no correction: codes of at most 4 bits minus any
// zero point fit a signed byte. 8-bit codes become code - 128, and affine ones are corrected when a group is added up.
//
// A pass multiplies up to 256 rows with 32 outputs. Weights are decoded once per pass, as many groups at a time as stay
// in the L1 cache; for these, every panel of 32 rows takes its products in 2 x 2 tiles of int32. The tiles of a group
// go through memory to be scaled and added to float sums (one conversion and one FMA per 16 results, the same order as
// in every other kernel), a few rows after each product of the next group: 1.25 times the speed of adding them up after
// its products. Tiles are configured on entry and released on return: nothing of them outlives a call.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/amx_decode.hpp>
#include <cbq/gemm/amx_sums.hpp>
#include <cbq/gemm/amx_tiles.hpp>
#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::amx_int8 {

/// Sums of one panel of activations.
inline constexpr std::size_t panel_sums = amx_panel_rows * strip_outputs;
/// Panels whose float sums are kept, plus one for the int32 sums of the group at hand.
inline constexpr std::size_t kept_panels = 8;

CBQ_BEGIN_REGION(CBQ_TARGET_AMX)

/// Slices of one panel of activations and of decoded weights.
struct Slices {
  const std::int8_t* codes = nullptr;
  std::size_t codes_step = 0;
  const std::int8_t* weights = nullptr;
  std::size_t count = 0;
  std::size_t inputs = 0;
};

/// Products of slices. After each product a few rows of `group`, the group before, are added to their totals, so that
/// tiles and vectors work at the same time.
template <Zero Left, std::size_t Heights, std::size_t Panels>
inline void multiply_slices(Slices slices, GroupSums group, std::size_t panel_bytes) noexcept {
  const std::size_t weights_step = slices.inputs * panel_outputs;
  GroupScales<Panels> scales;
  load_scales<Left>(scales, group, panel_bytes);
  const std::size_t products = slices.count * Heights * Panels;
  const std::size_t rows = (group.rows + products - 1) / products;
  for (std::size_t slice = 0; slice < slices.count; ++slice) {
    load_tile<4>(slices.codes, slices.inputs);
    load_tile<6>(slices.weights, line_bytes);
    multiply_tiles<0, 4, 6>();
    add_rows<Left>(scales, group, rows);
    if constexpr (Panels == 2) {
      load_tile<7>(slices.weights + weights_step, line_bytes);
      multiply_tiles<1, 4, 7>();
      add_rows<Left>(scales, group, rows);
    }
    if constexpr (Heights == 2) {
      load_tile<5>(slices.codes + tile_rows * slices.inputs, slices.inputs);
      multiply_tiles<2, 5, 6>();
      add_rows<Left>(scales, group, rows);
    }
    if constexpr (Heights == 2 && Panels == 2) {
      multiply_tiles<3, 5, 7>();
      add_rows<Left>(scales, group, rows);
    }
    slices.codes += slices.codes_step;
    slices.weights += Panels * weights_step;
  }
}

/// A chunk times one panel of activations, whose first row of the pass is `row`; the sums of its last group wait.
template <Zero Left, std::size_t Heights, std::size_t Panels>
inline void multiply_panel(const Pass& pass, const Chunk& chunk, std::size_t row, GroupSums& waiting) noexcept {
  const IntegerTile& tile = *pass.tile;
  const std::size_t rows = pass.rows - row < amx_panel_rows ? pass.rows - row : amx_panel_rows;
  const std::size_t inputs = tile.shape.inputs;
  const std::size_t codes_step = rows * inputs;
  const std::size_t panel = pass.first_row + row;
  const std::int8_t* codes = tile.codes + panel * pass.slices * inputs;
  const std::int8_t* weights = pass.weights;
  std::int32_t* sums = pass.sums + (chunk.slices < pass.group_slices ? row * strip_outputs : 0);
  for (std::size_t group = chunk.group; group < chunk.group + chunk.groups; ++group) {
    const std::size_t left = slices_left(pass, group, chunk.first);
    const std::size_t slices = left < chunk.slices ? left : chunk.slices;
    if (chunk.first == 0) {
      move_sums<SumTiles::zero, Heights, Panels>(sums);
    } else {
      move_sums<SumTiles::load, Heights, Panels>(sums);
    }
    multiply_slices<Left, Heights, Panels>({.codes = codes + (group * pass.group_slices + chunk.first) * codes_step,
                                            .codes_step = codes_step,
                                            .weights = weights,
                                            .count = slices,
                                            .inputs = inputs},
                                           waiting, tile.panel_bytes);
    move_sums<SumTiles::store, Heights, Panels>(sums);
    waiting.sums = sums;
    waiting.totals = pass.totals + row * strip_outputs;
    waiting.header = tile.panel + group * tile.group_bytes;
    waiting.zero_terms = tile.zero_terms + panel * tile.groups + group * rows;
    if (tile.group_scales != nullptr) waiting.row_scales = tile.group_scales + panel * tile.groups + group * rows;
    waiting.rows = left <= chunk.slices ? rows : 0;
    weights += chunk.slices * Panels * inputs * panel_outputs;
  }
}

/// Packed weights of the chunk after the one at hand, in the first panel; none behind the last chunk.
struct NextWeights {
  const std::byte* from = nullptr;
  std::size_t bytes = 0;
};

/// Asks for what is needed after the chunk: weights to decode or, behind the last chunk, lines of the result, whose
/// rows lie far apart. Each panel of activations asks for its part, so that memory has the time of the products.
template <std::size_t Panels>
inline void prefetch_next(const Pass& pass, const NextWeights& next, std::size_t row, std::size_t end_row) noexcept {
  const IntegerTile& tile = *pass.tile;
  const std::size_t end = next.bytes * end_row / pass.rows;
  for (std::size_t at = next.bytes * row / pass.rows; at < end; at += line_bytes) {
    for (std::size_t p = 0; p < Panels; ++p) __builtin_prefetch(next.from + p * tile.panel_bytes + at);
  }
  if (next.bytes != 0) return;
  for (std::size_t r = row; r < end_row; ++r) {
    const float* out = tile.out + (pass.first_row + r) * tile.out_stride;
    for (std::size_t p = 0; p < Panels; ++p) __builtin_prefetch(out + p * panel_outputs, 1, 2);
  }
}

/// A chunk times all rows of the pass.
template <Zero Left, std::size_t Panels>
inline void multiply_chunk(const Pass& pass, const Chunk& chunk, const NextWeights& next, GroupSums& waiting) noexcept {
  const std::size_t whole = pass.rows / amx_panel_rows * amx_panel_rows;
  if (whole > 0) configure_tiles(amx_panel_rows, pass.tile->shape.inputs);
  for (std::size_t row = 0; row < whole; row += amx_panel_rows) {
    prefetch_next<Panels>(pass, next, row, row + amx_panel_rows);
    multiply_panel<Left, 2, Panels>(pass, chunk, row, waiting);
  }
  if (whole == pass.rows) return;
  configure_tiles(pass.rows - whole, pass.tile->shape.inputs);
  prefetch_next<Panels>(pass, next, whole, pass.rows);
  if (pass.rows - whole > tile_rows) {
    multiply_panel<Left, 2, Panels>(pass, chunk, whole, waiting);
  } else {
    multiply_panel<Left, 1, Panels>(pass, chunk, whole, waiting);
  }
}

/// The chunk after `chunk`, as long as the decoded weights may be.
[[gnu::always_inline]] inline Chunk following_chunk(const Pass& pass, const Chunk& chunk,
                                                    std::size_t most_slices) noexcept {
  Chunk next = chunk;
  if (chunk.groups != 0 && chunk.slices < slices_left(pass, chunk.group, chunk.first)) {
    next.first += chunk.slices;
  } else {
    next.group += chunk.groups;
    next.first = 0;
  }
  const std::size_t groups = most_slices / chunk.slices;
  const std::size_t left = pass.tile->groups - next.group;
  next.groups = left < groups ? left : groups;
  return next;
}

/// Where the packed weights of a chunk begin in their panel.
[[gnu::always_inline]] inline std::size_t chunk_offset(const IntegerTile& tile, const Chunk& chunk,
                                                       std::size_t packed_block) noexcept {
  const std::size_t group = chunk.group * tile.group_bytes;
  if (chunk.first == 0) return group;
  return group + tile.header_bytes + chunk.first * (tile.shape.inputs / block_inputs) * packed_block;
}

/// All groups of one pass.
template <int Bits, Zero Z, std::size_t Panels>
inline void multiply_pass(const Pass& pass) noexcept {
  const IntegerTile& tile = *pass.tile;
  constexpr Zero Left = Bits == 8 ? Z : Zero::symmetric;
  for (std::size_t i = 0; i < pass.rows * strip_outputs; ++i) pass.totals[i] = 0.0f;
  if (tile.groups == 0) return;
  const std::size_t most_slices = decoded_bytes / (Panels * panel_outputs * tile.shape.inputs);
  GroupSums waiting;
  Chunk chunk;
  chunk.slices = pass.group_slices < most_slices ? pass.group_slices : most_slices;
  chunk = following_chunk(pass, chunk, most_slices);
  while (chunk.group < tile.groups) {
    const Chunk next = following_chunk(pass, chunk, most_slices);
    NextWeights next_weights;
    if (next.group < tile.groups) {
      const std::size_t offset = chunk_offset(tile, next, block_bytes(Bits));
      const std::size_t bytes = offset - chunk_offset(tile, chunk, block_bytes(Bits));
      next_weights.from = tile.panel + offset;
      next_weights.bytes = tile.panel_bytes - offset < bytes ? tile.panel_bytes - offset : bytes;
    }
    decode_chunk<Bits, Z, Panels>(pass, chunk);
    multiply_chunk<Left, Panels>(pass, chunk, next_weights, waiting);
    chunk = next;
  }
  GroupScales<Panels> scales;
  load_scales<Left>(scales, waiting, tile.panel_bytes);
  add_rows<Left>(scales, waiting, waiting.rows);
}

/// Scales the sums of one pass and writes them to the result.
template <std::size_t Panels>
inline void write_totals(const Pass& pass) noexcept {
  const IntegerTile& tile = *pass.tile;
  for (std::size_t r = 0; r < pass.rows; ++r) {
    const __m512 scale = _mm512_set1_ps(tile.row_scales[pass.first_row + r] * tile.weight_multiplier);
    float* out = tile.out + (pass.first_row + r) * tile.out_stride;
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      const __m512 total = _mm512_loadu_ps(pass.totals + r * strip_outputs + p * panel_outputs);
      _mm512_storeu_ps(out + p * panel_outputs, _mm512_mul_ps(total, scale));
    }
  }
}

/// All rows of a tile in passes, with their memory on the stack.
template <int Bits, Zero Z, std::size_t Panels>
[[gnu::noinline]] void multiply_rows(const IntegerTile& tile) noexcept {
  alignas(64) std::int8_t weights[decoded_bytes];
  alignas(64) std::byte sums[(kept_panels + 1) * panel_sums * sizeof(float)];
  const std::size_t slice_blocks = tile.shape.inputs / block_inputs;
  Pass pass;
  pass.tile = &tile;
  pass.group_slices = (tile.blocks_per_group + slice_blocks - 1) / slice_blocks;
  const std::size_t others = tile.groups == 0 ? 0 : tile.groups - 1;
  const std::size_t last_blocks = tile.blocks - others * tile.blocks_per_group;
  pass.slices = others * pass.group_slices + (last_blocks + slice_blocks - 1) / slice_blocks;
  // Groups that are cut keep the int32 sums of every panel between their parts.
  const bool cut = pass.group_slices * Panels * panel_outputs * tile.shape.inputs > decoded_bytes;
  const std::size_t most_panels = cut ? kept_panels / 2 : kept_panels;
  pass.weights = weights;
  pass.totals = reinterpret_cast<float*>(sums);
  pass.sums = reinterpret_cast<std::int32_t*>(sums) + most_panels * panel_sums;
  for (; pass.first_row < tile.rows; pass.first_row += pass.rows) {
    const std::size_t rows = tile.rows - pass.first_row;
    pass.rows = rows < most_panels * amx_panel_rows ? rows : most_panels * amx_panel_rows;
    multiply_pass<Bits, Z, Panels>(pass);
    write_totals<Panels>(pass);
  }
  release_tiles();
}

/// See IntegerTile. Activations in panels for vectors were too few for tiles.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  if (tile.shape.rows != amx_panel_rows) return avx512_vnni::integer_tile<Bits, Z>(tile);
  if (tile.panels == 2) return multiply_rows<Bits, Z, 2>(tile);
  multiply_rows<Bits, Z, 1>(tile);
}

CBQ_END_REGION
}  // namespace isa::amx_int8
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
