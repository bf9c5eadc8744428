// SPDX-License-Identifier: Apache-2.0
#pragma once

// LinearInput: the x of one or more linear operators. What it is quantized to is kept, so Q, K and V, or gate and up,
// quantize their common input once when their schemes and rules agree. Operators whose weights expect a rotated input
// (InputRotation) rotate each token before they quantize it. A host that knows which tokens matter may give the others
// 4 bits (TokenBits): one product, whatever the bits of its tokens. Cost: a pass or two over the input per scheme.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include <cbq/core/context.hpp>
#include <cbq/gemm/activations.hpp>
#include <cbq/quant/activation.hpp>
#include <cbq/scheme.hpp>
#include <cbq/scheme/activation_rules.hpp>
#include <cbq/transform/hadamard.hpp>
#include <cbq/transform/input_rotation.hpp>

namespace cbq {
inline namespace CBQ_ABI {  // also of the data: their constructors move floats, as each file's flags have it

/// What an operator does to its input, beside its scheme.
struct InputRules {
  InputRotation rotation = InputRotation::none;
  float clip = 1.0f;                     ///< multiplier of the ranges of activations, in (0, 1]
  std::optional<StaticGrid> fixed = {};  ///< of all tokens; activations per tensor only
  friend constexpr bool operator==(const InputRules&, const InputRules&) = default;
};

namespace linear {

/// Tokens that are rotated as they are quantized: each row into that of its panel in `scratch`, which stays in cache.
struct RotatedTokens : MatrixView<const float> {
  MatrixView<float> scratch = {};
  ActivationRules rules = {};

  [[nodiscard]] const float* prepared(std::size_t panel, std::size_t token, Isa isa) const noexcept {
    float* to = row(scratch, panel);
    __builtin_memcpy(to, row(*this, token), columns * sizeof(float));
    hadamard_row(std::span<float>(to, columns), hadamard_size(columns), isa);
    return to;
  }
};

}  // namespace linear

/// The input [tokens x inputs] of linear operators, and what it was quantized to last. Its memory comes from the
/// context's workspace: it must not outlive the Workspace::Frame in which it is used first.
class LinearInput {
 public:
  /// `tokens`: bits of single tokens, kept by the caller for as long as the input; none: those of each scheme.
  explicit LinearInput(const MatrixView<const float>& values, const TokenBits& tokens = {}) noexcept
      : values_(values), tokens_(tokens) {}

  /// As the caller has it: not rotated.
  [[nodiscard]] const MatrixView<const float>& values() const noexcept { return values_; }

  [[nodiscard]] const TokenBits& tokens() const noexcept { return tokens_; }

  /// The input rotated; the input itself where the operator rotates nothing. Errc::out_of_memory.
  template <Executor E>
  [[nodiscard]] Result<MatrixView<const float>> rotated(InputRotation rotation, ExecutionContext<E>& context) noexcept {
    if (rotation == InputRotation::none) return values_;
    if (rotated_.data != nullptr) return rotated_;
    const auto memory = context.workspace().take_matrix(values_.rows, values_.columns);
    if (!memory) return memory.error();
    for_each_row_block(context.executor(), values_.rows, [&](const RowBlock& block) {
      rotate_rows_to(rows(*memory, block.first, block.count), block.first, context.isa());
    });
    rotated_ = as_const(*memory);
    return rotated_;
  }

  /// The input, rotated first, as integer kernels for `scheme` read it; errors as quantize_activations(), and
  /// out_of_memory. The scheme's activations have at most 8 bits.
  template <Executor E>
  [[nodiscard]] Result<QuantizedTokens> quantized(const Scheme& scheme, ExecutionContext<E>& context,
                                                  const InputRules& rules = {}) noexcept {
    if (has_codes_ && codes_scheme_ == scheme && codes_rules_ == rules) return codes_;
    const Result<ActivationRules> resolved = resolve(scheme.activation, rules, context);
    if (!resolved) return resolved.error();
    const Result<ActivationLayout> layout = activation_layout(scheme, values_.rows, values_.columns);
    if (!layout) return layout.error();
    const Result<std::span<std::byte>> memory = context.workspace().template take<std::byte>(layout->bytes);
    if (!memory) return memory.error();
    const Result<QuantizedTokens> quantized =
        rules.rotation == InputRotation::none ? driver::quantize_tokens(RuledActivations{values_, *resolved}, scheme,
                                                                        *memory, context.executor(), context.isa())
                                              : quantize_rotated(*memory, scheme, *resolved, context);
    if (!quantized) return quantized.error();
    codes_ = *quantized;
    codes_scheme_ = scheme;
    codes_rules_ = rules;
    has_codes_ = true;
    return codes_;
  }

  /// The input, rotated first, rounded to `grid` and back; not rounded where the grid keeps floating point. Errors as
  /// fake_quantize_activations(), and out_of_memory.
  template <Executor E>
  [[nodiscard]] Result<MatrixView<const float>> fake_quantized(const Grid& grid, ExecutionContext<E>& context,
                                                               const InputRules& rules = {}) noexcept {
    const Result<MatrixView<const float>> x = rotated(rules.rotation, context);
    if (!x || grid.bits == 16) return x;
    if (rounded_.data != nullptr && rounded_grid_ == grid && rounded_rules_ == rules) return rounded_;
    const Result<ActivationRules> resolved = resolve(grid, rules, context);
    if (!resolved) return resolved.error();
    const auto memory = context.workspace().take_matrix(values_.rows, values_.columns);
    if (!memory) return memory.error();
    const auto failed = context.workspace().template take<std::uint8_t>(values_.rows);
    if (!failed) return failed.error();
    for_each_row_block(context.executor(), values_.rows, [&](const RowBlock& block) {
      ActivationRules part = *resolved;
      if (!part.tokens.bits.empty()) part.tokens.bits = part.tokens.bits.subspan(block.first, block.count);
      const Status rounded = fake_quantize_activations(rows(*x, block.first, block.count), grid,
                                                       rows(*memory, block.first, block.count), part);
      (*failed)[block.first] = rounded ? 0 : 1;
      for (std::size_t r = 1; r < block.count; ++r) (*failed)[block.first + r] = 0;
    });
    for (const std::uint8_t one : *failed) {
      // Once more in order, for the message with the right token.
      if (one != 0) return fake_quantize_activations(*x, grid, *memory, *resolved).error();
    }
    rounded_ = as_const(*memory);
    rounded_grid_ = grid;
    rounded_rules_ = rules;
    return rounded_;
  }

 private:
  /// The rules of an operator and of the tokens, with the grid of the whole input where activations are per tensor and
  /// none is fixed.
  template <Executor E>
  [[nodiscard]] Result<ActivationRules> resolve(const Grid& grid, const InputRules& rules,
                                                ExecutionContext<E>& context) noexcept {
    ActivationRules resolved = {.clip = rules.clip, .fixed = rules.fixed, .tokens = tokens_};
    // Row blocks are quantized one by one, with bits of their own: those of all tokens are checked here.
    if (const Status valid = check_activation_rules(resolved, grid, values_.rows); !valid) return valid.error();
    if (grid.granularity != Granularity::per_tensor || rules.fixed) return resolved;
    const Result<MatrixView<const float>> x = rotated(rules.rotation, context);
    if (!x) return x.error();
    const auto ranges = context.workspace().template take<RowRange>(values_.rows);
    if (!ranges) return ranges.error();
    for_each_row_block(context.executor(), values_.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r)
        (*ranges)[r] = row_range(row(*x, r), x->columns, context.isa());
    });
    RowRange whole;
    for (const RowRange& range : *ranges) driver::join(whole, range);
    resolved.fixed = static_grid(grid, whole.lowest, whole.highest);
    return resolved;
  }

  template <Executor E>
  [[nodiscard]] Result<QuantizedTokens> quantize_rotated(std::span<std::byte> memory, const Scheme& scheme,
                                                         const ActivationRules& rules,
                                                         ExecutionContext<E>& context) const noexcept {
    const Result<PackedLayout> groups = packed_layout(scheme.weight, 0, values_.columns);
    if (!groups) return groups.error();
    const std::size_t panel_rows = panel_shape(*groups, values_.rows, context.isa()).rows;
    const auto scratch = context.workspace().take_matrix(divide_up(values_.rows, panel_rows), values_.columns);
    if (!scratch) return scratch.error();
    return driver::quantize_tokens(linear::RotatedTokens{values_, *scratch, rules}, scheme, memory, context.executor(),
                                   context.isa());
  }

  /// out = the rows of the input from `first` on, rotated.
  void rotate_rows_to(const MatrixView<float>& out, std::size_t first, Isa isa) const noexcept {
    for (std::size_t r = 0; r < out.rows; ++r) {
      __builtin_memcpy(row(out, r), row(values_, first + r), out.columns * sizeof(float));
      hadamard_row(std::span<float>(row(out, r), out.columns), hadamard_size(out.columns), isa);
    }
  }

  MatrixView<const float> values_;
  TokenBits tokens_ = {};
  MatrixView<const float> rotated_ = {};
  QuantizedTokens codes_ = {};
  Scheme codes_scheme_ = {};
  InputRules codes_rules_ = {};
  bool has_codes_ = false;
  MatrixView<const float> rounded_ = {};
  Grid rounded_grid_ = {};
  InputRules rounded_rules_ = {};
};

}  // namespace CBQ_ABI
}  // namespace cbq
