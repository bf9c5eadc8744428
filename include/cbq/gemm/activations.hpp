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
// A layer's rules (ActivationRules) may shrink every range by a clip multiplier, fix one grid for all tokens where the
// scheme's activations are per tensor, or give single tokens 4 bits instead of 8: all of it decides scales and limits
// of codes, and the product is the same. What lies outside a range goes to the nearest end.
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
#include <cbq/gemm/host_memory.hpp>
#include <cbq/gemm/token_quantization.hpp>

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
  std::size_t largest_code = 127;       ///< magnitude that no code exceeds: kernels sum in int16 as far as it allows
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

namespace driver {

/// Quantizes a row with one scale and returns that, NaN where the row is not finite. `row` lacks what depends on the
/// values.
[[nodiscard]] inline float quantize_whole_row(ActivationRow row, const TokenRule& rule, Isa isa) noexcept {
  const RowRange range = row_range(row.values, row.inputs, isa);
  const TokenQuantization token = range.finite ? token_quantization(rule, range) : TokenQuantization{};
  if (!range.finite) row.inputs = 0;
  row.inverse_scale = token.inverse_scale;
  row.lowest = token.lowest;
  row.highest = token.highest;
  quantize_row(row, isa);
  return range.finite ? token.scale : __builtin_nanf("");
}

/// Quantizes a row group by group; returns the power of two that is the unit of its `scales`, NaN where the row is not
/// finite. The scale of the next group lies panel_rows behind.
[[nodiscard]] inline float quantize_row_groups(const ActivationRow& row, const TokenRule& rule, float* scales,
                                               Isa isa) noexcept {
  ActivationRow part = row;
  float largest = 0.0f;
  std::size_t groups = 0;
  for (std::size_t first = 0; first < row.inputs; first += row.group, ++groups) {
    part.values = row.values + first;
    part.inputs = row.inputs - first < row.group ? row.inputs - first : row.group;
    const float scale = quantize_whole_row(part, rule, isa);
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

/// Values of one token: of a matrix view, or of one that makes each row when it is quantized.
template <class Tokens>
[[nodiscard]] const float* token_values(const Tokens& x, std::size_t panel, std::size_t token, Isa isa) noexcept {
  if constexpr (requires { x.prepared(panel, token, isa); }) {
    return x.prepared(panel, token, isa);
  } else {
    return row(x, token);
  }
}

/// The rules of x; where activations are per tensor and no grid is fixed, with that of the range of all tokens.
template <class Tokens>
[[nodiscard]] ActivationRules rules_of(const Tokens& x, const Grid& grid, Isa isa) noexcept {
  ActivationRules rules;
  if constexpr (requires { x.rules; }) rules = x.rules;
  if (grid.granularity != Granularity::per_tensor || rules.fixed) return rules;
  RowRange range;
  for (std::size_t token = 0; token < x.rows; ++token) {
    join(range, row_range(token_values(x, 0, token, isa), x.columns, isa));
  }
  rules.fixed = static_grid(grid, range.lowest, range.highest);
  return rules;
}

/// quantize_activations() for a scheme known at run time; its activations have at most 8 bits. x is a matrix view, or
/// one that makes each row when it is quantized: x.prepared(panel, token, isa); a panel's rows are asked for one after
/// another by one thread. Where x has a member `rules`, they are followed.
template <class Tokens, Executor E>
[[nodiscard]] Result<QuantizedTokens> quantize_tokens(const Tokens& x, const Scheme& scheme,
                                                      std::span<std::byte> memory, const E& executor, Isa isa) {
  const Result<ActivationLayout> layout = activation_layout(scheme, x.rows, x.columns);
  if (!layout) return layout.error();
  if (const Status valid = check_rows<float>(x, "quantize_activations"); !valid) return valid.error();
  if (const Status valid = check_memory(memory, layout->bytes, "quantize_activations"); !valid) return valid.error();
  auto* codes = reinterpret_cast<std::int8_t*>(memory.data());
  auto* zero_terms = reinterpret_cast<std::int32_t*>(memory.data() + layout->zero_terms_offset);
  auto* scales = reinterpret_cast<float*>(memory.data() + layout->scales_offset);
  const bool grouped = scheme.activation.granularity == Granularity::per_group;
  if constexpr (requires { x.rules; }) {
    if (const Status valid = check_activation_rules(x.rules, scheme.activation, x.rows); !valid) return valid.error();
  }
  const ActivationRules rules = rules_of(x, scheme.activation, isa);
  auto* group_scales = grouped ? reinterpret_cast<float*>(memory.data() + layout->group_scales_offset) : nullptr;
  const PackedLayout& groups = layout->groups;
  const PanelShape shape = panel_shape(groups, x.rows, isa);
  const std::size_t row_bytes = row_codes(groups, shape);

  executor.for_each_index(divide_up(x.rows, shape.rows), [&](std::size_t panel) {
    const std::size_t first = panel * shape.rows;
    const std::size_t count = x.rows - first < shape.rows ? x.rows - first : shape.rows;
    for (std::size_t r = 0; r < count; ++r) {
      ActivationRow job;
      job.values = token_values(x, panel, first + r, isa);
      job.inputs = x.columns;
      job.group = group_length(scheme.weight, x.columns);
      job.panel_rows = count;
      job.slice_inputs = shape.inputs;
      job.codes = codes + first * row_bytes + r * shape.inputs;
      job.zero_terms = zero_terms + first * groups.groups + r;
      job.zero_factor = scheme.weight.zero == Zero::affine ? -1 : -symmetric_zero(scheme.weight);
      // A NaN scale marks the row for the check below; no kernel sees it.
      const TokenRule rule = token_rule(scheme.activation, rules, first + r);
      scales[first + r] = grouped ? quantize_row_groups(job, rule, group_scales + first * groups.groups + r, isa)
                                  : quantize_whole_row(job, rule, isa);
    }
  });
  for (std::size_t token = 0; token < x.rows; ++token) {
    if (scales[token] != scales[token]) {
      return Error{Errc::not_finite, "[cbq] quantize_activations: NaN or infinity in the activations",
                   ErrorText("token ") << token};
    }
  }
  const std::size_t largest_code = scheme.activation.bits == 4 ? 15 : 127;
  return QuantizedTokens{codes, zero_terms, scales, groups, x.rows, shape, group_scales, largest_code};
}

}  // namespace driver

/// Activations and how they are quantized.
struct RuledActivations : MatrixView<const float> {
  ActivationRules rules = {};
};

/// Quantizes x (M x K) under its rules into `memory`, at least activations_size<S>(M, K) bytes on a 4-byte boundary.
/// Allocates nothing. Errors: bad_shape (memory, stride), bad_argument (alignment, null memory), not_finite (names the
/// first token with NaN or infinity), those of check_activation_rules().
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedActivationsView<S>> quantize_activations(const RuledActivations& x,
                                                                       std::span<std::byte> memory,
                                                                       const E& executor = {}, Isa cap = detect()) {
  static_assert(checked<S>().activation.bits <= 8,
                "[cbq] quantize_activations: the scheme's activations stay in floating point");
  const Result<QuantizedTokens> tokens = driver::quantize_tokens(x, S, memory, executor, capped(cap));
  if (!tokens) return tokens.error();
  return QuantizedActivationsView<S>{*tokens};
}

/// The same without rules.
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedActivationsView<S>> quantize_activations(const MatrixView<const float>& x,
                                                                       std::span<std::byte> memory,
                                                                       const E& executor = {}, Isa cap = detect()) {
  return quantize_activations<S, E>(RuledActivations{x, {}}, memory, executor, cap);
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
