// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the weight-only matmul asks of the kernels of one instruction set: to decode blocks of a packed panel to floats,
// for many rows, and to multiply one panel with few rows while its codes are decoded in registers, either with at most
// 4 rows of floats or with at most 16 rows in fixed point (fixed_point_row.hpp). Where rows are bfloat16 and the CPU
// has products of them: to decode to pairs of bfloat16, and to multiply those with a tile of rows.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/fixed_point_row.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Blocks of one packed panel to decode: out[input][16] = scale * multiplier * (code - zero).
struct DecodeJob {
  const std::byte* panel = nullptr;
  std::size_t header_bytes = 0;
  std::size_t group_bytes = 0;
  std::size_t blocks_per_group = 0;
  std::size_t first_block = 0;
  std::size_t inputs = 0;  // from the first block's first; a last block may be partly wanted
  float multiplier = 1.0f;
  float* out = nullptr;  // inputs x 16
};

using DecodeKernel = void (*)(const DecodeJob&) noexcept;

/// Most rows of a WeightOnlyTile.
inline constexpr std::size_t weight_only_rows = 4;

/// One packed panel times at most four rows of floats: out[r][c] = sum over k of x[r][k] * w[c][k].
struct WeightOnlyTile {
  const std::byte* panel = nullptr;
  std::size_t header_bytes = 0;
  std::size_t group_bytes = 0;
  std::size_t groups = 0;
  std::size_t blocks_per_group = 0;
  float multiplier = 1.0f;
  const float* x = nullptr;
  std::size_t x_stride = 0;  // floats
  std::size_t inputs = 0;
  std::size_t rows = 0;
  float* out = nullptr;  // rows x 16
  std::size_t out_stride = 0;
};

using WeightOnlyKernel = void (*)(const WeightOnlyTile&) noexcept;

/// Most rows of a FixedPointTile.
inline constexpr std::size_t fixed_point_rows = 16;

/// One packed panel times at most 16 rows in fixed point: out[r][c] = sum over k of x[r][k] * w[c][k]. Every
/// instruction set rounds the same exact sums in the same order, so results are the same bits on all that have such a
/// kernel.
struct FixedPointTile {
  const std::byte* panel = nullptr;
  std::size_t header_bytes = 0;
  std::size_t group_bytes = 0;
  std::size_t groups = 0;
  std::size_t blocks_per_group = 0;
  std::size_t blocks = 0;  ///< of one row
  float multiplier = 1.0f;
  const FixedBlock* x = nullptr;  ///< rows x blocks
  std::size_t rows = 0;
  float* out = nullptr;  ///< rows x 16
};

using FixedPointKernel = void (*)(const FixedPointTile&) noexcept;

/// Kernels for few rows of one instruction set. Where all are null, panels are decoded for any number of rows.
struct WeightOnlyKernels {
  WeightOnlyKernel floats = nullptr;
  FixedPointKernel fixed_point = nullptr;
  FixedPointConverter to_fixed_point = nullptr;  ///< null exactly where fixed_point is
  std::int32_t zero_factor = 1;                  ///< see FixedRow
};

/// Blocks of one packed panel to decode to what vdpbf16ps multiplies: code - zero, at most 255 in magnitude and thus
/// exact, of two inputs side by side. Scales stay floats. The blocks are whole, also where the last inputs are padding.
struct PairDecodeJob {
  const std::byte* panel = nullptr;
  std::size_t header_bytes = 0;
  std::size_t group_bytes = 0;
  std::size_t blocks_per_group = 0;
  std::size_t first_block = 0;
  std::size_t blocks = 0;
  float multiplier = 1.0f;
  std::uint32_t* pairs = nullptr;  ///< [blocks * 16][16]: the lower half is the even input
  float* scales = nullptr;         ///< [groups that the blocks are of][16]: scale * multiplier
};

using PairDecodeKernel = void (*)(const PairDecodeJob&) noexcept;

/// Most rows of a Bfloat16Tile.
inline constexpr std::size_t bfloat16_tile_rows = 6;

/// Rows of bfloat16 times one or two decoded panels: sums[r][c] += sum over groups of scale * sum over k of x[r][k] *
/// level[c][k], the inner sum in float, pair after pair.
struct Bfloat16Tile {
  const bfloat16* x = nullptr;
  std::size_t x_stride = 0;                            ///< elements
  const std::uint32_t* pairs[2] = {nullptr, nullptr};  ///< see PairDecodeJob
  const float* scales[2] = {nullptr, nullptr};
  std::size_t inputs = 0;
  std::size_t first_inputs = 0;  ///< of the first group, which may have begun before
  std::size_t group_inputs = 0;  ///< of the others; the last one may be shorter
  float* sums = nullptr;         ///< rows x 32
};

using Bfloat16TileKernel = void (*)(const Bfloat16Tile&) noexcept;

/// Products of bfloat16 of one instruction set; all null where it has none. `tile[p - 1][r]` has p panels and r rows;
/// at least 8 rows are cut into ceil(n / 6) tiles of nearly equal height, so short tiles are never asked for.
struct Bfloat16Kernels {
  PairDecodeKernel decode = nullptr;
  Bfloat16TileKernel tile[2][bfloat16_tile_rows + 1] = {};
};

}  // namespace CBQ_ABI
}  // namespace cbq
