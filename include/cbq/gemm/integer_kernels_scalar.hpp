// SPDX-License-Identifier: Apache-2.0
#pragma once

// The plain kernels: what every other kernel must equal, the integers bit for bit. They run everywhere and are slow.
// Floating point follows the same order as in the AVX2 and AVX-512 kernels (one fused multiply-add per group, whose
// scale is that of the weights or its product with that of the activations, and one product per row), so that those
// agree with this one in every bit of the result too.

#include <cstddef>
#include <cstdint>

#include <cbq/core/element.hpp>
#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::scalar {

inline half load_half(const std::byte* from) noexcept {
  half value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

/// Sum over one group of code * activation, for one output and one row.
template <int Bits>
std::int32_t group_product(const std::byte* blocks, const std::int8_t* codes, std::size_t block_count,
                           std::size_t panel_rows, std::size_t output) noexcept {
  std::int32_t sum = 0;
  for (std::size_t block = 0; block < block_count; ++block) {
    for (std::size_t inside = 0; inside < block_inputs; ++inside) {
      const auto code = static_cast<std::int32_t>(block_code(blocks + block * block_bytes(Bits), Bits, output, inside));
      sum += code * codes[block * block_inputs * panel_rows + inside];
    }
  }
  return sum;
}

/// See IntegerTile.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  for (std::size_t column = 0; column < tile.panels * panel_outputs; ++column) {
    const std::byte* panel = tile.panel + column / panel_outputs * tile.panel_bytes;
    const std::size_t output = column % panel_outputs;
    for (std::size_t row = 0; row < tile.panel_rows; ++row) {
      float total = 0.0f;
      for (std::size_t group = 0; group < tile.groups; ++group) {
        const std::byte* header = panel + group * tile.group_bytes;
        const std::size_t first = group * tile.blocks_per_group;
        const std::size_t count = group + 1 == tile.groups ? tile.blocks - first : tile.blocks_per_group;
        std::int32_t sum = tile.zero_terms[group * tile.panel_rows + row];
        if constexpr (Z == Zero::affine) sum *= static_cast<std::int32_t>(header[group_scales_bytes + output]);
        sum +=
            group_product<Bits>(header + tile.header_bytes, tile.codes + (first * tile.panel_rows + row) * block_inputs,
                                count, tile.panel_rows, output);
        float scale = to_float(load_half(header + output * sizeof(half)));
        if (tile.group_scales != nullptr) scale *= tile.group_scales[group * tile.panel_rows + row];
        total = __builtin_fmaf(scale, static_cast<float>(sum), total);
      }
      tile.out[row * tile.out_stride + column] = total * (tile.row_scales[row] * tile.weight_multiplier);
    }
  }
}

/// Range of a row; NaN and infinity are found by their exponent.
inline RowRange row_range(const float* values, std::size_t count) noexcept {
  RowRange range;
  for (std::size_t i = 0; i < count; ++i) {
    const float value = values[i];
    range.finite = range.finite && (__builtin_bit_cast(std::uint32_t, value) & 0x7f800000u) != 0x7f800000u;
    range.lowest = value < range.lowest ? value : range.lowest;
    range.highest = value > range.highest ? value : range.highest;
  }
  return range;
}

/// Code of one value: round(value * inverse_scale), ties to even, clamped.
inline std::int8_t activation_code(float value, const ActivationRow& row) noexcept {
  const float scaled = value * row.inverse_scale;
  const float clamped = scaled < row.lowest ? row.lowest : scaled > row.highest ? row.highest : scaled;
  constexpr float to_integer = 0x1.8p23f;  // adding it rounds |x| < 2^22 to the nearest integer, ties to even
  return static_cast<std::int8_t>(static_cast<std::int32_t>((clamped + to_integer) - to_integer));
}

/// Quantizes one row into its panel; inputs beyond the last are code 0.
inline void quantize_row(const ActivationRow& row) noexcept {
  std::size_t block = 0;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    std::int32_t sum = 0;
    for (std::size_t begin = 0; begin < length; begin += block_inputs, ++block) {
      std::int8_t* out = row.codes + block * block_inputs * row.panel_rows;
      for (std::size_t i = 0; i < block_inputs; ++i) {
        out[i] = begin + i < length ? activation_code(row.values[first + begin + i], row) : std::int8_t{0};
        sum += out[i];
      }
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * sum;
  }
}

}  // namespace isa::scalar
}  // namespace CBQ_ABI
}  // namespace cbq
