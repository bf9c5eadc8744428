// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the weight-only matmul asks of the kernels of one instruction set: to decode blocks of a packed panel to floats,
// for many rows, and to multiply one panel with at most four rows while its codes are decoded in registers.

#include <cstddef>
#include <cstdint>

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

}  // namespace CBQ_ABI
}  // namespace cbq
