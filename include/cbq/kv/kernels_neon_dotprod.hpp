// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention on packed keys and values with Armv8.2 dot products (<cbq/kv/kv_tile.hpp>): sdot for keys, udot for values,
// each multiplying 4 outputs x 4 inputs by a quarter of a register, so that 16 queries or weights of a row are one load
// and no broadcast. sdot has no mixed signs: key codes of 8 bits are taken less 128, and 128 times the sum of the query
// is added; narrower ones are signed bytes as they are. Tiles of 1, 2, 4 and 8 rows; a decoded vector serves them all.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_neon.hpp>
#include <cbq/kv/kernels_scalar.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon_dotprod {

/// Vectors of 4 outputs of a tile of `rows`: what 32 registers hold.
[[nodiscard]] constexpr std::size_t kv_tile_quads(std::size_t rows) noexcept {
  return rows <= 2 ? 4 : rows == 4 ? 2 : 1;
}

CBQ_BEGIN_REGION(CBQ_TARGET_NEON_DOTPROD)

/// Signed products: of key codes and queries.
struct KeyOperands {
  using Sums = int32x4_t;
  using Bytes = int8x16_t;

  template <int Bits, int Step>
  [[gnu::always_inline]] static inline Bytes decode(const std::byte* block) noexcept {
    return neon::decode_step<Bits, Step>(block);
  }
  [[gnu::always_inline]] static inline Bytes load(const std::int8_t* from) noexcept { return vld1q_s8(from); }
  template <int Lane>
  [[gnu::always_inline]] static inline Sums add(Sums sums, Bytes codes, Bytes queries) noexcept {
    return vdotq_laneq_s32(sums, codes, queries, Lane);
  }
};

/// Unsigned products: of value codes and weights.
struct ValueOperands {
  using Sums = uint32x4_t;
  using Bytes = uint8x16_t;

  template <int Bits, int Step>
  [[gnu::always_inline]] static inline Bytes decode(const std::byte* block) noexcept {
    if constexpr (Bits == 8) {
      return neon::load(block + Step * 64);
    } else {
      return vreinterpretq_u8_s8(neon::decode_step<Bits, Step>(block));
    }
  }
  [[gnu::always_inline]] static inline Bytes load(const std::uint8_t* from) noexcept { return vld1q_u8(from); }
  template <int Lane>
  [[gnu::always_inline]] static inline Sums add(Sums sums, Bytes codes, Bytes weights) noexcept {
    return vdotq_laneq_u32(sums, codes, weights, Lane);
  }
};

/// Adds the products of the steps [4 * Half, 4 * Half + 4) of one block.
template <class Operands, int Bits, int Half, std::size_t Rows, std::size_t Quads, class Row>
[[gnu::always_inline]] inline void dot_half(typename Operands::Sums (&sums)[Rows][Quads], const std::byte* block,
                                            const Row* rows, std::size_t row_stride) noexcept {
  typename Operands::Bytes codes[Quads][4];
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
    const std::byte* quad = block + neon::quad_bytes * q;
    codes[q][0] = Operands::template decode<Bits, 4 * Half>(quad);
    codes[q][1] = Operands::template decode<Bits, 4 * Half + 1>(quad);
    codes[q][2] = Operands::template decode<Bits, 4 * Half + 2>(quad);
    codes[q][3] = Operands::template decode<Bits, 4 * Half + 3>(quad);
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    const auto x = Operands::load(rows + r * row_stride + 16 * Half);
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      sums[r][q] = Operands::template add<0>(sums[r][q], codes[q][0], x);
      sums[r][q] = Operands::template add<1>(sums[r][q], codes[q][1], x);
      sums[r][q] = Operands::template add<2>(sums[r][q], codes[q][2], x);
      sums[r][q] = Operands::template add<3>(sums[r][q], codes[q][3], x);
    }
  }
}

/// What sums of one row and group start from: what codes less 128 lack.
template <int Bits>
[[gnu::always_inline]] inline int32x4_t first_sum(const std::int8_t* query, std::size_t blocks) noexcept {
  int32x4_t sum = vdupq_n_s32(0);
  if constexpr (Bits == 8) {
    for (std::size_t i = 0; i < 2 * blocks; ++i) sum = vdotq_s32(sum, vld1q_s8(query + 16 * i), vdupq_n_s8(1));
    sum = vdupq_n_s32(128 * vaddvq_s32(sum));
  }
  return sum;
}

/// Scores from the sums of all groups, scales included: offsets are added.
template <std::size_t Rows, std::size_t Quads>
[[gnu::always_inline]] inline void store_scores(const KeyTile& tile, const std::byte* header, std::size_t first_row,
                                                const float32x4_t (&totals)[Rows][Quads], float* scores) noexcept {
  const std::size_t groups = tile.channel_keys ? 0 : tile.groups;
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    const float* query_sums = tile.query_sums + (first_row + r) * tile.groups;
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      float32x4_t score = vdupq_n_f32(0.0f);
      for (std::size_t group = 0; group < groups; ++group) {
        const std::byte* offsets = header + (2 * group + 1) * group_scales_bytes;
        score = vfmaq_n_f32(score, neon::group_scale(offsets, neon::quad_outputs * q), query_sums[group]);
      }
      score = vfmaq_n_f32(score, totals[r][q], tile.query_scales[first_row + r]);
      vst1q_f32(scores + (first_row + r) * tile.score_stride + neon::quad_outputs * q, score);
    }
  }
}

/// 4 * Quads positions from `first` of one panel times rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows, std::size_t Quads>
inline void key_rows(const KeyTile& tile, const std::byte* panel, std::size_t first, std::size_t first_row,
                     float* scores) noexcept {
  const std::size_t stride = tile.key_blocks * block_inputs;
  const std::int8_t* queries = tile.queries + first_row * stride;
  const std::byte* header = panel + first * sizeof(half);
  const std::byte* block = panel + tile.key_header_bytes + first * step_inputs;
  float32x4_t totals[Rows][Quads];
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) totals[r][q] = vdupq_n_f32(0.0f);
  std::size_t blocks_left = tile.key_blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    int32x4_t sums[Rows][Quads];
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const int32x4_t start = first_sum<Bits>(queries + r * stride, count);
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) sums[r][q] = start;
    }
    for (std::size_t i = 0; i < count; ++i, block += Bits * line_bytes, queries += block_inputs) {
      dot_half<KeyOperands, Bits, 0>(sums, block, queries, stride);
      dot_half<KeyOperands, Bits, 1>(sums, block, queries, stride);
    }
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const float32x4_t scale =
          tile.channel_keys ? vdupq_n_f32(1.0f)
                            : neon::group_scale(header + 2 * group * group_scales_bytes, neon::quad_outputs * q);
      _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) totals[r][q] =
          vfmaq_f32(totals[r][q], scale, vcvtq_f32_s32(sums[r][q]));
    }
  }
  store_scores(tile, header, first_row, totals, scores + first);
}

/// 4 * Quads channels from `first` of one panel times rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows, std::size_t Quads>
inline void value_rows(const ValueTile& tile, const std::byte* panel, std::size_t first, std::size_t first_row,
                       float* out) noexcept {
  const std::uint8_t* weights = tile.weights + first_row * kv_page_positions;
  const std::byte* block = panel + first * step_inputs;
  uint32x4_t sums[Rows][Quads];
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) sums[r][q] = vdupq_n_u32(0);
  for (std::size_t i = 0; i < kv_page_positions / block_inputs; ++i) {
    dot_half<ValueOperands, Bits, 0>(sums, block, weights, kv_page_positions);
    dot_half<ValueOperands, Bits, 1>(sums, block, weights, kv_page_positions);
    block += Bits * line_bytes;
    weights += block_inputs;
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    float* values = out + (first_row + r) * tile.out_stride + first;
    const float32x4_t offset = vdupq_n_f32(tile.offset_sums[first_row + r]);
    _Pragma("GCC unroll 4") for (std::size_t q = 0; q < Quads; ++q) {
      const float32x4_t added = vfmaq_n_f32(offset, vcvtq_f32_u32(sums[r][q]), tile.weight_scales[first_row + r]);
      float* at = values + neon::quad_outputs * q;
      vst1q_f32(at, vaddq_f32(vld1q_f32(at), added));
    }
  }
}

/// All 16 outputs of one panel times `Rows` rows.
template <int Bits, std::size_t Rows>
void panel_rows(const KeyTile& tile, std::size_t panel, std::size_t row) noexcept {
  constexpr std::size_t quads = kv_tile_quads(Rows);
  for (std::size_t first = 0; first < panel_outputs; first += quads * neon::quad_outputs) {
    key_rows<Bits, Rows, quads>(tile, tile.keys + panel * tile.key_panel_bytes, first, row,
                                tile.scores + panel * panel_outputs);
  }
}

template <int Bits, std::size_t Rows>
void panel_rows(const ValueTile& tile, std::size_t panel, std::size_t row) noexcept {
  constexpr std::size_t quads = kv_tile_quads(Rows);
  constexpr std::size_t panel_bytes = kv_page_positions / block_inputs * block_bytes(Bits);
  for (std::size_t first = 0; first < panel_outputs; first += quads * neon::quad_outputs) {
    value_rows<Bits, Rows, quads>(tile, tile.blocks + panel * panel_bytes, first, row,
                                  tile.out + panel * panel_outputs);
  }
}

/// All rows of all panels, in tiles of 8, 4, 2 and 1 rows.
template <int Bits, class Tile>
[[gnu::always_inline]] inline void all_rows(const Tile& tile) noexcept {
  for (std::size_t panel = 0; panel < tile.panels; ++panel) {
    std::size_t row = 0;
    for (; row + 8 <= tile.rows; row += 8) panel_rows<Bits, 8>(tile, panel, row);
    for (; row + 4 <= tile.rows; row += 4) panel_rows<Bits, 4>(tile, panel, row);
    for (; row + 2 <= tile.rows; row += 2) panel_rows<Bits, 2>(tile, panel, row);
    if (row < tile.rows) panel_rows<Bits, 1>(tile, panel, row);
  }
}

/// See KeyTile.
template <int Bits>
void key_tile(const KeyTile& tile) noexcept {
  all_rows<Bits>(tile);
}

/// See ValueTile.
template <int Bits>
void value_tile(const ValueTile& tile) noexcept {
  all_rows<Bits>(tile);
}

/// See WeightRow.
inline void weight_row(WeightRow& row) noexcept {
  constexpr std::size_t quads = kv_page_positions / 4;
  const std::byte* offsets = row.scales + kv_page_positions * sizeof(half);
  float32x4_t weights[quads];
  float32x4_t most = vdupq_n_f32(0.0f);
  float32x4_t offset_sums[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
  _Pragma("GCC unroll 16") for (std::size_t q = 0; q < quads; ++q) {
    const float32x4_t softmax = vld1q_f32(row.softmax + 4 * q);
    weights[q] = vmulq_f32(softmax, neon::group_scale(row.scales, 4 * q));
    most = vmaxnmq_f32(most, weights[q]);
    offset_sums[q % 2] = vfmaq_f32(offset_sums[q % 2], softmax, neon::group_scale(offsets, 4 * q));
    offset_sums[q % 2] = vfmaq_n_f32(offset_sums[q % 2], weights[q], row.middle);
  }
  row.offset_sum = vaddvq_f32(vaddq_f32(offset_sums[0], offset_sums[1]));
  const float largest = vmaxvq_f32(most);
  const bool none = !(largest >= smallest_kv_weight);
  const float inverse = none ? 0.0f : 255.0f / largest;
  row.step = none ? 0.0f : largest / 255.0f;
  uint16x8_t sums = vdupq_n_u16(0);
  _Pragma("GCC unroll 4") for (std::size_t q = 0; q < quads; q += 4) {
    uint16x4_t codes[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) codes[i] =
        vqmovn_u32(vcvtnq_u32_f32(vmulq_n_f32(weights[q + i], inverse)));
    const uint8x16_t bytes =
        vcombine_u8(vqmovn_u16(vcombine_u16(codes[0], codes[1])), vqmovn_u16(vcombine_u16(codes[2], codes[3])));
    vst1q_u8(row.codes + 4 * q, bytes);
    sums = vpadalq_u8(sums, bytes);
  }
  row.code_sum = static_cast<std::int32_t>(vaddlvq_u16(sums));
  row.offset_sum -= row.middle * row.step * static_cast<float>(row.code_sum);
}

CBQ_END_REGION
}  // namespace isa::neon_dotprod
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
