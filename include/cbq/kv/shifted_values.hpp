// SPDX-License-Identifier: Apache-2.0
#pragma once

// The product of log2 weights with INT8 values by shifts and additions alone: what a machine without a multiplier would
// run, and what the products by planes of bytes must equal bit for bit. One shift per element and position, on top of
// what brings a byte into a lane of 32 bits; a dot product of bytes takes 16 to 64 of them per instruction.
//
//   out[r][c] += sum_p v[p][c] << (15 - q[r][p])          |sum| <= 127 * 2^15.5 as weights are of softmax: exact

#include <xsimd/xsimd.hpp>

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

namespace isa::portable {

/// See ShiftTile. The 4 positions of a step lie in the 4 bytes of a lane.
inline void shift_tile(const ShiftTile& tile) noexcept {
  using Sums = xsimd::batch<std::int32_t>;
  using Totals = xsimd::batch<float>;
  static_assert(panel_outputs % Sums::size == 0, "[cbq] ShiftTile: a panel is whole registers");
  const Sums signs(static_cast<std::int32_t>(0x80808080u));
  for (std::size_t c = 0; c < tile.panels * panel_outputs; c += Sums::size) {
    const std::byte* values =
        tile.blocks + c / panel_outputs * panel_outputs * kv_page_positions + c % panel_outputs * step_inputs;
    for (std::size_t r = 0; r < tile.rows; ++r) {
      Sums sum(0);
      for (std::size_t p = 0; p < kv_page_positions; ++p) {
        const int q = tile.codes[r * kv_page_positions + p];
        if (q == no_shift) continue;
        std::int32_t lanes[Sums::size];
        __builtin_memcpy(lanes, values + p / step_inputs * (panel_outputs * step_inputs), sizeof lanes);
        const Sums step = Sums::load_unaligned(lanes) ^ signs;
        const Sums value = (step << static_cast<int>(24 - 8 * (p % step_inputs))) >> 24;
        sum += value << (15 - q);
      }
      float* out = tile.out + r * tile.out_stride + c;
      (Totals::load_unaligned(out) + xsimd::to_float(sum)).store_unaligned(out);
    }
  }
}

}  // namespace isa::portable

}  // namespace CBQ_ABI
}  // namespace cbq
