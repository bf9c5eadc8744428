// SPDX-License-Identifier: Apache-2.0
#pragma once

// One layer of a decoder-only model with a backward pass, over whole sequences: m = x + attention(norm(x)),
// y = m + mlp(norm(m)). LlamaBlockGradient and OptBlockGradient are the counterparts of LlamaBlock and OptBlock for
// calibration; with slopes and GELU the latter is BLOOM's. A tape of n tokens holds, in scalars, about n (7 hidden +
// 4 intermediate) for LLaMA and n (8 hidden + intermediate) for OPT, with GELU twice the intermediate, more where
// activations are quantized; Tape::bytes() counts.

#include <cstddef>
#include <utility>

#include <cbq/nn/mlp_gradient.hpp>
#include <cbq/nn/norm_gradient.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class Norm, class Attention, class Mlp>
class TransformerBlockGradient {
 public:
  using T = typename Norm::Scalar;
  using Scalar = T;

  struct Tape {
    TapeMatrix<T> attention_input, middle, mlp_input;
    typename Attention::Tape attention;
    typename Mlp::Tape mlp;
    [[nodiscard]] std::size_t bytes() const noexcept {
      return attention_input.bytes() + middle.bytes() + mlp_input.bytes() + attention.bytes() + mlp.bytes();
    }
  };

  TransformerBlockGradient(Norm attention_norm, Attention attention, Norm mlp_norm, Mlp mlp) noexcept
      : attention_norm_(std::move(attention_norm)),
        attention_(std::move(attention)),
        mlp_norm_(std::move(mlp_norm)),
        mlp_(std::move(mlp)) {}

  [[nodiscard]] Attention& attention() noexcept { return attention_; }
  [[nodiscard]] Mlp& mlp() noexcept { return mlp_; }

  /// y [tokens x hidden] = block(x); rows of x are whole sequences of `length`. x may not be y. Errors of the parts.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, std::size_t length, const MatrixView<T>& y, Tape& tape,
                               ExecutionContext<E>& context) const noexcept {
    for (TapeMatrix<T>* matrix : {&tape.attention_input, &tape.middle, &tape.mlp_input}) {
      if (const Status taken = matrix->reshape(x.rows, x.columns); !taken) return taken;
    }
    const auto middle = tape.middle.view();
    if (const Status done = attention_norm_.forward(x, tape.attention_input.view(), context); !done) return done;
    if (const Status done =
            attention_.forward(tape.attention_input.constant(), length, middle, tape.attention, context);
        !done) {
      return done;
    }
    add(x, middle, context);
    if (const Status done = mlp_norm_.forward(as_const(middle), tape.mlp_input.view(), context); !done) return done;
    if (const Status done = mlp_.forward(tape.mlp_input.constant(), y, tape.mlp, context); !done) return done;
    add(as_const(middle), y, context);
    return {};
  }

  /// dx = dL/dx for dy = dL/dy, with x and tape of the forward pass; gradients of parameters are added inside linear
  /// layers and sites. dx may be dy.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, std::size_t length,
                                Tape& tape, const MatrixView<T>& dx, ExecutionContext<E>& context) noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto inner = context.workspace().template take_matrix<T>(x.rows, x.columns);
    if (!inner) return inner.error();
    if (const Status done = mlp_.backward(dy, tape.mlp_input.constant(), tape.mlp, *inner, context); !done) return done;
    if (dx.data != dy.data) copy(dy, dx, context);
    if (const Status done = mlp_norm_.backward(as_const(*inner), tape.middle.constant(), dx, context); !done)
      return done;
    const Status attended =
        attention_.backward(as_const(dx), tape.attention_input.constant(), length, tape.attention, *inner, context);
    if (!attended) return attended;
    return attention_norm_.backward(as_const(*inner), x, dx, context);
  }

  /// Calls f(name, linear) for all linear layers.
  template <class F>
  void for_each_linear(F&& f) {
    attention_.for_each_linear(f);
    mlp_.for_each_linear(f);
  }
  /// Calls f(name, site) for the sites of linear inputs.
  template <class F>
  void for_each_activation(F&& f) {
    attention_.for_each_activation(f);
    mlp_.for_each_activation(f);
  }
  /// Calls f(name, site) for the keys and the values of the cache.
  template <class F>
  void for_each_cache(F&& f) {
    attention_.for_each_cache(f);
  }

 private:
  template <Executor E>
  static void add(const MatrixView<const T>& x, const MatrixView<T>& y, ExecutionContext<E>& context) noexcept {
    for_each_row(
        y.rows,
        [&](std::size_t r) {
          for (std::size_t i = 0; i < y.columns; ++i) row(y, r)[i] += row(x, r)[i];
        },
        context);
  }
  template <Executor E>
  static void copy(const MatrixView<const T>& x, const MatrixView<T>& y, ExecutionContext<E>& context) noexcept {
    for_each_row(
        y.rows, [&](std::size_t r) { __builtin_memcpy(row(y, r), row(x, r), y.columns * sizeof(T)); }, context);
  }

  Norm attention_norm_;
  Attention attention_;
  Norm mlp_norm_;
  Mlp mlp_;
};

template <DifferentiableLinear L, DifferentiableActivation A>
using LlamaBlockGradient =
    TransformerBlockGradient<RmsNormGradient<typename L::Scalar>, SelfAttentionGradient<L, A>, GatedMlpGradient<L, A>>;

template <DifferentiableLinear L, DifferentiableActivation A>
using OptBlockGradient = TransformerBlockGradient<LayerNormGradient<typename L::Scalar>, SelfAttentionGradient<L, A>,
                                                  PlainMlpGradient<L, A>>;

}  // namespace CBQ_ABI
}  // namespace cbq
