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
// in every other kernel), which happens while the products of the next group run. Tiles are configured on entry and
// released on return: nothing of them outlives a call.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::amx_int8 {

/// Rows of one tile.
inline constexpr std::size_t tile_rows = 16;
/// Outputs side by side in the sums of a panel of activations.
inline constexpr std::size_t strip_outputs = 2 * panel_outputs;
/// Sums of one panel of activations.
inline constexpr std::size_t panel_sums = amx_panel_rows * strip_outputs;
/// Panels whose float sums are kept, plus one for the int32 sums of the group at hand.
inline constexpr std::size_t kept_panels = 8;
/// Decoded weights that are kept: with the sums of one panel and its activations they fill an L1 cache of 48 KiB.
inline constexpr std::size_t decoded_bytes = 32768;

CBQ_BEGIN_REGION(CBQ_TARGET_AMX)

// Intrinsics paste tile numbers into names, so they cannot be template parameters; and GCC 12's declare no memory read.
template <int Tile>
[[gnu::always_inline]] inline void load_tile(const void* from, std::size_t stride) noexcept {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
[[gnu::always_inline]] inline void store_tile(void* to, std::size_t stride) noexcept {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
[[gnu::always_inline]] inline void zero_tile() noexcept {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
/// Adds activations x weights, both signed, to int32 sums.
template <int Sums, int Activations, int Weights>
[[gnu::always_inline]] inline void multiply_tiles() noexcept {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(Activations), "i"(Weights));
}

/// What ldtilecfg reads.
struct TileConfiguration {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

/// Tiles 0 to 3 hold sums (upper rows x two panels of weights, then lower rows), 4 and 5 activations, 6 and 7 weights.
inline void configure_tiles(std::size_t rows, std::size_t slice_inputs) noexcept {
  TileConfiguration tiles;
  const std::size_t upper = rows < tile_rows ? rows : tile_rows;
  for (std::size_t t = 0; t < 8; ++t) {
    const std::size_t height = t >= 6 ? slice_inputs / step_inputs : t % 4 < 2 && t != 5 ? upper : rows - upper;
    const std::size_t width = t == 4 || t == 5 ? slice_inputs : line_bytes;
    tiles.rows[t] = static_cast<std::uint8_t>(height);
    tiles.row_bytes[t] = static_cast<std::uint16_t>(height == 0 ? 0 : width);
  }
  asm volatile("ldtilecfg %0" : : "m"(tiles));
}

/// One pass: `rows` rows from the start of a panel times one strip of outputs, and its working memory.
struct Pass {
  const IntegerTile* tile = nullptr;
  std::size_t first_row = 0;
  std::size_t rows = 0;
  std::size_t group_slices = 0;  // of all groups but perhaps the last
  std::size_t slices = 0;        // of all groups
  std::int8_t* weights = nullptr;
  float* totals = nullptr;
  std::int32_t* sums = nullptr;  // of one panel; of all panels where groups are cut
};

/// Slices [first, first + slices) of groups [group, group + groups): what is decoded at a time. Either whole groups,
/// of which the last may have fewer slices, or a part of one.
struct Chunk {
  std::size_t group = 0;
  std::size_t groups = 0;
  std::size_t first = 0;
  std::size_t slices = 0;
};

/// Sums of one group and panel of activations that wait for being scaled.
struct GroupSums {
  const std::int32_t* sums = nullptr;
  float* totals = nullptr;
  const std::byte* header = nullptr;  // of the group in the first panel of weights
  const std::int32_t* zero_terms = nullptr;
  std::size_t rows = 0;
};

/// Slices of `group` from `first` on.
[[gnu::always_inline]] inline std::size_t slices_left(const Pass& pass, std::size_t group, std::size_t first) noexcept {
  const std::size_t all = group + 1 == pass.tile->groups ? pass.slices - group * pass.group_slices : pass.group_slices;
  return all - first;
}

template <int Bits, unsigned Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, __m512i zero, std::int8_t* out) noexcept {
  _mm512_storeu_si512(out + Step * line_bytes, _mm512_sub_epi8(avx512_vnni::decode_step<Bits, Step>(block), zero));
  if constexpr (Step < 7) decode_steps<Bits, Step + 1>(block, zero, out);
}

/// What decoding subtracts from the codes of a group, byte by byte of a line.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512i subtracted_zero(const std::byte* header) noexcept {
  if constexpr (Z == Zero::affine && Bits < 8) {
    const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + group_scales_bytes));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101));
  } else {
    return _mm512_set1_epi8(static_cast<char>(1 << (Bits - 1)));
  }
}

/// Decodes a chunk to [group][slice][panel][step][64 bytes]. A block that the packed weights lack meets activations of
/// 0.
template <int Bits, Zero Z, std::size_t Panels>
inline void decode_chunk(const Pass& pass, const Chunk& chunk) noexcept {
  const IntegerTile& tile = *pass.tile;
  constexpr std::size_t decoded_block = block_inputs * panel_outputs;
  const std::size_t slice_blocks = tile.shape.inputs / block_inputs;
  std::int8_t* group_out = pass.weights;
  for (std::size_t group = chunk.group; group < chunk.group + chunk.groups; ++group) {
    const std::size_t blocks_left = tile.blocks - group * tile.blocks_per_group;
    const std::size_t blocks = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    const std::size_t left = slices_left(pass, group, chunk.first);
    const std::size_t slices = left < chunk.slices ? left : chunk.slices;
    for (std::size_t p = 0; p < Panels; ++p) {
      const std::byte* header = tile.panel + p * tile.panel_bytes + group * tile.group_bytes;
      const __m512i zero = subtracted_zero<Bits, Z>(header);
      std::int8_t* out = group_out + p * slice_blocks * decoded_block;
      for (std::size_t slice = 0; slice < slices; ++slice) {
        for (std::size_t b = 0; b < slice_blocks; ++b) {
          const std::size_t block = (chunk.first + slice) * slice_blocks + b;
          if (block < blocks) {
            decode_steps<Bits, 0>(header + tile.header_bytes + block * block_bytes(Bits), zero,
                                  out + b * decoded_block);
          } else {
            __builtin_memset(out + b * decoded_block, 0, decoded_block);
          }
        }
        out += Panels * slice_blocks * decoded_block;
      }
    }
    group_out += chunk.slices * Panels * slice_blocks * decoded_block;
  }
}

/// Products of `slices` slices of one panel of activations with decoded weights.
template <std::size_t Heights, std::size_t Panels>
inline void multiply_slices(const std::int8_t* codes, std::size_t codes_step, const std::int8_t* weights,
                            std::size_t slices, std::size_t slice_inputs) noexcept {
  const std::size_t weights_step = slice_inputs * panel_outputs;
  for (std::size_t slice = 0; slice < slices; ++slice) {
    load_tile<4>(codes, slice_inputs);
    load_tile<6>(weights, line_bytes);
    multiply_tiles<0, 4, 6>();
    if constexpr (Panels == 2) {
      load_tile<7>(weights + weights_step, line_bytes);
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (Heights == 2) {
      load_tile<5>(codes + tile_rows * slice_inputs, slice_inputs);
      multiply_tiles<2, 5, 6>();
      if constexpr (Panels == 2) multiply_tiles<3, 5, 7>();
    }
    codes += codes_step;
    weights += Panels * weights_step;
  }
}

enum class SumTiles { zero, load, store };

template <SumTiles Do, int Tile>
[[gnu::always_inline]] inline void move_tile(std::int32_t* sums) noexcept {
  constexpr std::size_t stride = strip_outputs * sizeof(std::int32_t);
  std::int32_t* memory = sums + (Tile / 2 * tile_rows * strip_outputs + Tile % 2 * panel_outputs);
  if constexpr (Do == SumTiles::zero) zero_tile<Tile>();
  if constexpr (Do == SumTiles::load) load_tile<Tile>(memory, stride);
  if constexpr (Do == SumTiles::store) store_tile<Tile>(memory, stride);
}

/// Sets the sums of a panel of activations to zero, or moves them from or to memory.
template <SumTiles Do, std::size_t Heights, std::size_t Panels>
[[gnu::always_inline]] inline void move_sums(std::int32_t* sums) noexcept {
  move_tile<Do, 0>(sums);
  if constexpr (Panels == 2) move_tile<Do, 1>(sums);
  if constexpr (Heights == 2) move_tile<Do, 2>(sums);
  if constexpr (Heights == 2 && Panels == 2) move_tile<Do, 3>(sums);
}

/// totals += scale * (sums - what is left of the zero points). `Left`: affine where decoding could not subtract them.
template <Zero Left, std::size_t Panels>
inline void add_sums(const GroupSums& group, std::size_t panel_bytes) noexcept {
  if (group.rows == 0) return;
  __m512 scales[Panels];
  __m512i zeros[Panels];
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
    const std::byte* header = group.header + p * panel_bytes;
    scales[p] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(header)));
    if constexpr (Left == Zero::affine) {
      const std::byte* codes = header + group_scales_bytes;
      const __m512i zero = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
      zeros[p] = _mm512_sub_epi32(zero, _mm512_set1_epi32(128));
    }
  }
  for (std::size_t r = 0; r < group.rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      const std::size_t at = r * strip_outputs + p * panel_outputs;
      __m512i sum = _mm512_loadu_si512(group.sums + at);
      if constexpr (Left == Zero::affine) {
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(zeros[p], _mm512_set1_epi32(group.zero_terms[r])));
      }
      const __m512 total = _mm512_loadu_ps(group.totals + at);
      _mm512_storeu_ps(group.totals + at, _mm512_fmadd_ps(scales[p], _mm512_cvtepi32_ps(sum), total));
    }
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
    multiply_slices<Heights, Panels>(codes + (group * pass.group_slices + chunk.first) * codes_step, codes_step,
                                     weights, slices, inputs);
    add_sums<Left, Panels>(waiting, tile.panel_bytes);
    move_sums<SumTiles::store, Heights, Panels>(sums);
    waiting.sums = sums;
    waiting.totals = pass.totals + row * strip_outputs;
    waiting.header = tile.panel + group * tile.group_bytes;
    waiting.zero_terms = tile.zero_terms + panel * tile.groups + group * rows;
    waiting.rows = left <= chunk.slices ? rows : 0;
    weights += chunk.slices * Panels * inputs * panel_outputs;
  }
}

/// A chunk times all rows of the pass.
template <Zero Left, std::size_t Panels>
inline void multiply_chunk(const Pass& pass, const Chunk& chunk, GroupSums& waiting) noexcept {
  const std::size_t whole = pass.rows / amx_panel_rows * amx_panel_rows;
  if (whole > 0) configure_tiles(amx_panel_rows, pass.tile->shape.inputs);
  for (std::size_t row = 0; row < whole; row += amx_panel_rows) {
    multiply_panel<Left, 2, Panels>(pass, chunk, row, waiting);
  }
  if (whole == pass.rows) return;
  configure_tiles(pass.rows - whole, pass.tile->shape.inputs);
  if (pass.rows - whole > tile_rows) {
    multiply_panel<Left, 2, Panels>(pass, chunk, whole, waiting);
  } else {
    multiply_panel<Left, 1, Panels>(pass, chunk, whole, waiting);
  }
}

/// All groups of one pass, and its results.
template <int Bits, Zero Z, std::size_t Panels>
inline void multiply_pass(const Pass& pass) noexcept {
  const IntegerTile& tile = *pass.tile;
  constexpr Zero Left = Bits == 8 ? Z : Zero::symmetric;
  const std::size_t most_slices = decoded_bytes / (Panels * panel_outputs * tile.shape.inputs);
  for (std::size_t i = 0; i < pass.rows * strip_outputs; ++i) pass.totals[i] = 0.0f;
  GroupSums waiting;
  Chunk chunk;
  chunk.slices = pass.group_slices < most_slices ? pass.group_slices : most_slices;
  while (chunk.group < tile.groups) {
    const std::size_t groups = most_slices / chunk.slices;
    chunk.groups = tile.groups - chunk.group < groups ? tile.groups - chunk.group : groups;
    decode_chunk<Bits, Z, Panels>(pass, chunk);
    multiply_chunk<Left, Panels>(pass, chunk, waiting);
    if (chunk.slices < slices_left(pass, chunk.group, chunk.first)) {
      chunk.first += chunk.slices;
    } else {
      chunk.group += chunk.groups;
      chunk.first = 0;
    }
  }
  add_sums<Left, Panels>(waiting, tile.panel_bytes);
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
  }
  asm volatile("tilerelease");
}

/// See IntegerTile. Activations in panels for vectors were too few for tiles.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  if (tile.shape.rows != amx_panel_rows) return avx512_vnni::integer_tile<Bits, Z>(tile);
  if (tile.panels == 2) return multiply_rows<Bits, Z, 2>(tile);
  multiply_rows<Bits, Z, 1>(tile);
}

/// See isa::scalar::quantize_row; for slices of 64 inputs.
inline void quantize_row(const ActivationRow& row) noexcept {
  const __m512 inverse = _mm512_set1_ps(row.inverse_scale);
  const __m512 lowest = _mm512_set1_ps(row.lowest);
  const __m512 highest = _mm512_set1_ps(row.highest);
  std::int8_t* out = row.codes;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    __m512i sums = _mm512_setzero_si512();
    for (std::size_t begin = 0; begin < length; begin += 64) {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 64; i += 16) {
        const std::size_t left = begin + i < length ? length - begin - i : 0;
        const __mmask16 lanes = left >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << left) - 1u);
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, row.values + first + begin + i), inverse);
        const __m512i code = _mm512_cvtps_epi32(_mm512_min_ps(highest, _mm512_max_ps(lowest, scaled)));
        sums = _mm512_add_epi32(sums, code);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(code));
      }
      out += row.slice_inputs * row.panel_rows;
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * _mm512_reduce_add_epi32(sums);
  }
}

CBQ_END_REGION
}  // namespace isa::amx_int8
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
