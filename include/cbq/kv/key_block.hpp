// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys into and out of a page (kv_layout.hpp), with the quantizer of affine_group.hpp: a page decodes to exactly the
// floats of the row codec unless groups are refined (affine_refinement.hpp). One position is written at a time, over
// whatever was there before, so a cache that was cut back is simply written again; with scales per channel (KIVI, arXiv
// 2402.02750) all 64 positions are written at once.
//
// The codes of one position and block are whole 32-bit words, bits of them, one per line: nothing of another position
// is read or written. Nothing is allocated.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/core/view.hpp>
#include <cbq/kv/affine_group.hpp>
#include <cbq/kv/affine_refinement.hpp>
#include <cbq/kv/kv_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {

namespace key_codes {

/// 4 codes as they lie in memory.
[[nodiscard]] inline std::uint32_t four(const std::uint8_t* codes) noexcept {
  std::uint32_t word = 0;
  std::memcpy(&word, codes, sizeof word);
  return word;
}

/// Word `line` of the codes of one output: what its bytes 4 * output .. + 3 of that line hold. Fields do not touch: a
/// code is smaller than its field.
[[nodiscard]] inline std::uint32_t pack_word(const std::uint8_t* codes, std::size_t bits, std::size_t line) noexcept {
  switch (bits) {
    case 8:
      return four(codes + 4 * line);
    case 4:
      return four(codes + 8 * line) | four(codes + 8 * line + 4) << 4;
    default:
      break;
  }
  std::uint32_t word = 0;
  if (line == 2) {  // the high bits of 3-bit codes
    for (std::size_t step = 0; step < 8; ++step) word |= (four(codes + 4 * step) >> 2 & 0x01010101u) << step;
    return word;
  }
  for (std::size_t step = 0; step < 4; ++step) {
    word |= (four(codes + 16 * line + 4 * step) & 0x03030303u) << (2 * step);
  }
  return word;
}

/// Adds the codes of word `line` to 32 codes that were zero.
inline void unpack_word(std::uint32_t word, std::size_t bits, std::size_t line, std::uint8_t* codes) noexcept {
  const std::size_t field = bits == 3 ? (line == 2 ? 1 : 2) : bits;
  const std::size_t steps = 8 / field;
  const std::size_t first = bits == 3 && line == 2 ? 0 : line * steps;
  const std::size_t place = bits == 3 && line == 2 ? 2 : 0;
  const std::uint32_t mask = 0x01010101u * ((1u << field) - 1);
  for (std::size_t step = 0; step < steps; ++step) {
    const std::uint32_t more = four(codes + 4 * (first + step)) | (word >> (field * step) & mask) << place;
    std::memcpy(codes + 4 * (first + step), &more, sizeof more);
  }
}

/// 32 codes of output `output` of a block.
inline void store(std::byte* block, std::size_t bits, std::size_t output, const std::uint8_t* codes) noexcept {
  for (std::size_t line = 0; line < bits; ++line) {
    const std::uint32_t word = pack_word(codes, bits, line);
    std::memcpy(block + line * line_bytes + output * sizeof word, &word, sizeof word);
  }
}
inline void load(const std::byte* block, std::size_t bits, std::size_t output, std::uint8_t* codes) noexcept {
  std::memset(codes, 0, block_inputs);
  for (std::size_t line = 0; line < bits; ++line) {
    std::uint32_t word = 0;
    std::memcpy(&word, block + line * line_bytes + output * sizeof word, sizeof word);
    unpack_word(word, bits, line, codes);
  }
}

/// The channels of block `block` of a head's 64 keys, transposed: a channel's 64 positions lie together.
struct Channels {
  float values[block_inputs][kv_page_positions];
  std::size_t first = 0;  ///< channel of the head
  std::size_t count = 0;

  Channels(const KvLayout& layout, const MatrixView<const float>& x, std::size_t block) noexcept {
    const std::size_t group = block / layout.blocks_per_group;
    const std::size_t inside = block % layout.blocks_per_group * block_inputs;
    first = group * layout.group + inside;
    const std::size_t rest = group_channels(layout, group) - inside;
    count = rest < block_inputs ? rest : block_inputs;
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      for (std::size_t c = 0; c < count; ++c) values[c][p] = row(x, p)[first + c];
    }
  }
  [[nodiscard]] std::span<const float> channel(std::size_t c) const noexcept { return {values[c], kv_page_positions}; }
};

inline constexpr std::size_t most_groups = 2;  // of a head of 256 channels
inline constexpr std::size_t most_channels = most_groups * kv_longest_group;

}  // namespace key_codes

/// Asks for the lines that encode_key() writes to: pages are rarely in the cache, and the encoder is faster than
/// memory. For a head or two ahead of the one that is encoded.
[[gnu::always_inline]] inline void prefetch_key(const KvLayout& layout, std::size_t position,
                                                const std::byte* keys) noexcept {
  const std::byte* panel = keys + key_panel_offset(layout, position / panel_outputs);
  for (std::size_t line = 0; line < layout.key_panel_bytes; line += line_bytes) __builtin_prefetch(panel + line, 1);
}

/// Writes the key `x` (layout.width floats) of `position` (0 .. 63) of one head, at `keys` (layout.key_bytes bytes).
/// The refinement's weights are layout.width, or none. Errors of fit_affine_group; then nothing was written. Not for
/// layouts with channel_keys.
[[nodiscard]] inline Status encode_key(const KvLayout& layout, std::size_t position, std::span<const float> x,
                                       std::byte* keys, const AffineRefinement& refinement = {}) noexcept {
  if (x.size() != layout.width || position >= kv_page_positions || layout.channel_keys) {
    return Error{Errc::bad_shape, "not a key of this page", "elements", x.size(), layout.width};
  }
  const std::size_t panel = position / panel_outputs, output = position % panel_outputs;
  AffineGroup fits[key_codes::most_groups];
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const auto channels = x.subspan(g * layout.group, group_channels(layout, g));
    const Result<AffineGroup> fit = fit_affine_group(affine_range(channels), layout.bits);
    if (!fit) return fit.error();
    const float* weights = refinement.weights == nullptr ? nullptr : refinement.weights + g * layout.group;
    fits[g] = refine_affine_group(channels, *fit, layout.bits, {refinement.steps, weights});
  }
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const auto channels = x.subspan(g * layout.group, group_channels(layout, g));
    const AffineOffsets at = key_affine(layout, position, g);
    std::memcpy(keys + at.scale, &fits[g].scale, sizeof(half));
    std::memcpy(keys + at.offset, &fits[g].offset, sizeof(half));
    std::uint8_t codes[kv_longest_group] = {};
    affine_codes(channels, fits[g], layout.bits, codes);
    std::byte* blocks = keys + key_block_offset(layout, panel, g * layout.blocks_per_group);
    for (std::size_t b = 0; b < divide_up(channels.size(), block_inputs); ++b) {
      key_codes::store(blocks + b * block_bytes(layout.bits), layout.bits, output, codes + b * block_inputs);
    }
  }
  return {};
}

/// Writes all 64 keys of one head, rows of layout.width floats, with a scale and offset per channel. Errors of
/// fit_affine_group, naming the channel; then nothing was written. Only for layouts with channel_keys.
[[nodiscard]] inline Status encode_key_channels(const KvLayout& layout, const MatrixView<const float>& x,
                                                std::byte* keys) noexcept {
  if (x.rows != kv_page_positions || x.columns != layout.width || x.stride < x.columns || !layout.channel_keys) {
    return Error{Errc::bad_shape, "not the keys of this page", "rows x elements",
                 ErrorText(x.rows) << " x " << x.columns, ErrorText(kv_page_positions) << " x " << layout.width};
  }
  AffineGroup fits[key_codes::most_channels] = {};  // what fills up the last block of a group has scale and offset 0
  for (std::size_t b = 0; b < layout.key_blocks; ++b) {
    key_codes::Channels part(layout, x, b);
    for (std::size_t c = 0; c < part.count; ++c) {
      const Result<AffineGroup> fit = fit_affine_group(affine_range(part.channel(c)), layout.bits);
      if (!fit) return Error{fit.error().code, fit.error().what, ErrorText("channel ") << part.first + c};
      fits[b * block_inputs + c] = *fit;
    }
  }
  for (std::size_t b = 0; b < layout.key_blocks; ++b) {
    key_codes::Channels part(layout, x, b);
    std::uint8_t codes[block_inputs][kv_page_positions] = {};
    for (std::size_t c = 0; c < block_inputs; ++c) {
      const AffineGroup& fit = fits[b * block_inputs + c];
      const AffineOffsets at = key_channel_affine(layout, b * block_inputs + c);
      std::memcpy(keys + at.scale, &fit.scale, sizeof(half));
      std::memcpy(keys + at.offset, &fit.offset, sizeof(half));
      if (c < part.count) affine_codes(part.channel(c), fit, layout.bits, codes[c]);
    }
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      std::uint8_t row[block_inputs];
      for (std::size_t c = 0; c < block_inputs; ++c) row[c] = codes[c][p];
      key_codes::store(keys + key_block_offset(layout, p / panel_outputs, b), layout.bits, p % panel_outputs, row);
    }
  }
  return {};
}

/// The key of `position` (0 .. 63) of one head as it was stored, into layout.width floats. Any layout.
inline void decode_key(const KvLayout& layout, const std::byte* keys, std::size_t position, float* out) noexcept {
  for (std::size_t b = 0; b < layout.key_blocks; ++b) {
    std::uint8_t codes[block_inputs];
    const std::size_t panel = position / panel_outputs;
    key_codes::load(keys + key_block_offset(layout, panel, b), layout.bits, position % panel_outputs, codes);
    const std::size_t group = b / layout.blocks_per_group;
    const std::size_t inside = b % layout.blocks_per_group * block_inputs;
    const std::size_t rest = group_channels(layout, group) - inside;
    for (std::size_t c = 0; c < rest && c < block_inputs; ++c) {
      const AffineOffsets at =
          layout.channel_keys ? key_channel_affine(layout, b * block_inputs + c) : key_affine(layout, position, group);
      AffineGroup fit;
      std::memcpy(&fit.scale, keys + at.scale, sizeof(half));
      std::memcpy(&fit.offset, keys + at.offset, sizeof(half));
      out[group * layout.group + inside + c] = affine_value(codes[c], fit);
    }
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
