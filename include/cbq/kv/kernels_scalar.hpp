// SPDX-License-Identifier: Apache-2.0
#pragma once

// The plain kernels of attention on packed keys and values: what every other one must equal, integers and codes bit for
// bit. They run everywhere and are slow. Integer sums stay below 2^23 (255 * 127 * 256 channels, 255 * 255 * 64
// positions), so that their conversion to float is exact. Formulas: <cbq/kv/kv_tile.hpp>; the order of floating point:
//
//   score  = fma(query_scale, total, offsets), total and offsets one fma per group in rising order
//   out    = out + fma(weight_scale, sum, offset_sum)
//   weight w[p] = softmax[p] * scale[p]; code = round(w[p] * (255 / largest)), ties to even; step = largest / 255;
//          offset_sum two fma per position in rising order, the middle's after the offset's. Other kernels may add up
//          in another order: offset_sum may differ in its last bits, codes may not. A largest weight below 2^-100
//          counts as 0: its inverse would leave float, and beside the weight of 1 that every row of softmax has, a
//          scale being 2^-24 at least, it is nothing.

#include <cstddef>
#include <cstdint>

#include <cbq/core/element.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The largest weight of a row and page below which all of them count as 0.
inline constexpr float smallest_kv_weight = 0x1p-100f;

namespace isa::scalar {

inline float load_kv_half(const std::byte* from) noexcept {
  half value;
  __builtin_memcpy(&value, from, sizeof value);
  return to_float(value);
}

/// Sum of code * query over `blocks` blocks, for one position and one row.
template <int Bits>
std::int32_t key_product(const std::byte* codes, std::size_t blocks, std::size_t position,
                         const std::int8_t* query) noexcept {
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < blocks * block_inputs; ++i) {
    const std::byte* block = codes + i / block_inputs * block_bytes(Bits);
    sum += static_cast<std::int32_t>(block_code(block, Bits, position, i % block_inputs)) * query[i];
  }
  return sum;
}

/// Score of one row and one position of a panel, whose first block `codes` is and whose header lies at `header`.
template <int Bits>
float key_score(const KeyTile& tile, const std::byte* header, const std::byte* codes, std::size_t position,
                std::size_t row) noexcept {
  constexpr std::size_t panel_halves = panel_outputs * sizeof(half);
  float total = 0.0f;
  float offsets = 0.0f;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    const std::size_t first = group * tile.blocks_per_group;
    const std::size_t left = tile.key_blocks - first;
    const std::size_t blocks = left < tile.blocks_per_group ? left : tile.blocks_per_group;
    const std::int8_t* query = tile.queries + (row * tile.key_blocks + first) * block_inputs;
    const auto sum = static_cast<float>(key_product<Bits>(codes + first * block_bytes(Bits), blocks, position, query));
    if (tile.channel_keys) {
      total += sum;
      continue;
    }
    const std::byte* scale = header + 2 * group * panel_halves + position * sizeof(half);
    total = __builtin_fmaf(load_kv_half(scale), sum, total);
    offsets = __builtin_fmaf(load_kv_half(scale + panel_halves), tile.query_sums[row * tile.groups + group], offsets);
  }
  return __builtin_fmaf(tile.query_scales[row], total, offsets);
}

/// See KeyTile.
template <int Bits>
void key_tile(const KeyTile& tile) noexcept {
  for (std::size_t column = 0; column < tile.panels * panel_outputs; ++column) {
    // Scales per channel lie once in front of all panels, scales per position in front of each.
    const std::byte* panel = tile.keys + column / panel_outputs * tile.key_panel_bytes;
    for (std::size_t row = 0; row < tile.rows; ++row) {
      tile.scores[row * tile.score_stride + column] =
          key_score<Bits>(tile, panel, panel + tile.key_header_bytes, column % panel_outputs, row);
    }
  }
}

/// See ValueTile.
template <int Bits>
void value_tile(const ValueTile& tile) noexcept {
  constexpr std::size_t blocks = kv_page_positions / block_inputs;
  for (std::size_t column = 0; column < tile.panels * panel_outputs; ++column) {
    const std::byte* panel = tile.blocks + column / panel_outputs * blocks * block_bytes(Bits);
    for (std::size_t row = 0; row < tile.rows; ++row) {
      std::int32_t sum = 0;
      for (std::size_t p = 0; p < kv_page_positions; ++p) {
        const std::byte* block = panel + p / block_inputs * block_bytes(Bits);
        sum += static_cast<std::int32_t>(block_code(block, Bits, column % panel_outputs, p % block_inputs)) *
               tile.weights[row * kv_page_positions + p];
      }
      float& out = tile.out[row * tile.out_stride + column];
      out += __builtin_fmaf(tile.weight_scales[row], static_cast<float>(sum), tile.offset_sums[row]);
    }
  }
}

/// See WeightRow.
inline void weight_row(WeightRow& row) noexcept {
  const std::byte* offsets = row.scales + kv_page_positions * sizeof(half);
  float weights[kv_page_positions];
  float largest = 0.0f;
  row.offset_sum = 0.0f;
  for (std::size_t p = 0; p < kv_page_positions; ++p) {
    weights[p] = row.softmax[p] * load_kv_half(row.scales + p * sizeof(half));
    largest = weights[p] > largest ? weights[p] : largest;
    row.offset_sum = __builtin_fmaf(row.softmax[p], load_kv_half(offsets + p * sizeof(half)), row.offset_sum);
    row.offset_sum = __builtin_fmaf(row.middle, weights[p], row.offset_sum);
  }
  const bool none = !(largest >= smallest_kv_weight);
  const float inverse = none ? 0.0f : 255.0f / largest;
  row.step = none ? 0.0f : largest / 255.0f;
  row.code_sum = 0;
  for (std::size_t p = 0; p < kv_page_positions; ++p) {
    constexpr float to_integer = 0x1.8p23f;  // adding it rounds |x| < 2^22 to the nearest integer, ties to even
    const float scaled = weights[p] * inverse;
    // What is not a number, or negative as no encoder's scale is, must not be cast.
    const float bounded = scaled < 255.0f ? (scaled > 0.0f ? scaled : 0.0f) : 255.0f;
    row.codes[p] = static_cast<std::uint8_t>((bounded + to_integer) - to_integer);
    row.code_sum += row.codes[p];
  }
  row.offset_sum -= row.middle * row.step * static_cast<float>(row.code_sum);
}

}  // namespace isa::scalar
}  // namespace CBQ_ABI
}  // namespace cbq
