// SPDX-License-Identifier: Apache-2.0
#pragma once

// Feed-forward layers over any linear operator: gated (LLaMA's SwiGLU) and plain with ReLU or GELU (OPT and others).
// The gate is applied by a row kernel after both products, not as an epilogue: so the products share one executor call.
//
//   gated   y = W_down (silu(W_gate x) * (W_up x)),   silu(g) = g / (1 + exp(-g))                    Shazeer, 2020
//   plain   y = W_2 act(W_1 x),   gelu_tanh(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))),
//           gelu_erf(x) = x / 2 (1 + erf(x / sqrt(2)))                                       Hendrycks and Gimpel, 2016

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

#include <cbq/nn/linear.hpp>
#include <cbq/nn/row_kernels.hpp>

namespace cbq {

enum class Activation : unsigned char { relu, gelu_tanh, gelu_erf };

inline namespace CBQ_ABI {

/// out[i] = activation(x[i]); out may be x.
inline void activate_row(Activation activation, std::span<const float> x, float* out) noexcept {
  using Floats = xsimd::batch<float>;
  const auto apply = [activation](const auto& value) {
    using V = std::decay_t<decltype(value)>;
    if (activation == Activation::gelu_erf) {
      return V(0.5f) * value * (V(1.0f) + xsimd::erf(value * V(0.70710678f)));
    }
    const V inner = V(0.79788456f) * (value + V(0.044715f) * value * value * value);
    return V(0.5f) * value * (V(1.0f) + xsimd::tanh(inner));
  };
  if (activation == Activation::relu) {
    // Written so that NaN stays NaN.
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] < 0.0f ? 0.0f : x[i];
    return;
  }
  std::size_t i = 0;
  for (; i + Floats::size <= x.size(); i += Floats::size) {
    apply(Floats::load_unaligned(x.data() + i)).store_unaligned(out + i);
  }
  if (i == x.size()) return;
  float rest[Floats::size] = {};
  for (std::size_t j = i; j < x.size(); ++j) rest[j - i] = x[j];
  apply(Floats::load_unaligned(rest)).store_unaligned(rest);
  for (std::size_t j = i; j < x.size(); ++j) out[j] = rest[j - i];
}

template <LinearOperator Linear>
struct GatedMlpParts {
  Linear gate;
  Linear up;
  Linear down;
};

template <LinearOperator Linear>
class GatedMlp {
 public:
  /// Errc::bad_shape.
  [[nodiscard]] static Result<GatedMlp> create(std::size_t hidden, std::size_t intermediate,
                                               GatedMlpParts<Linear> parts) noexcept {
    if (const Status ok = linear::check_linear(parts.gate, "gate projection", intermediate, hidden); !ok)
      return ok.error();
    if (const Status ok = linear::check_linear(parts.up, "up projection", intermediate, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.down, "down projection", hidden, intermediate); !ok)
      return ok.error();
    return GatedMlp(intermediate, std::move(parts));
  }

  [[nodiscard]] const GatedMlpParts<Linear>& parts() const noexcept { return parts_; }
  [[nodiscard]] GatedMlpParts<Linear>& parts() noexcept { return parts_; }

  /// out = residual + mlp(x); `bits` of single tokens. Errors of the operators.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, const LinearOutput& out, ExecutionContext<E>& context,
                               const TokenBits& bits = {}) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto gate = context.workspace().take_matrix(x.rows, intermediate_);
    const auto up = context.workspace().take_matrix(x.rows, intermediate_);
    if (!gate || !up) return Error{Errc::out_of_memory, "no memory for the feed-forward layer"};
    LinearInput input(x, bits);
    const LinearCall<Linear> products[] = {{&parts_.gate, {*gate}}, {&parts_.up, {*up}}};
    if (const Status done = linear::forward_all<Linear>(products, input, context); !done) return done;
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        silu_multiply({.gate = row(*gate, r), .up = row(*up, r), .out = row(*up, r), .size = intermediate_},
                      context.isa());
      }
    });
    LinearInput gated(as_const(*up), bits);
    return parts_.down.forward(gated, out, context);
  }

 private:
  GatedMlp(std::size_t intermediate, GatedMlpParts<Linear> parts) noexcept
      : intermediate_(intermediate), parts_(std::move(parts)) {}

  std::size_t intermediate_;
  GatedMlpParts<Linear> parts_;
};

template <LinearOperator Linear>
struct PlainMlpParts {
  Linear first;
  Linear second;
};

template <LinearOperator Linear>
class PlainMlp {
 public:
  /// Errc::bad_shape.
  [[nodiscard]] static Result<PlainMlp> create(std::size_t hidden, Activation activation,
                                               PlainMlpParts<Linear> parts) noexcept {
    const std::size_t intermediate = parts.first.info().outputs;
    if (const Status ok = linear::check_linear(parts.first, "first projection", intermediate, hidden); !ok)
      return ok.error();
    if (const Status ok = linear::check_linear(parts.second, "second projection", hidden, intermediate); !ok) {
      return ok.error();
    }
    return PlainMlp(intermediate, activation, std::move(parts));
  }

  [[nodiscard]] std::size_t intermediate() const noexcept { return intermediate_; }
  [[nodiscard]] const PlainMlpParts<Linear>& parts() const noexcept { return parts_; }
  [[nodiscard]] PlainMlpParts<Linear>& parts() noexcept { return parts_; }

  /// out = residual + mlp(x); `bits` of single tokens. Errors of the operators.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, const LinearOutput& out, ExecutionContext<E>& context,
                               const TokenBits& bits = {}) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto inner = context.workspace().take_matrix(x.rows, intermediate_);
    if (!inner) return inner.error();
    LinearInput input(x, bits);
    if (const Status done = parts_.first.forward(input, {*inner}, context); !done) return done;
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        activate_row(activation_, std::span<const float>(row(*inner, r), intermediate_), row(*inner, r));
      }
    });
    LinearInput activated(as_const(*inner), bits);
    return parts_.second.forward(activated, out, context);
  }

 private:
  PlainMlp(std::size_t intermediate, Activation activation, PlainMlpParts<Linear> parts) noexcept
      : intermediate_(intermediate), activation_(activation), parts_(std::move(parts)) {}

  std::size_t intermediate_;
  Activation activation_;
  PlainMlpParts<Linear> parts_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
