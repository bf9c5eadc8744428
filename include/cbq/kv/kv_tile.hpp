// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the attention driver hands to a kernel that reads a page: pointers and sizes, no types of the standard library,
// so that kernels compiled inside a target region share nothing with the rest of the program. Everything was checked
// before; kernels check nothing. All integer sums are exact, so every instruction set gives the same ones.
//
//   score[r][p]  = query_scale[r] * sum_g scale[p][g] * (sum_c code[p][c] query[r][c])
//                + sum_g offset[p][g] query_sum[r][g]
//   out[r][c]   += weight_scale[r] * sum_p code[p][c] weight[r][p] + offset_sum[r]
//
// Order decides the speed: page by page with the heads inside, each head's keys, weights, values, is one sequential
// stream of a whole page, and a single row runs at 75 to 90 % of the DRAM rate. Head by head, with 8 KiB here and
// there, it is 60 %, however far ahead is asked for. `next` is then what lies two tiles further on (the same head's
// part of the next head; behind the last one, of the next page). A kernel asks for as many bytes from there on as it
// reads itself (<cbq/kv/lines_ahead.hpp>).

#include <cstddef>
#include <cstdint>

#include <cbq/config.hpp>

namespace cbq {

/// Rows of one call, at most: query heads that share a key/value head times query positions.
inline constexpr std::size_t kv_tile_rows = 16;

/// Queries, quantized to 8 bits per row, times keys of one head and page.
struct KeyTile {
  const std::byte* keys = nullptr;  ///< of the head
  std::size_t panels = 0;           ///< of 16 positions to compute, 1 .. 4
  // From KvLayout.
  std::size_t key_header_bytes = 0;
  std::size_t key_panel_bytes = 0;
  std::size_t groups = 0;
  std::size_t blocks_per_group = 0;
  std::size_t key_blocks = 0;
  bool channel_keys = false;             ///< no scale and offset per position: they are 1 and 0
  std::size_t rows = 0;                  ///< 1 .. kv_tile_rows
  const std::int8_t* queries = nullptr;  ///< [row][32 * key_blocks], groups padded with 0 as the blocks are
  const float* query_scales = nullptr;   ///< [row]
  const float* query_sums = nullptr;     ///< [row][group]: sum of the dequantized query of the group
  float* scores = nullptr;               ///< [row][16 * panels]
  std::size_t score_stride = 0;
  const std::byte* next = nullptr;  ///< bytes to ask for meanwhile; null: none. They may lie outside of any memory
  bool every_line = false;          ///< of them, see LinesAhead
};

/// Weights, quantized to 8 bits per row and page, times values of one head, page and group of channels.
struct ValueTile {
  const std::byte* blocks = nullptr;  ///< of the first panel of the group
  std::size_t panels = 0;             ///< of 16 channels
  std::size_t rows = 0;
  const std::uint8_t* weights = nullptr;      ///< [row][64]
  const std::int32_t* weight_sums = nullptr;  ///< [row]: sum of its weights
  const float* weight_scales = nullptr;       ///< [row]
  const float* offset_sums = nullptr;         ///< [row]
  float* out = nullptr;                       ///< [row][16 * panels], added to
  std::size_t out_stride = 0;
  const std::byte* next = nullptr;  ///< as above
  bool every_line = false;
};

/// Softmax weights of one row and page, to be multiplied with the values' scales and quantized: code[p] = round(p[p] *
/// scale[p] / step), step = largest / 255. What rounding took from the sum of the weights is given back at the middle
/// of the codes, in offset_sum: an error of a weight then counts with the distance of its value from the middle of its
/// range, not with all of scale * code, which is several times larger where values lie around 0.
struct WeightRow {
  const float* softmax = nullptr;     ///< [64], 0 where nothing is attended to
  const std::byte* scales = nullptr;  ///< half[64]; half[64] offsets follow
  std::uint8_t* codes = nullptr;      ///< [64]
  float middle = 0.0f;                ///< of the values' codes, (2^bits - 1) / 2; 0: nothing is given back
  std::int32_t code_sum = 0;          ///< result
  float step = 0.0f;                  ///< result; 0 where all weights are
  float offset_sum = 0.0f;            ///< result: sum of softmax * (offset + middle * scale) - middle * step * code_sum
};

/// Softmax of the scores of one head and page and the quantized weights that come of it, all rows together: as
/// softmax_block (<cbq/kv/softmax.hpp>) and then WeightRow for every row and group of channels, in half the time.
struct PageWeights {
  float* scores = nullptr;  ///< [row][64]; may be overwritten
  std::size_t score_stride = 0;
  std::size_t rows = 0;
  const std::size_t* first = nullptr;  ///< [row]: the row sees positions first .. valid - 1 of the page; null: from 0
  const std::size_t* valid = nullptr;  ///< [row]
  float scale = 1.0f;                  ///< of scores; > 0
  // Running results, [row]: see SoftmaxBlock.
  float* maxima = nullptr;
  float* sums = nullptr;
  float* values = nullptr;  ///< [row][value_columns], scaled down where the maximum grows
  std::size_t value_stride = 0;
  std::size_t value_columns = 0;  ///< a multiple of 16
  // Values of the head.
  const std::byte* scales = nullptr;  ///< header of the first group
  std::size_t groups = 0;
  std::size_t group_bytes = 0;  ///< from one group's header to the next
  float middle = 0.0f;          ///< see WeightRow
  // Results, what ValueTile wants: of row r and group g at [g * rows + r].
  std::uint8_t* codes = nullptr;  ///< [group][row][64]
  std::int32_t* code_sums = nullptr;
  float* steps = nullptr;
  float* offset_sums = nullptr;
};

using KeyKernel = void (*)(const KeyTile&) noexcept;
using ValueKernel = void (*)(const ValueTile&) noexcept;
using WeightKernel = void (*)(WeightRow&) noexcept;
using PageWeightKernel = void (*)(const PageWeights&) noexcept;

/// The kernels of one instruction set for codes of one width.
struct KvKernels {
  KeyKernel keys = nullptr;
  ValueKernel values = nullptr;
  WeightKernel weights = nullptr;
  PageWeightKernel page_weights = nullptr;
};

}  // namespace cbq
