// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the matmul of the 4-bit multiplier hands to its kernels, and the plain kernel, which compilers vectorize with
// whatever the including file is compiled for. Everything was checked before; kernels check nothing.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/nibble_lanes.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Lanes of one panel: pairs of outputs c and c + 32.
inline constexpr std::size_t nibble_pairs = 32;
/// Outputs of one panel.
inline constexpr std::size_t nibble_outputs = 2 * nibble_pairs;
/// Most rows of one tile.
inline constexpr std::size_t nibble_rows = 16;

/// One panel of weights times at most 16 rows of activation codes, as sums of products of codes.
struct NibbleTile {
  const std::byte* pairs = nullptr;  // [input][pair]: output c in the upper half of a byte, c + 32 in the lower
  std::size_t inputs = 0;
  const std::uint8_t* codes = nullptr;  // of row 0
  std::size_t stride = 0;               // of codes
  std::size_t rows = 0;
  std::int32_t* sums = nullptr;       // [row][output], added to
  std::int32_t* code_sums = nullptr;  // [row], added to: sums of the activation codes
};

using NibbleKernel = void (*)(const NibbleTile&) noexcept;

namespace isa::scalar {

/// See NibbleTile.
inline void nibble_tile(const NibbleTile& tile) noexcept {
  for (std::size_t first = 0; first < tile.inputs; first += lane_depth) {
    const std::size_t end = tile.inputs - first < lane_depth ? tile.inputs : first + lane_depth;
    for (std::size_t row = 0; row < tile.rows; ++row) {
      const std::uint8_t* codes = tile.codes + row * tile.stride;
      LaneSums lanes[nibble_pairs] = {};
      for (std::size_t k = first; k < end; ++k) {
        const std::byte* pairs = tile.pairs + k * nibble_pairs;
        tile.code_sums[row] += codes[k];
        for (std::size_t p = 0; p < nibble_pairs; ++p) multiply_add(lanes[p], nibble_lane(pairs[p]), codes[k]);
      }
      std::int32_t* sums = tile.sums + row * nibble_outputs;
      for (std::size_t p = 0; p < nibble_pairs; ++p) {
        sums[p] += upper_sum(lanes[p]);
        sums[p + nibble_pairs] += lower_sum(lanes[p]);
      }
    }
  }
}

}  // namespace isa::scalar
}  // namespace CBQ_ABI
}  // namespace cbq
