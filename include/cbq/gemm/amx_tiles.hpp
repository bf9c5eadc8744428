// SPDX-License-Identifier: Apache-2.0
#pragma once

// The AMX instructions that kernels use, on registers ("tiles") of 16 rows x 64 bytes, and what the eight tiles hold:
// sums of 32 rows x 32 outputs in tiles 0 to 3, activations in 4 and 5, weights in 6 and 7. Whoever configures tiles
// releases them before returning; compilers and hosts then find none in use.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::amx_int8 {

/// Rows of one tile.
inline constexpr std::size_t tile_rows = 16;
/// Outputs side by side in the sums of a panel of activations.
inline constexpr std::size_t strip_outputs = 2 * panel_outputs;

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

[[gnu::always_inline]] inline void release_tiles() noexcept {
  asm volatile("tilerelease");
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

CBQ_END_REGION
}  // namespace isa::amx_int8
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
