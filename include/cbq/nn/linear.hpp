// SPDX-License-Identifier: Apache-2.0
#pragma once

// LinearOperator: y = x W^T + bias (+ residual), whatever W is made of. Blocks are written once over this concept, so
// the model that is evaluated or calibrated (fake-quantized) and the model that runs (packed) share every other line of
// code. A LinearInput is the x of one or more operators: what it is quantized to is kept, so Q, K and V, or gate and
// up, quantize their common input once when their schemes agree. Operators whose weights expect a rotated input
// (InputRotation) rotate each token before they quantize it.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/context.hpp>
#include <cbq/gemm/activations.hpp>
#include <cbq/gemm/epilogue.hpp>
#include <cbq/quant/activation.hpp>
#include <cbq/scheme.hpp>
#include <cbq/transform/hadamard.hpp>
#include <cbq/transform/input_rotation.hpp>

namespace cbq {

/// What a linear operator is. `scheme.weight.bits` is 16 for everything that is not quantized, float weights included.
struct LinearInfo {
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  Scheme scheme = {};
  std::size_t bytes = 0;  ///< of weights, scales and zero points in memory
  InputRotation rotation = InputRotation::none;
};

/// Where a linear operator writes: y = x W^T + bias + residual. `residual` is empty or of the shape of y, in other
/// memory.
struct LinearOutput {
  MatrixView<float> y = {};
  MatrixView<const float> residual = {};
};

/// One of several operators with a common input, and where it writes.
template <class Linear>
struct LinearCall {
  const Linear* op = nullptr;
  LinearOutput out = {};
};

inline namespace CBQ_ABI {
namespace linear {

/// Tokens that are rotated as they are quantized: each row into that of its panel in `scratch`, which stays in cache.
struct RotatedTokens : MatrixView<const float> {
  MatrixView<float> scratch = {};
  float clip = 1.0f;

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
  explicit LinearInput(const MatrixView<const float>& values) noexcept : values_(values) {}

  /// As the caller has it: not rotated.
  [[nodiscard]] const MatrixView<const float>& values() const noexcept { return values_; }

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

  /// The input, rotated first, as integer kernels for `scheme` read it, with ranges times `clip`; errors as
  /// quantize_activations(), and out_of_memory. The scheme's activations have at most 8 bits.
  template <Executor E>
  [[nodiscard]] Result<QuantizedTokens> quantized(const Scheme& scheme, ExecutionContext<E>& context,
                                                  InputRotation rotation = InputRotation::none,
                                                  float clip = 1.0f) noexcept {
    const CodesKey key = {scheme, rotation, clip};
    if (has_codes_ && codes_key_ == key) return codes_;
    const Result<ActivationLayout> layout = activation_layout(scheme, values_.rows, values_.columns);
    if (!layout) return layout.error();
    const Result<std::span<std::byte>> memory = context.workspace().template take<std::byte>(layout->bytes);
    if (!memory) return memory.error();
    const Result<QuantizedTokens> quantized = quantize_into(*memory, key, layout->groups, context);
    if (!quantized) return quantized.error();
    codes_ = *quantized;
    codes_key_ = key;
    has_codes_ = true;
    return codes_;
  }

  /// The input, rotated first, rounded to `grid` and back, with ranges times `clip`; not rounded where the grid keeps
  /// floating point. Errors as fake_quantize_activations(), and out_of_memory.
  template <Executor E>
  [[nodiscard]] Result<MatrixView<const float>> fake_quantized(const Grid& grid, ExecutionContext<E>& context,
                                                               InputRotation rotation = InputRotation::none,
                                                               float clip = 1.0f) noexcept {
    const Result<MatrixView<const float>> x = rotated(rotation, context);
    if (!x || grid.bits == 16) return x;
    const bool same = rounded_grid_ == grid && rounded_rotation_ == rotation && rounded_clip_ == clip;
    if (rounded_.data != nullptr && same) return rounded_;
    const auto memory = context.workspace().take_matrix(values_.rows, values_.columns);
    if (!memory) return memory.error();
    const auto failed = context.workspace().template take<std::uint8_t>(values_.rows);
    if (!failed) return failed.error();
    for_each_row_block(context.executor(), values_.rows, [&](const RowBlock& block) {
      const Status rounded = fake_quantize_activations(rows(*x, block.first, block.count), grid,
                                                       rows(*memory, block.first, block.count), clip);
      (*failed)[block.first] = rounded ? 0 : 1;
      for (std::size_t r = 1; r < block.count; ++r) (*failed)[block.first + r] = 0;
    });
    for (const std::uint8_t one : *failed) {
      // Once more in order, for the message with the right token.
      if (one != 0) return fake_quantize_activations(*x, grid, *memory, clip).error();
    }
    rounded_ = as_const(*memory);
    rounded_grid_ = grid;
    rounded_rotation_ = rotation;
    rounded_clip_ = clip;
    return rounded_;
  }

 private:
  /// What codes depend on.
  struct CodesKey {
    Scheme scheme = {};
    InputRotation rotation = InputRotation::none;
    float clip = 1.0f;
    friend constexpr bool operator==(const CodesKey&, const CodesKey&) = default;
  };

  template <Executor E>
  [[nodiscard]] Result<QuantizedTokens> quantize_into(std::span<std::byte> memory, const CodesKey& key,
                                                      const PackedLayout& groups,
                                                      ExecutionContext<E>& context) const noexcept {
    if (key.rotation == InputRotation::none) {
      return driver::quantize_tokens(driver::ClippedTokens{values_, key.clip}, key.scheme, memory, context.executor(),
                                     context.isa());
    }
    const std::size_t panel_rows = panel_shape(groups, values_.rows, context.isa()).rows;
    const auto scratch = context.workspace().take_matrix(divide_up(values_.rows, panel_rows), values_.columns);
    if (!scratch) return scratch.error();
    return driver::quantize_tokens(linear::RotatedTokens{values_, *scratch, key.clip}, key.scheme, memory,
                                   context.executor(), context.isa());
  }

  /// out = the rows of the input from `first` on, rotated.
  void rotate_rows_to(const MatrixView<float>& out, std::size_t first, Isa isa) const noexcept {
    for (std::size_t r = 0; r < out.rows; ++r) {
      __builtin_memcpy(row(out, r), row(values_, first + r), out.columns * sizeof(float));
      hadamard_row(std::span<float>(row(out, r), out.columns), hadamard_size(out.columns), isa);
    }
  }

  MatrixView<const float> values_;
  MatrixView<const float> rotated_ = {};
  QuantizedTokens codes_ = {};
  CodesKey codes_key_ = {};
  bool has_codes_ = false;
  MatrixView<const float> rounded_ = {};
  Grid rounded_grid_ = {};
  InputRotation rounded_rotation_ = InputRotation::none;
  float rounded_clip_ = 1.0f;
};

/// y = x W^T + bias + residual. `forward` errors: bad_shape, out_of_memory, and not_finite where x is quantized. The
/// same bits for any executor. `weight_row` writes the `inputs` weights of one output as float: what an embedding tied
/// to a head reads.
template <class Op>
concept LinearOperator = std::movable<Op> && requires(const Op& op, LinearInput& x, const LinearOutput& out,
                                                      ExecutionContext<>& context, std::size_t output, float* weights) {
  { op.info() } -> std::same_as<LinearInfo>;
  { op.forward(x, out, context) } -> std::same_as<Status>;
  { op.weight_row(output, weights) };
};

namespace linear {

/// Calls multiply(epilogue) with the epilogue that bias (null: none) and residual (empty: none) ask for.
template <class Multiply>
[[nodiscard]] Status with_epilogue(const float* bias, const MatrixView<const float>& residual,
                                   const Multiply& multiply) {
  if (residual.data == nullptr) return bias == nullptr ? multiply(NoEpilogue{}) : multiply(AddBias{bias});
  if (bias == nullptr) return multiply(AddResidual{residual});
  return multiply(Then{AddBias{bias}, AddResidual{residual}});
}

/// Whether operands fit a weight matrix; strides are checked too.
[[nodiscard]] inline Status check_operands(const LinearInfo& info, const MatrixView<const float>& x,
                                           const LinearOutput& out) noexcept {
  if (x.columns != info.inputs || x.stride < x.columns) {
    return Error{Errc::bad_shape, "the input does not fit the linear operator", "x",
                 ErrorText(x.rows) << " x " << x.columns, ErrorText("tokens x ") << info.inputs};
  }
  if (out.y.rows != x.rows || out.y.columns != info.outputs || out.y.stride < out.y.columns) {
    return Error{Errc::bad_shape, "the result does not fit the linear operator", "y",
                 ErrorText(out.y.rows) << " x " << out.y.columns, ErrorText(x.rows) << " x " << info.outputs};
  }
  if (out.residual.data != nullptr &&
      (out.residual.rows != out.y.rows || out.residual.columns != out.y.columns || out.residual.data == out.y.data)) {
    return Error{Errc::bad_shape, "the residual must have the shape of the result, and other memory", "residual",
                 ErrorText(out.residual.rows) << " x " << out.residual.columns,
                 ErrorText(x.rows) << " x " << info.outputs};
  }
  return {};
}

/// Whether a clip multiplier of activations is one: Errc::bad_argument unless it lies in (0, 1].
[[nodiscard]] inline Status check_clip(float clip) noexcept {
  if (clip > 0.0f && clip <= 1.0f) return {};
  return Error{Errc::bad_argument, "a clip multiplier lies above 0 and at most at 1", "clip"};
}

/// Whether an operator maps `inputs` to `outputs`; `where` names it.
template <LinearOperator Linear>
[[nodiscard]] Status check_linear(const Linear& op, const char* where, std::size_t outputs,
                                  std::size_t inputs) noexcept {
  const LinearInfo info = op.info();
  if (info.outputs == outputs && info.inputs == inputs) return {};
  return Error{Errc::bad_shape, "a weight matrix does not have the shape that the configuration asks for", where,
               ErrorText(info.outputs) << " x " << info.inputs, ErrorText(outputs) << " x " << inputs};
}

/// out = op(x) for all calls, in one executor call where the operators can do that (see matmul_group()): handing out
/// the work of a layer of 576 x 576 costs as much as the work of one token. Errors as forward().
template <LinearOperator Linear, Executor E>
[[nodiscard]] Status forward_all(std::span<const LinearCall<Linear>> calls, LinearInput& x,
                                 ExecutionContext<E>& context) noexcept {
  if constexpr (requires { Linear::forward_group(calls, x, context); }) {
    return Linear::forward_group(calls, x, context);
  } else {
    for (const LinearCall<Linear>& call : calls) {
      if (const Status done = call.op->forward(x, call.out, context); !done) return done;
    }
    return {};
  }
}

/// A copy of `bias`, which is empty or holds one float per output.
[[nodiscard]] inline Result<AlignedBuffer<float>> copy_bias(std::span<const float> bias, std::size_t outputs) noexcept {
  if (!bias.empty() && bias.size() != outputs) {
    return Error{Errc::bad_shape, "a bias has one element per output", "bias", bias.size(), outputs};
  }
  Result<AlignedBuffer<float>> copy = AlignedBuffer<float>::allocate(bias.size());
  if (copy && !bias.empty()) __builtin_memcpy(copy->data(), bias.data(), bias.size_bytes());
  return copy;
}

}  // namespace linear

}  // namespace CBQ_ABI
}  // namespace cbq
