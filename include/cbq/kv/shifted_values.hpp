// SPDX-License-Identifier: Apache-2.0
#pragma once

// The product of log2 weights with INT8 values by shifts and additions alone: what a machine without a multiplier would
// run, and what the products by planes of bytes must equal bit for bit. One shift per element and position; a dot
// product of bytes takes 16 to 64 of them per instruction.
//
//   out[r][c] += sum_p v[p][c] << (15 - q[r][p])          |sum| <= 127 * 2^15.5 as weights are of softmax: exact

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/packed_layout.hpp>
#include <cbq/kv/kv_layout.hpp>

namespace cbq {

/// Log2 codes of weights times values of one head and page.
struct ShiftTile {
  const std::byte* blocks = nullptr;  ///< of the page's values, code + 128; see <cbq/kv/int8_kv_cache.hpp>
  std::size_t panels = 0;             ///< of 16 elements
  std::size_t rows = 0;
  const std::uint8_t* codes = nullptr;  ///< [row][64] q, 0 .. 15; 16: a weight of 0
  float* out = nullptr;                 ///< [row][16 * panels], added to
  std::size_t out_stride = 0;
};

inline constexpr std::uint8_t no_shift = 16;

inline namespace CBQ_ABI {

namespace isa::scalar {

/// See ShiftTile.
inline void shift_tile(const ShiftTile& tile) noexcept {
  for (std::size_t c = 0; c < tile.panels * panel_outputs; ++c) {
    const std::byte* values = tile.blocks + c / panel_outputs * panel_outputs * kv_page_positions;
    for (std::size_t r = 0; r < tile.rows; ++r) {
      std::int32_t sum = 0;
      for (std::size_t p = 0; p < kv_page_positions; ++p) {
        const unsigned q = tile.codes[r * kv_page_positions + p];
        if (q == no_shift) continue;
        const std::byte* step = values + p / step_inputs * (panel_outputs * step_inputs);
        sum += (static_cast<std::int32_t>(step[c % panel_outputs * step_inputs + p % step_inputs]) - 128) << (15 - q);
      }
      tile.out[r * tile.out_stride + c] += static_cast<float>(sum);
    }
  }
}

}  // namespace isa::scalar

}  // namespace CBQ_ABI
}  // namespace cbq
