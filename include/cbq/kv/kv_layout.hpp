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
//   values      for each group of channels: scale[64] half, offset[64] half | panels of 16 channels
//     panel     2 blocks of 32 positions; a block's outputs are channels, its inputs positions
//
//   x^ = scale * code + offset    (algorithms of WKVQuant: dynamic min-max groups with a float offset)
//
// Channels are padded with code 0 to whole blocks (keys: every group to a multiple of 32; values: to a multiple of 16).
// A group is the whole head up to 128 channels; longer heads are cut every 128 channels. Offsets below count bytes:
// from the page (kv_keys_offset, kv_values_offset), from the keys of a head (key_...) or from its values (value_...).

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
  std::size_t heads = 0;               ///< key/value heads
  std::size_t width = 0;               ///< elements per head, at most 256
  std::size_t bits = 0;                ///< per code: 2, 3, 4 or 8
  bool channel_keys = false;           ///< scales of keys per channel
  std::size_t group = 0;               ///< channels per group; the last one may have fewer
  std::size_t groups = 0;              ///< of a head
  std::size_t blocks_per_group = 0;    ///< of keys: ceil(group / 32)
  std::size_t key_blocks = 0;          ///< of a key panel, all groups
  std::size_t key_header_bytes = 0;    ///< of a key panel, or of all keys with scales per channel
  std::size_t key_panel_bytes = 0;     ///< from one panel to the next
  std::size_t key_bytes = 0;           ///< of a head; values follow
  std::size_t value_header_bytes = 0;  ///< of one group
  std::size_t value_panel_bytes = 0;   ///< 16 channels
  std::size_t value_panels = 0;        ///< ceil(width / 16)
  std::size_t value_bytes = 0;
  std::size_t head_bytes = 0;
  std::size_t page_bytes = 0;
};

/// Bytes of a scale and its offset, both half, from the start of the keys or values they belong to.
struct AffineOffsets {
  std::size_t scale = 0;
  std::size_t offset = 0;
};

inline namespace CBQ_ABI {

/// Layout of pages of `heads` key/value heads of `width` elements. Errc::bad_shape for no heads, widths outside 1 ..
/// 256 and pages beyond 64 bits; Errc::unsupported for bits other than 2, 3, 4 and 8.
[[nodiscard]] constexpr Result<KvLayout> kv_layout(const KvScheme& scheme, std::size_t heads,
                                                   std::size_t width) noexcept {
  if (scheme.bits != 2 && scheme.bits != 3 && scheme.bits != 4 && scheme.bits != 8) {
    return Error{Errc::unsupported, "pages hold codes only", "bits of the KV scheme", scheme.bits, "2, 3, 4 or 8"};
  }
  if (heads == 0) return Error{Errc::bad_shape, "a page needs a head", "key/value heads", heads, "at least 1"};
  constexpr std::size_t widest = 256;
  if (width == 0 || width > widest) {
    return Error{Errc::bad_shape, "a page holds heads of up to 256 elements", "head width", width, "1 to 256"};
  }
  KvLayout layout;
  layout.heads = heads;
  layout.width = width;
  layout.bits = static_cast<std::size_t>(scheme.bits);
  layout.channel_keys = scheme.channel_keys;
  layout.group = width < kv_longest_group ? width : kv_longest_group;
  layout.groups = divide_up(width, layout.group);
  layout.blocks_per_group = divide_up(layout.group, block_inputs);
  const std::size_t last_group = width - (layout.groups - 1) * layout.group;
  layout.key_blocks = (layout.groups - 1) * layout.blocks_per_group + divide_up(last_group, block_inputs);

  constexpr std::size_t panels = kv_page_positions / panel_outputs;
  const std::size_t codes = layout.key_blocks * block_bytes(layout.bits);
  if (layout.channel_keys) {
    layout.key_header_bytes = 2 * layout.key_blocks * block_inputs * sizeof(half);
    layout.key_panel_bytes = codes;
    layout.key_bytes = layout.key_header_bytes + panels * codes;
  } else {
    layout.key_header_bytes = 2 * layout.groups * group_scales_bytes;
    layout.key_panel_bytes = layout.key_header_bytes + codes;
    layout.key_bytes = panels * layout.key_panel_bytes;
  }
  layout.value_header_bytes = 2 * kv_page_positions * sizeof(half);
  layout.value_panel_bytes = kv_page_positions / block_inputs * block_bytes(layout.bits);
  layout.value_panels = divide_up(width, panel_outputs);
  layout.value_bytes = layout.groups * layout.value_header_bytes + layout.value_panels * layout.value_panel_bytes;
  layout.head_bytes = layout.key_bytes + layout.value_bytes;
  const Result<std::size_t> page = checked_product(heads, layout.head_bytes);
  if (!page) return Error{Errc::bad_shape, "a page does not fit in 64 bits", "key/value heads", heads};
  layout.page_bytes = *page;
  return layout;
}

/// Bytes of one position, keys and values of all heads, everything counted: a page's by 64, always a whole number.
[[nodiscard]] constexpr std::size_t kv_bytes_per_token(const KvLayout& layout) noexcept {
  return layout.page_bytes / kv_page_positions;
}

/// Bytes of one position under any scheme, floats included: those of kv_layout(), or 2 or 4 per element. Errors as
/// kv_layout().
[[nodiscard]] constexpr Result<std::size_t> kv_bytes_per_token(const KvScheme& scheme, std::size_t heads,
                                                               std::size_t width) noexcept {
  if (is_float(scheme)) return checked_product(std::size_t{2}, heads, width, static_cast<std::size_t>(scheme.bits / 8));
  const Result<KvLayout> layout = kv_layout(scheme, heads, width);
  if (!layout) return layout.error();
  return kv_bytes_per_token(*layout);
}

/// Stored bits per key or value element, everything counted; 16 and 32 for floats. Errors as kv_layout().
[[nodiscard]] constexpr Result<double> kv_bits_per_value(const KvScheme& scheme, std::size_t width) noexcept {
  if (is_float(scheme)) return static_cast<double>(scheme.bits);
  const Result<std::size_t> bytes = kv_bytes_per_token(scheme, 1, width);
  if (!bytes) return bytes.error();
  return 4 * static_cast<double>(*bytes) / static_cast<double>(width);
}

/// Channels of group `group`.
[[nodiscard]] constexpr std::size_t group_channels(const KvLayout& layout, std::size_t group) noexcept {
  const std::size_t rest = layout.width - group * layout.group;
  return rest < layout.group ? rest : layout.group;
}

/// Keys of `head` in a page; key_bytes bytes.
[[nodiscard]] constexpr std::size_t kv_keys_offset(const KvLayout& layout, std::size_t head) noexcept {
  return head * layout.head_bytes;
}

/// Values of `head` in a page; value_bytes bytes.
[[nodiscard]] constexpr std::size_t kv_values_offset(const KvLayout& layout, std::size_t head) noexcept {
  return head * layout.head_bytes + layout.key_bytes;
}

/// Panel of the 16 positions from 16 * panel on; key_panel_bytes bytes.
[[nodiscard]] constexpr std::size_t key_panel_offset(const KvLayout& layout, std::size_t panel) noexcept {
  return (layout.channel_keys ? layout.key_header_bytes : 0) + panel * layout.key_panel_bytes;
}

/// Scale and offset of the keys of `position` (0 .. 63) in group `group`; not with channel_keys.
[[nodiscard]] constexpr AffineOffsets key_affine(const KvLayout& layout, std::size_t position,
                                                 std::size_t group) noexcept {
  const std::size_t scale = key_panel_offset(layout, position / panel_outputs) + 2 * group * group_scales_bytes +
                            position % panel_outputs * sizeof(half);
  return {scale, scale + group_scales_bytes};
}

/// Scale and offset of the keys' channel `channel`, counted as in the padded query; only with channel_keys.
[[nodiscard]] constexpr AffineOffsets key_channel_affine(const KvLayout& layout, std::size_t channel) noexcept {
  const std::size_t scale = channel * sizeof(half);
  return {scale, scale + layout.key_header_bytes / 2};
}

/// Block `block` (0 .. key_blocks - 1) of panel `panel`; group g starts at block g * blocks_per_group.
[[nodiscard]] constexpr std::size_t key_block_offset(const KvLayout& layout, std::size_t panel,
                                                     std::size_t block) noexcept {
  return key_panel_offset(layout, panel) + (layout.channel_keys ? 0 : layout.key_header_bytes) +
         block * block_bytes(layout.bits);
}

/// Values of group `group`: its scales and offsets, then its panels.
[[nodiscard]] constexpr std::size_t value_group_offset(const KvLayout& layout, std::size_t group) noexcept {
  return group * (layout.value_header_bytes + layout.group / panel_outputs * layout.value_panel_bytes);
}

/// Scale and offset of the values of `position` (0 .. 63) in group `group`.
[[nodiscard]] constexpr AffineOffsets value_affine(const KvLayout& layout, std::size_t position,
                                                   std::size_t group) noexcept {
  const std::size_t scale = value_group_offset(layout, group) + position * sizeof(half);
  return {scale, scale + kv_page_positions * sizeof(half)};
}

/// Panel `panel` (0 .. ceil(group_channels / 16) - 1) of group `group`: block_bytes(bits) for positions 0 .. 31, as
/// many for 32 .. 63.
[[nodiscard]] constexpr std::size_t value_panel_offset(const KvLayout& layout, std::size_t group,
                                                       std::size_t panel) noexcept {
  return value_group_offset(layout, group) + layout.value_header_bytes + panel * layout.value_panel_bytes;
}

}  // namespace CBQ_ABI
}  // namespace cbq
