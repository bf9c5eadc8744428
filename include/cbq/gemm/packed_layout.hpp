// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bytes of packed weights: one layout for every instruction set, so that a packed file is portable and a host may
// choose its kernel after packing. docs/packed_format.md draws it with a worked example.
//
//   matrix  N x K -> panels of 16 outputs, one after another; the last one is padded with outputs that are never stored
//   panel   its groups, one after another
//   group   scales[16] half | zeros[16] u8 (affine only) | its blocks
//   block   16 outputs x 32 inputs of one group, in lines of 64 bytes: one line per bit
//   line    byte 4 * output + i holds, in fields of 2, 4 or 8 bits from the lowest up, inputs 4 * step + i of ascending
//   steps
//
// 32 inputs are 8 steps of 4. A line of 8-bit codes holds one step, of 4-bit codes two, of 2-bit codes four. 3-bit
// codes are two lines of their low 2 bits and a third line whose bit `step` is their high bit. 4 inputs of one output
// are 32 bits: what vpdpbusd, tdpbusd and sdot multiply, and what pmaddubsw and plain 16-bit products can be made of.
// A group starts a new block; the last block of a short group is padded with code 0 against activations of 0.
//
// Scales travel with the codes of their group so that a panel is one sequential stream: with all scales in front of the
// panel a second stream costs a quarter of the DRAM bandwidth. The price, vectors that cross cache lines, is not
// measurable.

#include <cstddef>
#include <cstdint>

#include <cbq/core/checked.hpp>
#include <cbq/core/element.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// Outputs per panel.
inline constexpr std::size_t panel_outputs = 16;
/// Inputs per block.
inline constexpr std::size_t block_inputs = 32;
/// Inputs per step: what one 32-bit lane multiplies at once.
inline constexpr std::size_t step_inputs = 4;
/// Bytes per line.
inline constexpr std::size_t line_bytes = 64;

/// Where things lie in the packed form of one matrix. Plain numbers, derived once from scheme and shape.
struct PackedLayout {
  std::size_t outputs = 0;           ///< N
  std::size_t inputs = 0;            ///< K
  std::size_t bits = 0;              ///< per code, and lines per block
  Zero zero = Zero::symmetric;       ///< affine groups have zero points in their header
  std::size_t groups = 0;            ///< scales per output
  std::size_t blocks_per_group = 0;  ///< of all groups but perhaps the last
  std::size_t blocks = 0;            ///< per panel
  std::size_t header_bytes = 0;      ///< of a group, in front of its blocks
  std::size_t group_bytes = 0;       ///< from one group to the next
  std::size_t panel_bytes = 0;       ///< from one panel to the next
  std::size_t panels = 0;            ///< ceil(N / 16)
};

inline namespace CBQ_ABI {

/// Bytes of one block of `bits`-bit codes.
[[nodiscard]] constexpr std::size_t block_bytes(std::size_t bits) noexcept {
  return bits * line_bytes;
}

/// Layout of an `outputs` x `inputs` matrix under `grid`; Errc::bad_shape when a size does not fit in 64 bits or when
/// sums of one group could leave int32 (a group of more than 65536 inputs).
[[nodiscard]] constexpr Result<PackedLayout> packed_layout(const Grid& grid, std::size_t outputs,
                                                           std::size_t inputs) noexcept {
  PackedLayout layout;
  layout.outputs = outputs;
  layout.inputs = inputs;
  layout.bits = static_cast<std::size_t>(grid.bits);
  layout.zero = grid.zero;
  const std::size_t group = group_length(grid, inputs);
  // |sum| <= group * (2^8 - 1) * 127, and the zero-point term is no larger: 2^16 * 255 * 127 < 2^31.
  constexpr std::size_t longest_group = 65536;
  if (group > longest_group) {
    return Error{Errc::bad_shape, "[cbq] packed_layout: int32 sums of one group could overflow", "group length", group,
                 longest_group};
  }
  layout.groups = group_count(grid, inputs);
  layout.blocks_per_group = divide_up(group, block_inputs);
  const std::size_t last_group = layout.groups == 0 ? 0 : inputs - (layout.groups - 1) * group;
  layout.blocks =
      layout.groups == 0 ? 0 : (layout.groups - 1) * layout.blocks_per_group + divide_up(last_group, block_inputs);
  layout.panels = divide_up(outputs, panel_outputs);

  layout.header_bytes = panel_outputs * (grid.zero == Zero::affine ? sizeof(half) + 1 : sizeof(half));
  // A group is at most 2048 blocks of 512 bytes, so only the panel and the whole can overflow.
  layout.group_bytes = layout.header_bytes + layout.blocks_per_group * block_bytes(layout.bits);
  const Result<std::size_t> headers = checked_product(layout.groups, layout.header_bytes);
  const Result<std::size_t> codes = checked_product(layout.blocks, block_bytes(layout.bits));
  if (!headers || !codes) return Error{Errc::bad_shape, "[cbq] packed_layout: a panel does not fit in 64 bits"};
  const Result<std::size_t> panel = checked_sum(*headers, *codes);
  if (!panel) return panel.error();
  layout.panel_bytes = *panel;
  const Result<std::size_t> total = checked_product(layout.panels, layout.panel_bytes);
  if (!total) return total.error();
  return layout;
}

/// Bytes of the whole packed matrix.
[[nodiscard]] constexpr std::size_t packed_bytes(const PackedLayout& layout) noexcept {
  return layout.panels * layout.panel_bytes;
}

/// Bytes of the 16 half scales at the start of a group; affine groups have 16 zero points behind them.
inline constexpr std::size_t group_scales_bytes = panel_outputs * sizeof(half);

/// Code of input `inside` (0..31) of output `output` (0..15) in one block.
[[nodiscard]] constexpr unsigned block_code(const std::byte* block, std::size_t bits, std::size_t output,
                                            std::size_t inside) noexcept {
  const std::size_t step = inside / step_inputs;
  const std::size_t byte = output * step_inputs + inside % step_inputs;
  const auto field = [&](std::size_t line, std::size_t shift, unsigned mask) {
    return (static_cast<unsigned>(block[line * line_bytes + byte]) >> shift) & mask;
  };
  switch (bits) {
    case 2:
      return field(step / 4, 2 * (step % 4), 3u);
    case 3:
      return field(step / 4, 2 * (step % 4), 3u) | field(2, step, 1u) << 2;
    case 4:
      return field(step / 2, 4 * (step % 2), 15u);
    default:
      return field(step, 0, 255u);
  }
}

/// Writes a code into a block whose bytes were zero there.
constexpr void set_block_code(std::byte* block, std::size_t bits, std::size_t output, std::size_t inside,
                              unsigned code) noexcept {
  const std::size_t step = inside / step_inputs;
  const std::size_t byte = output * step_inputs + inside % step_inputs;
  const auto put = [&](std::size_t line, std::size_t shift, unsigned value) {
    block[line * line_bytes + byte] |= static_cast<std::byte>(value << shift);
  };
  switch (bits) {
    case 2:
      put(step / 4, 2 * (step % 4), code);
      break;
    case 3:
      put(step / 4, 2 * (step % 4), code & 3u);
      put(2, step, code >> 2);
      break;
    case 4:
      put(step / 2, 4 * (step % 2), code);
      break;
    default:
      put(step, 0, code);
      break;
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
