// SPDX-License-Identifier: Apache-2.0
#pragma once

// LinearOperator: y = x W^T + bias (+ residual), whatever W is made of. Blocks are written once over this concept, so
// the model that is evaluated or calibrated (fake-quantized) and the model that runs (packed) share every other line of
// code. Their x is a LinearInput, which Q, K and V, or gate and up, quantize once.

#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/context.hpp>
#include <cbq/gemm/epilogue.hpp>
#include <cbq/nn/linear_input.hpp>
#include <cbq/scheme.hpp>
#include <cbq/scheme/activation_rules.hpp>
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

/// Sets the grid of all tokens. Errc::unsupported unless the scheme's activations are per tensor, Errc::bad_argument as
/// check_static_grid().
[[nodiscard]] inline Status fix_activations(InputRules& rules, const Scheme& scheme, const StaticGrid& fixed) noexcept {
  const Status valid = check_activation_rules({.fixed = fixed}, scheme.activation, 0);
  if (valid) rules.fixed = fixed;
  return valid;
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
