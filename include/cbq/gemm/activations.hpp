// SPDX-License-Identifier: Apache-2.0
#pragma once

// Activations quantized per token, or per token and group of inputs, in the panels that integer kernels read, as an
// object of its own: quantize once, then multiply with Q, K and V, or gate and up. One pass finds the range of a row
// (or group), one writes codes and their sums.
//
//   8 or 4 bits symmetric   scale = max|x| / q, code = round(x / scale) in [-q, q], q = 127 or 7
//   4 bits affine           scale = (max(x,0) - min(x,0)) / 15, zero = round(-min / scale),
//                           code = round(x / scale) + zero in [0, 15]; what is stored is code - zero, so that the
//                           product needs no correction
//
// Memory: codes[panel][slice][row][inputs] int8, zero_terms[panel][group][row] int32, scales[row] float. A panel has 20
// rows, the last fewer, and its slices are blocks of 32 inputs; for AMX, whose tiles hold 16 rows x 64 inputs, it has
// 32 rows and slices of 64 inputs where groups are that long. zero_terms are -zero * sum(codes of the group), or -sum
// for affine weights. Rows (or groups) whose values all lie below 2^-100 in magnitude are quantized to zero.
//
// A clip multiplier c <= 1 of a layer, learned in reconstruction, shrinks every range first: max|x| and the ends become
// c times as large, and what lies outside goes to the nearest end.
//
// Per group, the scale of a group is group_scales[panel][group][row] * scales[row]. The latter is a power of two, and
// the largest of a row's group_scales lies in [1, 2): of the products with scales of weights, those of the largest
// group neither overflow nor lose bits, however large or small activations are.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/gemm/dispatch.hpp>

namespace cbq {

/// Quantized M x K activations of any scheme. Plain data.
struct QuantizedTokens {
  const std::int8_t* codes = nullptr;
  const std::int32_t* zero_terms = nullptr;
  const float* scales = nullptr;  ///< one per token
  PackedLayout layout = {};       ///< of weights with these inputs and no outputs: groups and blocks
  std::size_t tokens = 0;
  PanelShape shape = {};
  const float* group_scales = nullptr;  ///< one per token and group, in units of `scales`; null where one per token
};

/// Quantized activations whose scheme the compiler knows.
template <Scheme S>
struct QuantizedActivationsView : QuantizedTokens {};

inline namespace CBQ_ABI {

/// The panels that kernels of `isa` read fastest for this many tokens. Fewer than 16 leave AMX tiles unfilled.
[[nodiscard]] constexpr PanelShape panel_shape(const PackedLayout& groups, std::size_t tokens, Isa isa) noexcept {
  if (isa != Isa::amx_int8 || tokens < 16) return {};
  return {.rows = amx_panel_rows, .inputs = groups.blocks_per_group == 1 ? block_inputs : 2 * block_inputs};
}

/// Codes of one row: the inputs, with every group filled up to whole slices.
[[nodiscard]] constexpr std::size_t row_codes(const PackedLayout& groups, const PanelShape& shape) noexcept {
  if (groups.groups == 0) return 0;
  const std::size_t slice_blocks = shape.inputs / block_inputs;
  const std::size_t last = groups.blocks - (groups.groups - 1) * groups.blocks_per_group;
  const std::size_t slices = (groups.groups - 1) * divide_up(groups.blocks_per_group, slice_blocks);
  return (slices + divide_up(last, slice_blocks)) * shape.inputs;
}

/// Where the parts lie in the memory of quantized activations.
struct ActivationLayout {
  PackedLayout groups = {};
  std::size_t zero_terms_offset = 0;
  std::size_t scales_offset = 0;
  std::size_t group_scales_offset = 0;  ///< `bytes` where there is one scale per token
  std::size_t bytes = 0;
};

/// Layout of `tokens` x `inputs` activations for a scheme; Errc::bad_shape as packed_layout().
[[nodiscard]] constexpr Result<ActivationLayout> activation_layout(const Scheme& scheme, std::size_t tokens,
                                                                   std::size_t inputs) noexcept {
  const Result<PackedLayout> groups = packed_layout(scheme.weight, 0, inputs);
  if (!groups) return groups.error();
  // Room for the largest shape of panels: sizes do not depend on the machine.
  const std::size_t row_bytes = row_codes(*groups, panel_shape(*groups, tokens, Isa::amx_int8));
  const Result<std::size_t> codes = checked_product(tokens, row_bytes);
  const Result<std::size_t> zero_terms = checked_product(tokens, groups->groups, sizeof(std::int32_t));
  const Result<std::size_t> scales = checked_product(tokens, sizeof(float));
  const bool grouped = scheme.activation.granularity == Granularity::per_group;
  const Result<std::size_t> group_scales = checked_product(tokens, grouped ? groups->groups : 0, sizeof(float));
  if (!codes || !zero_terms || !scales || !group_scales)
    return Error{Errc::bad_shape, "[cbq] quantize_activations: the size does not fit in 64 bits"};
  const Result<std::size_t> total = checked_sum(*codes, *zero_terms, *scales, *group_scales);
  if (!total) return total.error();
  ActivationLayout layout;
  layout.groups = *groups;
  layout.zero_terms_offset = *codes;
  layout.scales_offset = *codes + *zero_terms;
  layout.group_scales_offset = layout.scales_offset + *scales;
  layout.bytes = *total;
  return layout;
}

/// Bytes that quantize_activations<S>() writes for `tokens` x `inputs` activations.
template <Scheme S>
[[nodiscard]] constexpr Result<std::size_t> activations_size(std::size_t tokens, std::size_t inputs) noexcept {
  static_assert(checked<S>().activation.bits <= 8,
                "[cbq] quantize_activations: the scheme's activations stay in floating point");
  const Result<ActivationLayout> layout = activation_layout(S, tokens, inputs);
  if (!layout) return layout.error();
  return layout->bytes;
}

/// How one row, or one group of it, is quantized: stored code = clamp(round(x * inverse_scale), lowest, highest).
struct TokenQuantization {
  float scale = 0.0f;
  float inverse_scale = 0.0f;
  float lowest = 0.0f;
  float highest = 0.0f;
};

/// The quantization of a row or group with the given range (zero included).
[[nodiscard]] inline TokenQuantization token_quantization(const Grid& grid, const RowRange& range) noexcept {
  constexpr float smallest = 0x1p-100f;  // below it 1 / scale could overflow
  TokenQuantization token;
  if (grid.zero == Zero::symmetric) {
    const float levels = grid.bits == 8 ? 127.0f : 7.0f;
    const float largest = -range.lowest > range.highest ? -range.lowest : range.highest;
    if (largest < smallest) return token;
    token = {.scale = largest / levels, .inverse_scale = levels / largest, .lowest = -levels, .highest = levels};
  } else {
    constexpr float levels = 15.0f;
    // Halved, so that the width of a row that spans all of float's range stays finite.
    const float half_width = range.highest * 0.5f - range.lowest * 0.5f;
    if (half_width < smallest) return token;
    token.scale = half_width / (levels * 0.5f);
    token.inverse_scale = (levels * 0.5f) / half_width;
    const float product = -range.lowest * token.inverse_scale;
    const float zero = __builtin_nearbyintf(product);  // no addition that a compiler could fuse the product with
    token.lowest = -zero;
    token.highest = levels - zero;
  }
  return token;
}

namespace driver {

/// Activations and the clip multiplier of the layer that reads them, in (0, 1].
struct ClippedTokens : MatrixView<const float> {
  float clip = 1.0f;
};

/// A grid whose ranges are shrunk first.
struct ClippedGrid {
  Grid grid = {};
  float clip = 1.0f;
};

/// Quantizes a row with one scale and returns that, NaN where the row is not finite. `row` lacks what depends on the
/// values.
[[nodiscard]] inline float quantize_whole_row(ActivationRow row, const ClippedGrid& grid, Isa isa) noexcept {
  RowRange range = row_range(row.values, row.inputs, isa);
  range.lowest *= grid.clip;
  range.highest *= grid.clip;
  const TokenQuantization token = range.finite ? token_quantization(grid.grid, range) : TokenQuantization{};
  if (!range.finite) row.inputs = 0;
  row.inverse_scale = token.inverse_scale;
  row.lowest = token.lowest;
  row.highest = token.highest;
  quantize_row(row, isa);
  return range.finite ? token.scale : __builtin_nanf("");
}

/// Quantizes a row group by group; returns the power of two that is the unit of its `scales`, NaN where the row is not
/// finite. The scale of the next group lies panel_rows behind.
[[nodiscard]] inline float quantize_row_groups(const ActivationRow& row, const ClippedGrid& grid, float* scales,
                                               Isa isa) noexcept {
  ActivationRow part = row;
  float largest = 0.0f;
  std::size_t groups = 0;
  for (std::size_t first = 0; first < row.inputs; first += row.group, ++groups) {
    part.values = row.values + first;
    part.inputs = row.inputs - first < row.group ? row.inputs - first : row.group;
    const float scale = quantize_whole_row(part, grid, isa);
    if (scale != scale) return scale;
    scales[groups * row.panel_rows] = scale;
    largest = scale > largest ? scale : largest;
    part.codes += divide_up(row.group, row.slice_inputs) * row.slice_inputs * row.panel_rows;
    part.zero_terms += row.panel_rows;
  }
  if (largest == 0.0f) return 0.0f;
  // Scales lie in [2^-107, 2^121], so that this and its inverse are normal numbers.
  const float unit = __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, largest) & 0x7f800000u);
  const float inverse = 1.0f / unit;
  for (std::size_t group = 0; group < groups; ++group) scales[group * row.panel_rows] *= inverse;
  return unit;
}

/// quantize_activations() for a scheme known at run time; its activations have at most 8 bits. x is a matrix view, or
/// one that makes each row when it is quantized: x.prepared(panel, token, isa); a panel's rows are asked for one after
/// another by one thread. Where x has a member `clip`, ranges are shrunk by it.
template <class Tokens, Executor E>
[[nodiscard]] Result<QuantizedTokens> quantize_tokens(const Tokens& x, const Scheme& scheme,
                                                      std::span<std::byte> memory, const E& executor, Isa isa) {
  const Result<ActivationLayout> layout = activation_layout(scheme, x.rows, x.columns);
  if (!layout) return layout.error();
  if (x.rows > 1 && x.stride < x.columns) {
    return Error{Errc::bad_shape, "[cbq] quantize_activations: a stride is shorter than a row", "x", x.stride,
                 ErrorText("at least ") << x.columns};
  }
  if (x.data == nullptr && x.rows != 0 && x.columns != 0) {
    return Error{Errc::bad_argument, "[cbq] quantize_activations: the activations' memory is null", "x"};
  }
  if (memory.size() < layout->bytes) {
    return Error{Errc::bad_shape, "[cbq] quantize_activations: the memory is too small", "memory", memory.size(),
                 layout->bytes};
  }
  if (reinterpret_cast<std::uintptr_t>(memory.data()) % alignof(std::int32_t) != 0) {
    return Error{Errc::bad_argument, "[cbq] quantize_activations: the memory must lie on a 4-byte boundary", "memory"};
  }
  auto* codes = reinterpret_cast<std::int8_t*>(memory.data());
  auto* zero_terms = reinterpret_cast<std::int32_t*>(memory.data() + layout->zero_terms_offset);
  auto* scales = reinterpret_cast<float*>(memory.data() + layout->scales_offset);
  const bool grouped = scheme.activation.granularity == Granularity::per_group;
  ClippedGrid grid = {scheme.activation};
  if constexpr (requires { x.clip; }) grid.clip = x.clip;
  auto* group_scales = grouped ? reinterpret_cast<float*>(memory.data() + layout->group_scales_offset) : nullptr;
  const PackedLayout& groups = layout->groups;
  const PanelShape shape = panel_shape(groups, x.rows, isa);
  const std::size_t row_bytes = row_codes(groups, shape);

  executor.for_each_index(divide_up(x.rows, shape.rows), [&](std::size_t panel) {
    const std::size_t first = panel * shape.rows;
    const std::size_t count = x.rows - first < shape.rows ? x.rows - first : shape.rows;
    for (std::size_t r = 0; r < count; ++r) {
      ActivationRow job;
      if constexpr (requires { x.prepared(panel, first + r, isa); }) {
        job.values = x.prepared(panel, first + r, isa);
      } else {
        job.values = row(x, first + r);
      }
      job.inputs = x.columns;
      job.group = group_length(scheme.weight, x.columns);
      job.panel_rows = count;
      job.slice_inputs = shape.inputs;
      job.codes = codes + first * row_bytes + r * shape.inputs;
      job.zero_terms = zero_terms + first * groups.groups + r;
      job.zero_factor = scheme.weight.zero == Zero::affine ? -1 : -symmetric_zero(scheme.weight);
      // A NaN scale marks the row for the check below; no kernel sees it.
      scales[first + r] = grouped ? quantize_row_groups(job, grid, group_scales + first * groups.groups + r, isa)
                                  : quantize_whole_row(job, grid, isa);
    }
  });
  for (std::size_t token = 0; token < x.rows; ++token) {
    if (scales[token] != scales[token]) {
      return Error{Errc::not_finite, "[cbq] quantize_activations: NaN or infinity in the activations",
                   ErrorText("token ") << token};
    }
  }
  return QuantizedTokens{codes, zero_terms, scales, groups, x.rows, shape, group_scales};
}

}  // namespace driver

/// Quantizes x (M x K) into `memory`, at least activations_size<S>(M, K) bytes on a 4-byte boundary. Allocates nothing.
/// Errors: bad_shape (memory, stride), bad_argument (alignment, null memory), not_finite (names the first token with
/// NaN or infinity).
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedActivationsView<S>> quantize_activations(const MatrixView<const float>& x,
                                                                       std::span<std::byte> memory,
                                                                       const E& executor = {}, Isa cap = detect()) {
  static_assert(checked<S>().activation.bits <= 8,
                "[cbq] quantize_activations: the scheme's activations stay in floating point");
  const Result<QuantizedTokens> tokens = driver::quantize_tokens(x, S, memory, executor, capped(cap));
  if (!tokens) return tokens.error();
  return QuantizedActivationsView<S>{*tokens};
}

/// Quantized activations with memory of their own, which grows as needed and is kept between calls.
template <Scheme S>
class QuantizedActivations {
 public:
  /// Replaces the content by x quantized; errors as quantize_activations(), and out_of_memory.
  template <Executor E = SerialExecutor>
  [[nodiscard]] Status quantize(const MatrixView<const float>& x, const E& executor = {}, Isa cap = detect()) {
    const Result<std::size_t> size = activations_size<S>(x.rows, x.columns);
    if (!size) return size.error();
    if (*size > memory_.size()) {
      Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(*size);
      if (!memory) return memory.error();
      memory_ = *std::move(memory);
    }
    const Result<QuantizedActivationsView<S>> view =
        quantize_activations<S>(x, std::span<std::byte>(memory_.data(), memory_.size()), executor, cap);
    if (!view) return view.error();
    view_ = *view;
    return {};
  }

  [[nodiscard]] const QuantizedActivationsView<S>& view() const noexcept { return view_; }

 private:
  AlignedBuffer<std::byte> memory_;
  QuantizedActivationsView<S> view_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
