// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bytes of a page: keys and values of 64 consecutive positions of one layer of one sequence, quantized. Codes lie
// in the blocks of packed weights (<cbq/gemm/packed_layout.hpp>: 16 outputs x 32 inputs, one 64-byte line per bit), so
// that the same decoders and dot products serve both. docs/kv_cache_format.md draws it with a worked example.
//
//   page        its heads, one after another
//   head        keys | values
//   keys        4 panels of 16 positions; a block's outputs are positions, its inputs channels
//     panel     for each group of channels: scale[16] half, offset[16] half | for each group its blocks
//     with scales per channel: scale[padded width] half, offset[padded width] half | 4 panels of blocks
//   values      for each group of channels: scale[64] half, offset[64] half | panels of 16 channels, each 2 blocks of
//   32
//               positions; a block's outputs are channels, its inputs positions
//
//   x^ = scale * code + offset    (algorithms of WKVQuant: dynamic min-max groups with a float offset)
//
// Channels are padded with code 0 to whole blocks (keys: every group to a multiple of 32; values: to a multiple of 16).

#include <cstddef>

#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/kv/kv_scheme.hpp>

namespace cbq {

/// Positions of a page.
inline constexpr std::size_t kv_page_positions = 64;
/// Longest group of channels.
inline constexpr std::size_t kv_longest_group = 128;

/// Where things lie in a page. Plain numbers, derived once from scheme and shape.
struct KvLayout {
  std::size_t heads = 0;             ///< key/value heads
  std::size_t width = 0;             ///< elements per head, at most 256
  std::size_t bits = 0;              ///< per code: 2, 3, 4 or 8
  bool channel_keys = false;         ///< scales of keys per channel
  std::size_t group = 0;             ///< channels per group; the last one may have fewer
  std::size_t groups = 0;            ///< of a head
  std::size_t blocks_per_group = 0;  ///< of keys: ceil(group / 32)
  std::size_t key_blocks = 0;        ///< of a key panel, all groups
  std::size_t key_header_bytes = 0;  ///< of a key panel, or of all keys with scales per channel
  std::size_t key_panel_bytes = 0;   ///< from one panel to the next
  std::size_t key_bytes = 0;         ///< of a head; values follow
  std::size_t value_header_bytes = 0;
  std::size_t value_panel_bytes = 0;  ///< 16 channels
  std::size_t value_panels = 0;       ///< ceil(width / 16)
  std::size_t value_bytes = 0;
  std::size_t head_bytes = 0;
  std::size_t page_bytes = 0;
};

}  // namespace cbq
