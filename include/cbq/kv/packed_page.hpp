// SPDX-License-Identifier: Apache-2.0
#pragma once

// One head of one page of codes, visited by the rows that read it: scores by integer products with 8-bit queries, a
// step of the running softmax whose weights, multiplied with the values' scales, become 8 bits per row, and integer
// products of those with the codes of the values. Keys whose scales belong to channels (KIVI) are multiplied with
// queries that took these scales first, and are quantized anew for every page.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/core/element.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/online_softmax.hpp>
#include <cbq/kv/query_rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

static_assert(block_rows == kv_tile_rows);

/// A head of a page and what its rows see of it.
struct PackedPage {
  const KvLayout& layout;
  const KvKernels& kernels;
  const std::byte* bytes = nullptr;  ///< of the head
  const std::byte* next = nullptr;   ///< of the head that is read next; null: none
  Isa isa = Isa::scalar;
  std::size_t begin = 0;  ///< position of its first
  std::size_t first[block_rows] = {};
  std::size_t valid[block_rows] = {};
};

/// Of what is read next, see LinesAhead: true on processors with AMX.
[[nodiscard]] constexpr bool asks_for_every_line(Isa isa) noexcept {
  return isa == Isa::amx_int8;
}

/// Half of the largest code.
[[nodiscard]] constexpr float middle_code(const KvLayout& layout) noexcept {
  return static_cast<float>((1u << layout.bits) - 1) / 2;
}

/// q . (scale * code + offset) = (q * scale) . code + q . offset, with scales and offsets of channels. As with weights
/// (WeightRow), what rounding takes from q * scale is given back at the middle of the codes.
inline void score_channel_keys(const PackedPage& page, const QueryRows& queries, KeyTile tile) noexcept {
  const KvLayout& layout = page.layout;
  float scales[most_width];
  float offsets[most_width];
  for (std::size_t i = 0; i < layout.width; ++i) {
    const std::size_t padded = i / layout.group * layout.blocks_per_group * block_inputs + i % layout.group;
    const AffineOffsets at = key_channel_affine(layout, padded);
    half scale, offset;
    std::memcpy(&scale, page.bytes + at.scale, sizeof scale);
    std::memcpy(&offset, page.bytes + at.offset, sizeof offset);
    scales[i] = to_float(scale);
    offsets[i] = to_float(offset);
  }
  QueryRowsMemory memory;
  const QueryRows folded = query_rows(memory);
  float constants[block_rows];
  for (std::size_t r = 0; r < tile.rows; ++r) {
    float* product = folded.floats + r * layout.width;
    float lost = 0.0f;
    constants[r] = 0.0f;
    for (std::size_t i = 0; i < layout.width; ++i) {
      const float query = queries.floats[r * layout.width + i];
      product[i] = query * scales[i];
      constants[r] += query * offsets[i];
      lost += product[i];
    }
    const bool finite = quantize_query(layout, {product, layout.width}, r, folded, largest_folded_query);
    for (std::size_t g = 0; g < layout.groups; ++g) lost -= folded.sums[r * layout.groups + g];
    constants[r] = finite ? constants[r] + middle_code(layout) * lost : __builtin_nanf("");  // scores beyond float
  }
  tile.queries = folded.codes;
  tile.query_scales = folded.scales;
  tile.query_sums = folded.sums;
  page.kernels.keys(tile);
  for (std::size_t r = 0; r < tile.rows; ++r) {
    for (std::size_t i = 0; i < tile.panels * panel_outputs; ++i)
      tile.scores[r * tile.score_stride + i] += constants[r];
  }
}

/// scores [row][64] of the first `panels` panels; 0 behind them, as softmax reads whole pages.
inline void score_page(const PackedPage& page, const QueryRows& queries, std::size_t rows, std::size_t panels,
                       float* scores) noexcept {
  const KvLayout& layout = page.layout;
  const KeyTile tile{.keys = page.bytes,
                     .panels = panels,
                     .key_header_bytes = layout.key_header_bytes,
                     .key_panel_bytes = layout.key_panel_bytes,
                     .groups = layout.groups,
                     .blocks_per_group = layout.blocks_per_group,
                     .key_blocks = layout.key_blocks,
                     .channel_keys = layout.channel_keys,
                     .rows = rows,
                     .queries = queries.codes,
                     .query_scales = queries.scales,
                     .query_sums = queries.sums,
                     .scores = scores,
                     .score_stride = kv_page_positions,
                     .next = page.next,
                     .every_line = asks_for_every_line(page.isa)};
  layout.channel_keys ? score_channel_keys(page, queries, tile) : page.kernels.keys(tile);
  const std::size_t end = panels * panel_outputs;
  if (end == kv_page_positions) return;
  for (std::size_t r = 0; r < rows; ++r) {
    std::memset(scores + r * kv_page_positions + end, 0, (kv_page_positions - end) * sizeof(float));
  }
}

/// What PageWeights asks for, row by row, for instruction sets without a kernel for all of it.
inline void weigh_rows(const PageWeights& page, const PackedPage& from) noexcept {
  softmax_block({.scores = page.scores,
                 .stride = page.score_stride,
                 .rows = page.rows,
                 .columns = kv_page_positions,
                 .valid = page.valid,
                 .first = page.first,
                 .scale = page.scale,
                 .maxima = page.maxima,
                 .sums = page.sums,
                 .values = page.values,
                 .value_stride = page.value_stride,
                 .value_columns = page.value_columns},
                from.isa);
  for (std::size_t i = 0; i < page.groups * page.rows; ++i) {
    WeightRow row{.softmax = page.scores + i % page.rows * page.score_stride,
                  .scales = page.scales + i / page.rows * page.group_bytes,
                  .codes = page.codes + i * kv_page_positions,
                  .middle = page.middle};
    from.kernels.weights(row);
    page.code_sums[i] = row.code_sum;
    page.steps[i] = row.step;
    page.offset_sums[i] = row.offset_sum;
  }
}

/// Adds what the rows see of the page.
inline void visit_page(const PackedPage& page, const QueryRows& queries, const RowSums& sums) noexcept {
  const KvLayout& layout = page.layout;
  std::size_t end = 0;
  for (std::size_t r = 0; r < sums.rows; ++r) end = page.valid[r] > end ? page.valid[r] : end;
  if (end == 0) return;
  alignas(64) float scores[block_rows * kv_page_positions];
  alignas(64) std::uint8_t codes[most_groups * block_rows * kv_page_positions];
  std::int32_t code_sums[most_groups * block_rows];
  float steps[most_groups * block_rows];
  float offset_sums[most_groups * block_rows];
  score_page(page, queries, sums.rows, divide_up(end, panel_outputs), scores);
  add_biases(sums.biases, sums.rows, {scores, kv_page_positions, page.begin, kv_page_positions});
  const std::byte* values = page.bytes + layout.key_bytes;
  const PageWeights weights{.scores = scores,
                            .score_stride = kv_page_positions,
                            .rows = sums.rows,
                            .first = page.first,
                            .valid = page.valid,
                            .scale = sums.scale,
                            .maxima = sums.maxima,
                            .sums = sums.sums,
                            .values = sums.values,
                            .value_stride = sums.stride,
                            .value_columns = sums.stride,
                            .scales = values,
                            .groups = layout.groups,
                            .group_bytes = value_group_offset(layout, 1),
                            .middle = middle_code(layout),
                            .codes = codes,
                            .code_sums = code_sums,
                            .steps = steps,
                            .offset_sums = offset_sums};
  page.kernels.page_weights != nullptr ? page.kernels.page_weights(weights) : weigh_rows(weights, page);
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const std::size_t first = g * sums.rows;
    page.kernels.values(
        {.blocks = values + value_panel_offset(layout, g, 0),
         .panels = divide_up(group_channels(layout, g), panel_outputs),
         .rows = sums.rows,
         .weights = codes + first * kv_page_positions,
         .weight_sums = code_sums + first,
         .weight_scales = steps + first,
         .offset_sums = offset_sums + first,
         .out = sums.values + g * layout.group,
         .out_stride = sums.stride,
         .next = page.next == nullptr ? nullptr : page.next + layout.key_bytes + value_group_offset(layout, g),
         .every_line = asks_for_every_line(page.isa)});
  }
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
