// SPDX-License-Identifier: Apache-2.0
#pragma once

// Activations that are INT8 already, under one static scale: what a matmul with RequantizeInt8 writes is what the next
// layer reads. Rearranges codes into the panels of <cbq/gemm/activations.hpp> and sums them per group; no range is
// searched and nothing is rounded. Costs a pass over one byte per activation.
//
//   matmul(x, first, codes, RequantizeInt8{1 / scale});             // codes: MatrixView<std::int8_t>
//   activations_from_codes<S>(as_const(codes), scale, memory);      // stands for codes * scale

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/gemm/activations.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace driver {

/// One row of codes, which `from` is indexed for, into its panel; false where a code is -128. See ActivationRow.
template <class Codes>
[[nodiscard]] bool arrange_row(const Codes& from, const ActivationRow& row) noexcept {
  std::int8_t* out = row.codes;
  int lowest = 0;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t end = row.inputs - first < row.group ? row.inputs : first + row.group;
    std::int32_t sum = 0;
    for (std::size_t begin = first; begin < end; begin += row.slice_inputs) {
      const std::size_t count = end - begin < row.slice_inputs ? end - begin : row.slice_inputs;
      for (std::size_t i = 0; i < count; ++i) {
        const std::int8_t code = from[begin + i];
        sum += code;
        lowest = code < lowest ? code : lowest;
        out[i] = code;
      }
      for (std::size_t i = count; i < row.slice_inputs; ++i) out[i] = 0;
      out += row.slice_inputs * row.panel_rows;
    }
    row.zero_terms[group * row.panel_rows] = row.zero_factor * sum;
  }
  return lowest >= -127;
}

/// All rows of x, which has `tokens`, `inputs`, codes(token) and scale(token), into the panels of `memory`, which is
/// large enough. A token whose codes cannot be arranged gets the scale NaN.
template <class Source, Executor E>
[[nodiscard]] QuantizedTokens arrange_tokens(const Source& x, const Scheme& scheme, const ActivationLayout& layout,
                                             std::byte* memory, const E& executor, Isa isa) {
  const PackedLayout& groups = layout.groups;
  auto* out = reinterpret_cast<std::int8_t*>(memory);
  auto* zero_terms = reinterpret_cast<std::int32_t*>(memory + layout.zero_terms_offset);
  auto* scales = reinterpret_cast<float*>(memory + layout.scales_offset);
  const PanelShape shape = panel_shape(groups, x.tokens, isa);
  executor.for_each_index(divide_up(x.tokens, shape.rows), [&](std::size_t panel) {
    const std::size_t first = panel * shape.rows;
    const std::size_t count = x.tokens - first < shape.rows ? x.tokens - first : shape.rows;
    for (std::size_t r = 0; r < count; ++r) {
      ActivationRow job;
      job.inputs = x.inputs;
      job.group = group_length(scheme.weight, x.inputs);
      job.panel_rows = count;
      job.slice_inputs = shape.inputs;
      job.codes = out + first * row_codes(groups, shape) + r * shape.inputs;
      job.zero_terms = zero_terms + first * groups.groups + r;
      job.zero_factor = scheme.weight.zero == Zero::affine ? -1 : -symmetric_zero(scheme.weight);
      scales[first + r] = arrange_row(x.codes(first + r), job) ? x.scale(first + r) : __builtin_nanf("");
    }
  });
  QuantizedTokens tokens;
  tokens.codes = out;
  tokens.zero_terms = zero_terms;
  tokens.scales = scales;
  tokens.layout = groups;
  tokens.tokens = x.tokens;
  tokens.shape = shape;
  return tokens;
}

/// Codes under one scale, as arrange_tokens() reads them.
struct CodesSource {
  MatrixView<const std::int8_t> matrix = {};
  float static_scale = 0.0f;
  std::size_t tokens = 0;
  std::size_t inputs = 0;
  [[nodiscard]] const std::int8_t* codes(std::size_t token) const noexcept { return row(matrix, token); }
  [[nodiscard]] float scale(std::size_t) const noexcept { return static_scale; }
};

[[nodiscard]] inline Status check_codes(const MatrixView<const std::int8_t>& codes, float scale,
                                        std::span<std::byte> memory, std::size_t needed) noexcept {
  if (const Status valid = check_rows(codes, "activations_from_codes"); !valid) return valid;
  if ((__builtin_bit_cast(std::uint32_t, scale) & 0x7fffffffu) >= 0x7f800000u) {
    return Error{Errc::not_finite, "[cbq] activations_from_codes: the scale must be finite", "scale"};
  }
  return check_memory(memory, needed, "activations_from_codes");
}

}  // namespace driver

/// Activations that stand for codes * scale (M x K codes in [-127, 127]) in `memory` of activations_size<S>(M, K) bytes
/// on a 4-byte boundary; `codes` may be dropped afterwards. Errors: bad_shape (memory, stride), bad_argument
/// (alignment, null memory, a code of -128), not_finite (scale).
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedActivationsView<S>> activations_from_codes(const MatrixView<const std::int8_t>& codes,
                                                                         float scale, std::span<std::byte> memory,
                                                                         const E& executor = {}, Isa cap = detect()) {
  static_assert(checked<S>().activation.bits == 8 && S.activation.zero == Zero::symmetric,
                "[cbq] activations_from_codes: the scheme's activations must be symmetric INT8");
  static_assert(S.activation.granularity != Granularity::per_group,
                "[cbq] activations_from_codes: codes under one static scale have no scale per group");
  const Result<ActivationLayout> layout = activation_layout(S, codes.rows, codes.columns);
  if (!layout) return layout.error();
  if (const Status valid = driver::check_codes(codes, scale, memory, layout->bytes); !valid) return valid.error();
  // A NaN scale marks a row for the check below; no kernel sees it.
  const QuantizedTokens tokens = driver::arrange_tokens(driver::CodesSource{codes, scale, codes.rows, codes.columns}, S,
                                                        *layout, memory.data(), executor, capped(cap));
  for (std::size_t token = 0; token < codes.rows; ++token) {
    if ((__builtin_bit_cast(std::uint32_t, tokens.scales[token]) & 0x7fffffffu) > 0x7f800000u) {
      return Error{Errc::bad_argument, "[cbq] activations_from_codes: codes lie in [-127, 127]",
                   ErrorText("token ") << token, -128};
    }
  }
  return QuantizedActivationsView<S>{tokens};
}

}  // namespace CBQ_ABI
}  // namespace cbq
