// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the driver hands to a kernel: pointers and sizes, no types of the standard library, so that kernels compiled
// inside a target region share nothing with the rest of the program. Everything was checked before; kernels check
// nothing.

#include <cstddef>
#include <cstdint>

#include <cbq/config.hpp>

namespace cbq {

/// How the codes of activations lie: codes[panel][slice][row][inputs]. Slices cut each group on its own; the last one
/// of a group is filled with code 0.
struct PanelShape {
  std::size_t rows = 20;    ///< of a panel; the last panel has fewer
  std::size_t inputs = 32;  ///< of a slice: 32 or 64
};

inline namespace CBQ_ABI {

/// Rows of one activation panel. 20 is 4 x 5 and 5 x 4: the row tiles of AVX-512 and AVX2.
inline constexpr std::size_t activation_panel_rows = 20;
/// Rows of one activation panel for AMX: two of its registers. No other kernel reads such panels.
inline constexpr std::size_t amx_panel_rows = 32;

/// One or two panels of packed weights times one panel of quantized activations:
/// out[r][c] = row_scales[r] * weight_multiplier * sum over groups of scale[g][c] * group_scales[g][r] * (sum over k of
/// code * activation - zero * sum of activations)
struct IntegerTile {
  // Weights of the first panel; the second lies panel_bytes behind.
  const std::byte* panel = nullptr;
  std::size_t panel_bytes = 0;
  std::size_t header_bytes = 0;  // of a group
  std::size_t group_bytes = 0;
  std::size_t panels = 0;  // 1 or 2
  // Two panels to ask for meanwhile, because they are multiplied next; null: none. The second may not exist.
  const std::byte* next = nullptr;
  std::size_t groups = 0;
  std::size_t blocks_per_group = 0;
  std::size_t blocks = 0;
  float weight_multiplier = 1.0f;
  // Activations: codes[slice][row][shape.inputs]; zero_terms[group][row]; group_scales[group][row], null where they
  // are 1; row_scales[row].
  PanelShape shape = {};
  const std::int8_t* codes = nullptr;
  std::size_t largest_code = 127;  // magnitude that no code exceeds
  const std::int32_t* zero_terms = nullptr;
  const float* group_scales = nullptr;
  const float* row_scales = nullptr;
  std::size_t panel_rows = 0;  // rows that share the panel: the strides of codes, zero_terms and group_scales
  std::size_t rows = 0;        // panel_rows, but in panels for AMX: of several panels that follow one another
  // Result, rows x 16 * panels.
  float* out = nullptr;
  std::size_t out_stride = 0;  // floats
};

/// Blocks whose products int16 sums hold, 16 products of a block to a sum: nine blocks for operands of 4 bits, whose
/// codes are at most 15 in magnitude, one for 4-bit weights and 8-bit activations, none for 8-bit weights.
[[nodiscard]] constexpr std::size_t short_blocks(int weight_bits, std::size_t largest_activation) noexcept {
  const std::size_t largest_code = (std::size_t{1} << weight_bits) - 1;
  return 32767 / (2 * 8 * largest_code * largest_activation);
}

using IntegerKernel = void (*)(const IntegerTile&) noexcept;

/// One row of activations to quantize into a panel.
struct ActivationRow {
  const float* values = nullptr;
  std::size_t inputs = 0;
  std::size_t group = 0;               // inputs per group
  std::size_t panel_rows = 0;          // rows that share the panel
  std::size_t slice_inputs = 32;       // PanelShape::inputs
  std::int8_t* codes = nullptr;        // of this row in slice 0; the next slice lies slice_inputs * panel_rows behind
  std::int32_t* zero_terms = nullptr;  // of this row in group 0; the next group lies panel_rows behind
  std::int32_t zero_factor = 0;        // zero_terms = zero_factor * sum of the group's codes
  float inverse_scale = 0.0f;
  float lowest = 0.0f;  // codes are clamped to [lowest, highest]
  float highest = 0.0f;
};

/// Smallest and largest value of a row with zero included; not finite where the row holds NaN or infinity.
struct RowRange {
  float lowest = 0.0f;
  float highest = 0.0f;
  bool finite = true;
};

}  // namespace CBQ_ABI
}  // namespace cbq
