// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of queries that read one key/value head of a quantized cache, in the space of its rows (query * key scale, then
// the head's rotation): as floats for exact keys, in 8 bits for codes. One step per row, symmetric: scores of codes are
// integer sums, and lose less by it than keys by 8 bits of their own. About 100 ns per row of 128.
//
//   q8[c] = round(q[c] / step), step = max |q| / 127;  sum[g] = step * sum of q8 over the channels of group g

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/online_softmax.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

inline constexpr std::size_t most_groups = most_width / kv_longest_group;
/// Elements of queries up to here leave scores with keys within half finite.
inline constexpr float largest_query = 0x1p100f;
/// The same, once multiplied with scales of keys, which are halves.
inline constexpr float largest_folded_query = 0x1p117f;

/// Whether queries whose largest magnitude this is are numbers up to `most`.
[[nodiscard]] constexpr bool is_within(float largest, float most) noexcept {
  return is_finite(largest) && largest <= most;
}

/// Queries of one tile; memory of somebody else.
struct QueryRows {
  float* floats = nullptr;       ///< [row][width]
  std::int8_t* codes = nullptr;  ///< [row][32 * key_blocks], groups padded as blocks are
  float* scales = nullptr;       ///< [row]
  float* sums = nullptr;         ///< [row][group]
  float* slopes = nullptr;       ///< [row], see RowBiases
  float* own = nullptr;          ///< [row]: position of the query
};

/// Memory of QueryRows on the stack.
struct QueryRowsMemory {
  alignas(64) float floats[block_rows * most_width];
  alignas(64) std::int8_t codes[block_rows * most_width];
  float scales[block_rows];
  float sums[block_rows * most_groups];
  float slopes[block_rows];
  float own[block_rows];
};

[[nodiscard]] inline QueryRows query_rows(QueryRowsMemory& memory) noexcept {
  return {memory.floats, memory.codes, memory.scales, memory.sums, memory.slopes, memory.own};
}

/// Codes and their sum of some channels: round(x * inverse), |x * inverse| <= 127 but for rounding.
inline std::int32_t encode_channels(std::span<const float> x, float inverse, std::int8_t* codes) noexcept {
  using lanes::Floats;
  const Floats factor(inverse);
  std::int32_t sum = 0;
  std::int32_t block[lanes::width];
  lanes::for_each_block(x, 0.0f, [&](const float* sixteen, std::size_t valid) {
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const Floats scaled = Floats::load_unaligned(sixteen + v * Floats::size) * factor;
      xsimd::nearbyint_as_int(scaled).store_unaligned(block + v * Floats::size);
    }
    for (std::size_t j = 0; j < valid; ++j) {
      codes[j] = static_cast<std::int8_t>(block[j]);
      sum += block[j];
    }
    codes += valid;
  });
  return sum;
}

/// Codes, scale and sums of row r for the query `x` [width]; all 0, and false, where x is NaN or beyond `most`.
[[nodiscard]] inline bool quantize_query(const KvLayout& layout, std::span<const float> x, std::size_t r,
                                         const QueryRows& to, float most = largest_query) noexcept {
  constexpr float smallest = 0x1p-100f;  // of all scores of a smaller query, softmax makes the same weight
  const float largest = max_abs(x);
  const bool finite = is_within(largest, most);
  const bool any = finite && largest >= smallest;
  const float inverse = any ? 127.0f / largest : 0.0f;
  const float step = any ? largest / 127.0f : 0.0f;
  const std::size_t bytes = layout.key_blocks * block_inputs;
  std::int8_t* codes = to.codes + r * bytes;
  std::memset(codes, 0, bytes);
  to.scales[r] = step;
  for (std::size_t g = 0; g < layout.groups; ++g) {
    std::int8_t* group = codes + g * layout.blocks_per_group * block_inputs;
    const auto channels = x.subspan(g * layout.group, group_channels(layout, g));
    to.sums[r * layout.groups + g] = any ? step * static_cast<float>(encode_channels(channels, inverse, group)) : 0.0f;
  }
  return finite;
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
