// SPDX-License-Identifier: Apache-2.0
#pragma once

// The two kinds of MLP with a backward pass: gated with SiLU (LLaMA) and plain with ReLU or GELU (OPT, BLOOM). The
// counterparts of GatedMlp and PlainMlp for calibration.
//
//   h = silu(g) o u      dg = dh u s (1 + g (1 - s)),  du = dh g s,  s = 1 / (1 + exp(-g))

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#include <cbq/nn/activation_gradient.hpp>
#include <cbq/nn/self_attention_gradient.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace mlp_gradient {

/// out = silu(gate) * up for one row.
template <class T>
void gate_row(const T* gate, const T* up, T* out, std::size_t size, Isa isa) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    silu_multiply({.gate = gate, .up = up, .out = out, .size = size}, isa);
  } else {
    for (std::size_t i = 0; i < size; ++i) out[i] = gate[i] / (T(1) + std::exp(-gate[i])) * up[i];
  }
}

/// From dh (in `dgate`) to dgate in place and dup.
template <class T>
void gate_row_backward(const T* gate, const T* up, T* dgate, T* dup, std::size_t size) noexcept {
  const auto step = [&](const auto& g, const auto& u, const auto& dh, auto& to_gate, auto& to_up) {
    const auto s = T(1) / (T(1) + xsimd::exp(-g));
    to_up = dh * g * s;
    to_gate = dh * u * s * (T(1) + g * (T(1) - s));
  };
  using Batch = xsimd::batch<T>;
  std::size_t i = 0;
  for (; i + Batch::size <= size; i += Batch::size) {
    Batch to_gate, to_up;
    step(Batch::load_unaligned(gate + i), Batch::load_unaligned(up + i), Batch::load_unaligned(dgate + i), to_gate,
         to_up);
    to_gate.store_unaligned(dgate + i);
    to_up.store_unaligned(dup + i);
  }
  for (; i < size; ++i) {
    Batch to_gate, to_up;
    step(Batch(gate[i]), Batch(up[i]), Batch(dgate[i]), to_gate, to_up);
    dgate[i] = to_gate.get(0);
    dup[i] = to_up.get(0);
  }
}

}  // namespace mlp_gradient

template <DifferentiableLinear L, DifferentiableActivation A>
struct GatedMlpGradientParts {
  L gate;
  L up;
  L down;
  A input_site = {};
  A inner_site = {};
};

template <DifferentiableLinear L, DifferentiableActivation A>
class GatedMlpGradient {
 public:
  using T = typename L::Scalar;
  using Parts = GatedMlpGradientParts<L, A>;
  struct Tape {
    TapeMatrix<T> input;  // quantized; unused where the site is the identity
    TapeMatrix<T> gate, up;
    TapeMatrix<T> inner;
    TapeMatrix<T> inner_quantized;
    [[nodiscard]] std::size_t bytes() const noexcept {
      return input.bytes() + gate.bytes() + up.bytes() + inner.bytes() + inner_quantized.bytes();
    }
  };

  /// Errc::bad_shape.
  [[nodiscard]] static Result<GatedMlpGradient> create(Parts parts) noexcept {
    const std::size_t inner = parts.gate.outputs();
    if (parts.up.outputs() != inner || parts.down.inputs() != inner || parts.up.inputs() != parts.gate.inputs()) {
      return Error{Errc::bad_shape, "the projections of an MLP do not fit", "gate, up, down",
                   ErrorText(inner) << ", " << parts.up.outputs() << ", " << parts.down.inputs()};
    }
    return GatedMlpGradient(std::move(parts));
  }

  [[nodiscard]] Parts& parts() noexcept { return parts_; }

  /// y = mlp(x).
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& y, Tape& tape,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto input = quantized_input(parts_.input_site, x, tape.input, context);
    if (!input) return input.error();
    const std::size_t width = parts_.gate.outputs();
    for (TapeMatrix<T>* matrix : {&tape.gate, &tape.up, &tape.inner}) {
      if (const Status taken = matrix->reshape(x.rows, width); !taken) return taken;
    }
    if (const Status done = parts_.gate.forward(*input, tape.gate.view(), context); !done) return done;
    if (const Status done = parts_.up.forward(*input, tape.up.view(), context); !done) return done;
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          mlp_gradient::gate_row<T>(row(tape.gate.constant(), r), row(tape.up.constant(), r), row(tape.inner.view(), r),
                                    width, context.isa());
        },
        context);
    const auto inner = quantized_input(parts_.inner_site, tape.inner.constant(), tape.inner_quantized, context);
    if (!inner) return inner.error();
    return parts_.down.forward(*inner, y, context);
  }

  /// dx = dL/dx for dy = dL/dy and the x of the forward pass.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, Tape& tape,
                                const MatrixView<T>& dx, ExecutionContext<E>& context) noexcept {
    const Workspace::Frame frame(context.workspace());
    const std::size_t width = parts_.gate.outputs();
    const auto dgate = context.workspace().template take_matrix<T>(x.rows, width);
    const auto dup = context.workspace().template take_matrix<T>(x.rows, width);
    if (!dgate || !dup) return Error{Errc::out_of_memory, "no memory for the gradients of an MLP"};
    const auto inner = tape.inner.constant();
    const auto quantized = parts_.inner_site.is_identity() ? inner : tape.inner_quantized.constant();
    const auto input = parts_.input_site.is_identity() ? x : tape.input.constant();
    if (const Status done = parts_.down.backward(dy, quantized, *dgate, Accumulate::overwrite, context); !done)
      return done;
    if (!parts_.inner_site.is_identity()) {
      if (const Status done = parts_.inner_site.backward(*dgate, inner, quantized, context); !done) return done;
    }
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          mlp_gradient::gate_row_backward<T>(row(tape.gate.constant(), r), row(tape.up.constant(), r), row(*dgate, r),
                                             row(*dup, r), width);
        },
        context);
    if (const Status done = parts_.gate.backward(as_const(*dgate), input, dx, Accumulate::overwrite, context); !done)
      return done;
    if (const Status done = parts_.up.backward(as_const(*dup), input, dx, Accumulate::add, context); !done) return done;
    return parts_.input_site.is_identity() ? Status{} : parts_.input_site.backward(dx, x, input, context);
  }

  /// Calls f(name, linear) for all linear layers.
  template <class F>
  void for_each_linear(F&& f) {
    f("gate", parts_.gate);
    f("up", parts_.up);
    f("down", parts_.down);
  }
  /// Calls f(name, site) for the sites of linear inputs.
  template <class F>
  void for_each_activation(F&& f) {
    f("mlp input", parts_.input_site);
    f("down input", parts_.inner_site);
  }

 private:
  explicit GatedMlpGradient(Parts parts) noexcept : parts_(std::move(parts)) {}
  Parts parts_;
};

template <DifferentiableLinear L, DifferentiableActivation A>
struct PlainMlpGradientParts {
  L first;
  L second;
  A input_site = {};
  A inner_site = {};
};

template <DifferentiableLinear L, DifferentiableActivation A>
class PlainMlpGradient {
 public:
  using T = typename L::Scalar;
  using Parts = PlainMlpGradientParts<L, A>;
  struct Tape {
    TapeMatrix<T> input;   // quantized; unused where the site is the identity
    TapeMatrix<T> before;  // the activation; unused with ReLU
    TapeMatrix<T> inner;   // after the activation
    TapeMatrix<T> inner_quantized;
    [[nodiscard]] std::size_t bytes() const noexcept {
      return input.bytes() + before.bytes() + inner.bytes() + inner_quantized.bytes();
    }
  };

  /// Errc::bad_shape.
  [[nodiscard]] static Result<PlainMlpGradient> create(Parts parts, Activation activation = Activation::relu) noexcept {
    if (parts.first.outputs() != parts.second.inputs()) {
      return Error{Errc::bad_shape, "the projections of an MLP do not fit", "first, second", parts.first.outputs(),
                   parts.second.inputs()};
    }
    return PlainMlpGradient(std::move(parts), activation);
  }

  [[nodiscard]] Parts& parts() noexcept { return parts_; }

  /// y = mlp(x).
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& y, Tape& tape,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto input = quantized_input(parts_.input_site, x, tape.input, context);
    if (!input) return input.error();
    const std::size_t width = parts_.first.outputs();
    TapeMatrix<T>& before = activation_ == Activation::relu ? tape.inner : tape.before;
    for (TapeMatrix<T>* matrix : {&before, &tape.inner}) {
      if (const Status taken = matrix->reshape(x.rows, width); !taken) return taken;
    }
    if (const Status done = parts_.first.forward(*input, before.view(), context); !done) return done;
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          activation_gradient::forward<T>(activation_, row(before.constant(), r), row(tape.inner.view(), r), width);
        },
        context);
    const auto inner = quantized_input(parts_.inner_site, tape.inner.constant(), tape.inner_quantized, context);
    if (!inner) return inner.error();
    return parts_.second.forward(*inner, y, context);
  }

  /// dx = dL/dx for dy = dL/dy and the x of the forward pass.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, Tape& tape,
                                const MatrixView<T>& dx, ExecutionContext<E>& context) noexcept {
    const Workspace::Frame frame(context.workspace());
    const std::size_t width = parts_.first.outputs();
    const auto slopes = context.workspace().template take_matrix<T>(x.rows, width);
    if (!slopes) return slopes.error();
    const auto inner = tape.inner.constant();
    const auto quantized = parts_.inner_site.is_identity() ? inner : tape.inner_quantized.constant();
    const auto input = parts_.input_site.is_identity() ? x : tape.input.constant();
    if (const Status done = parts_.second.backward(dy, quantized, *slopes, Accumulate::overwrite, context); !done)
      return done;
    if (!parts_.inner_site.is_identity()) {
      if (const Status done = parts_.inner_site.backward(*slopes, inner, quantized, context); !done) return done;
    }
    const auto before = activation_ == Activation::relu ? inner : tape.before.constant();
    for_each_row(
        x.rows,
        [&](std::size_t r) { activation_gradient::backward<T>(activation_, row(before, r), row(*slopes, r), width); },
        context);
    if (const Status done = parts_.first.backward(as_const(*slopes), input, dx, Accumulate::overwrite, context); !done)
      return done;
    return parts_.input_site.is_identity() ? Status{} : parts_.input_site.backward(dx, x, input, context);
  }

  /// Calls f(name, linear) for all linear layers.
  template <class F>
  void for_each_linear(F&& f) {
    f("first", parts_.first);
    f("second", parts_.second);
  }
  /// Calls f(name, site) for the sites of linear inputs.
  template <class F>
  void for_each_activation(F&& f) {
    f("mlp input", parts_.input_site);
    f("second input", parts_.inner_site);
  }

 private:
  PlainMlpGradient(Parts parts, Activation activation) noexcept : parts_(std::move(parts)), activation_(activation) {}
  Parts parts_;
  Activation activation_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
