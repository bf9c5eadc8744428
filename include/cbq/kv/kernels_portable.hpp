// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention on packed keys and values (<cbq/kv/kv_tile.hpp>) with whatever SIMD the including file is compiled for,
// through xsimd: for machines without a kernel of their own. Products of 8-bit numbers fit 16 bits, as in
// <cbq/gemm/kernels_portable.hpp>, whose decoders serve here: signed ones with queries, unsigned ones with weights.
// Codes are decoded again for every row.

#include <cstddef>
#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <cbq/gemm/kernels_portable.hpp>
#include <cbq/kv/kernels_scalar.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::portable {

using FloatLanes = xsimd::batch<float>;
using Words = xsimd::batch<std::uint16_t>;

/// `lane_outputs` halves.
inline FloatLanes load_kv_halves(const std::byte* from) noexcept {
  float values[lane_outputs];
  for (std::size_t c = 0; c < lane_outputs; ++c) values[c] = isa::scalar::load_kv_half(from + c * sizeof(half));
  return FloatLanes::load_unaligned(values);
}

/// Sum of code * query over `blocks` blocks for `lane_outputs` positions and one row.
template <int Bits>
Ints key_product(const std::byte* block, std::size_t blocks, const std::int8_t* query) noexcept {
  Ints sum(0);
  for (std::size_t i = 0; i < blocks; ++i) {
    Shorts pairs(std::int16_t{0});
    multiply_steps<Bits, 0>(sum, pairs, block + i * block_bytes(Bits), query + i * block_inputs);
    if constexpr (Bits != 8) sum += widen_pairs(pairs);
  }
  return sum;
}

/// Scores of one row and `lane_outputs` positions of a panel from `first` on.
template <int Bits>
FloatLanes key_scores(const KeyTile& tile, const std::byte* panel, std::size_t first, std::size_t row) noexcept {
  const std::byte* header = panel + first * sizeof(half);
  const std::byte* codes = panel + tile.key_header_bytes + first * step_inputs;
  FloatLanes total(0.0f);
  FloatLanes offsets(0.0f);
  for (std::size_t group = 0; group < tile.groups; ++group) {
    const std::size_t block = group * tile.blocks_per_group;
    const std::size_t left = tile.key_blocks - block;
    const FloatLanes sum = xsimd::to_float(key_product<Bits>(
        codes + block * block_bytes(Bits), left < tile.blocks_per_group ? left : tile.blocks_per_group,
        tile.queries + (row * tile.key_blocks + block) * block_inputs));
    if (tile.channel_keys) {
      total += sum;
      continue;
    }
    const std::byte* scales = header + 2 * group * group_scales_bytes;
    total = xsimd::fma(load_kv_halves(scales), sum, total);
    offsets = xsimd::fma(load_kv_halves(scales + group_scales_bytes),
                         FloatLanes(tile.query_sums[row * tile.groups + group]), offsets);
  }
  return xsimd::fma(FloatLanes(tile.query_scales[row]), total, offsets);
}

/// See KeyTile.
template <int Bits>
void key_tile(const KeyTile& tile) noexcept {
  for (std::size_t column = 0; column < tile.panels * panel_outputs; column += lane_outputs) {
    const std::byte* panel = tile.keys + column / panel_outputs * tile.key_panel_bytes;
    for (std::size_t row = 0; row < tile.rows; ++row) {
      key_scores<Bits>(tile, panel, column % panel_outputs, row)
          .store_unaligned(tile.scores + row * tile.score_stride + column);
    }
  }
}

/// Sum of the two uint16 halves of every 32-bit lane.
inline Ints widen_unsigned_pairs(Words pairs) noexcept {
  const auto both = xsimd::bitwise_cast<std::uint32_t>(pairs);
  return xsimd::bitwise_cast<std::int32_t>((both & xsimd::batch<std::uint32_t>(0xffffu)) + (both >> 16));
}

/// Products of steps [Step, 8) of one block with one row of weights. uint16 sums: 8 steps x 2 products x 15 * 255.
template <int Bits, int Step>
void multiply_weights(Ints& sum, Words& pairs, const std::byte* block, const std::uint8_t* weights) noexcept {
  static_assert(8 * 2 * 15 * 255 < 65536, "[cbq] sums of 16-bit products must fit uint16");
  const Words codes = xsimd::bitwise_cast<std::uint16_t>(decode_step<Bits, Step>(block));
  const auto pair = [weights](std::size_t low, std::size_t high) {
    return xsimd::bitwise_cast<std::uint16_t>(xsimd::batch<std::uint32_t>(
        static_cast<std::uint32_t>(weights[low]) | static_cast<std::uint32_t>(weights[high]) << 16));
  };
  const Words even = (codes & Words(std::uint16_t{0xff})) * pair(Step * 4, Step * 4 + 2);
  const Words odd = (codes >> 8) * pair(Step * 4 + 1, Step * 4 + 3);
  if constexpr (Bits == 8) {
    sum += widen_unsigned_pairs(even) + widen_unsigned_pairs(odd);
  } else {
    pairs += even + odd;
  }
  if constexpr (Step < 7) multiply_weights<Bits, Step + 1>(sum, pairs, block, weights);
}

/// See ValueTile.
template <int Bits>
void value_tile(const ValueTile& tile) noexcept {
  constexpr std::size_t blocks = kv_page_positions / block_inputs;
  for (std::size_t column = 0; column < tile.panels * panel_outputs; column += lane_outputs) {
    const std::byte* codes =
        tile.blocks + column / panel_outputs * blocks * block_bytes(Bits) + column % panel_outputs * step_inputs;
    for (std::size_t row = 0; row < tile.rows; ++row) {
      Ints sum(0);
      for (std::size_t i = 0; i < blocks; ++i) {
        Words pairs(std::uint16_t{0});
        multiply_weights<Bits, 0>(sum, pairs, codes + i * block_bytes(Bits),
                                  tile.weights + row * kv_page_positions + i * block_inputs);
        if constexpr (Bits != 8) sum += widen_unsigned_pairs(pairs);
      }
      float* out = tile.out + row * tile.out_stride + column;
      const FloatLanes added =
          xsimd::fma(FloatLanes(tile.weight_scales[row]), xsimd::to_float(sum), FloatLanes(tile.offset_sums[row]));
      (FloatLanes::load_unaligned(out) + added).store_unaligned(out);
    }
  }
}

/// See WeightRow.
inline void weight_row(WeightRow& row) noexcept {
  const std::byte* offsets = row.scales + kv_page_positions * sizeof(half);
  float weights[kv_page_positions];
  FloatLanes most(0.0f);
  FloatLanes offset_sum(0.0f);
  for (std::size_t p = 0; p < kv_page_positions; p += lane_outputs) {
    const FloatLanes softmax = FloatLanes::load_unaligned(row.softmax + p);
    const FloatLanes weight = softmax * load_kv_halves(row.scales + p * sizeof(half));
    weight.store_unaligned(weights + p);
    most = xsimd::max(most, weight);
    offset_sum = xsimd::fma(softmax, load_kv_halves(offsets + p * sizeof(half)), offset_sum);
    offset_sum = xsimd::fma(FloatLanes(row.middle), weight, offset_sum);
  }
  row.offset_sum = xsimd::reduce_add(offset_sum);
  const float largest = xsimd::reduce_max(most);
  const bool none = !(largest >= smallest_kv_weight);
  const FloatLanes inverse(none ? 0.0f : 255.0f / largest);
  row.step = none ? 0.0f : largest / 255.0f;
  row.code_sum = 0;
  for (std::size_t p = 0; p < kv_page_positions; p += lane_outputs) {
    std::int32_t codes[lane_outputs];
    const FloatLanes scaled = FloatLanes::load_unaligned(weights + p) * inverse;
    xsimd::nearbyint_as_int(xsimd::max(scaled, FloatLanes(0.0f))).store_unaligned(codes);
    for (std::size_t c = 0; c < lane_outputs; ++c) {
      row.codes[p + c] = static_cast<std::uint8_t>(codes[c]);
      row.code_sum += row.codes[p + c];
    }
  }
  row.offset_sum -= row.middle * row.step * static_cast<float>(row.code_sum);
}

}  // namespace isa::portable
}  // namespace CBQ_ABI
}  // namespace cbq
