// SPDX-License-Identifier: Apache-2.0
#pragma once

// RotatedSite<A>: the site of a linear layer whose input is rotated (InputRotation) before site A sees it, with a
// backward pass: x^ = A(H x), dx = H A'(dx^), for H is symmetric. What an operator with that rotation computes at run
// time, bit for bit. Without rotation it is A.

#include <cstddef>
#include <cstring>
#include <utility>

#include <cbq/nn/differentiable.hpp>
#include <cbq/transform/hadamard.hpp>
#include <cbq/transform/input_rotation.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <DifferentiableActivation A>
class RotatedSite : public A {
 public:
  using Scalar = typename A::Scalar;

  /// The identity.
  RotatedSite() noexcept = default;
  explicit RotatedSite(A site, InputRotation rotation = InputRotation::none) noexcept
      : A(std::move(site)), rotation_(rotation) {}

  [[nodiscard]] InputRotation rotation() const noexcept { return rotation_; }
  [[nodiscard]] bool is_identity() const noexcept { return rotation_ == InputRotation::none && A::is_identity(); }

  /// x^ = A(H x); out may be x. Errors of A.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const Scalar>& x, const MatrixView<Scalar>& out,
                               ExecutionContext<E>& context) const noexcept {
    if (rotation_ == InputRotation::none) return A::forward(x, out, context);
    if (const Status done = rotate(x, out, context); !done || A::is_identity()) return done;
    return A::forward(as_const(out), out, context);
  }

  /// Replaces dL/dx^ by dL/dx. Errors of A, and Errc::out_of_memory.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<Scalar>& gradient, const MatrixView<const Scalar>& x,
                                const MatrixView<const Scalar>& rounded, ExecutionContext<E>& context) noexcept {
    if (rotation_ == InputRotation::none) return A::backward(gradient, x, rounded, context);
    if (!A::is_identity()) {
      const Workspace::Frame frame(context.workspace());
      const auto rotated = context.workspace().template take_matrix<Scalar>(x.rows, x.columns);
      if (!rotated) return rotated.error();
      if (const Status done = rotate(x, *rotated, context); !done) return done;
      if (const Status done = A::backward(gradient, as_const(*rotated), rounded, context); !done) return done;
    }
    return hadamard_rows(gradient, hadamard_size(gradient.columns), context.executor(), context.isa());
  }

 private:
  template <Executor E>
  [[nodiscard]] static Status rotate(const MatrixView<const Scalar>& x, const MatrixView<Scalar>& out,
                                     ExecutionContext<E>& context) noexcept {
    if (out.data != x.data) {
      for_each_row(
          x.rows, [&](std::size_t r) { std::memcpy(row(out, r), row(x, r), x.columns * sizeof(Scalar)); }, context);
    }
    return hadamard_rows(out, hadamard_size(out.columns), context.executor(), context.isa());
  }

  InputRotation rotation_ = InputRotation::none;
};

}  // namespace CBQ_ABI
}  // namespace cbq
