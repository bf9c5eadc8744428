// SPDX-License-Identifier: Apache-2.0
#pragma once

// Final norm and head with a backward pass into the hidden states: what the loss on logits needs in the last window of
// a reconstruction. Both are constant. Logits of many tokens are large: callers pass some hundred rows at a time.

#include <cstddef>
#include <utility>

#include <cbq/nn/differentiable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class Norm, DifferentiableLinear L>
class HeadGradient {
 public:
  using Scalar = typename L::Scalar;
  using T = Scalar;

  HeadGradient(Norm norm, L head) noexcept : norm_(std::move(norm)), head_(std::move(head)) {}

  [[nodiscard]] std::size_t vocabulary() const noexcept { return head_.outputs(); }

  /// logits [tokens x vocabulary] = head(norm(hidden)). Errc::bad_shape, Errc::out_of_memory.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& hidden, const MatrixView<T>& logits,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto normed = context.workspace().template take_matrix<T>(hidden.rows, hidden.columns);
    if (!normed) return normed.error();
    if (const Status done = norm_.forward(hidden, *normed, context); !done) return done;
    return head_.forward(as_const(*normed), logits, context);
  }

  /// dhidden += dL/dhidden for dlogits = dL/dlogits. Errors as forward().
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dlogits, const MatrixView<const T>& hidden,
                                const MatrixView<T>& dhidden, ExecutionContext<E>& context) noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto slopes = context.workspace().template take_matrix<T>(hidden.rows, hidden.columns);
    if (!slopes) return slopes.error();
    const Status done = head_.backward(dlogits, hidden, *slopes, Accumulate::overwrite, context);
    if (!done) return done;
    return norm_.backward(as_const(*slopes), hidden, dhidden, context);
  }

 private:
  Norm norm_;
  L head_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
