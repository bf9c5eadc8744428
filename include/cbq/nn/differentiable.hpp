// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a transformer block is made of while it is reconstructed: linear layers and the quantizers of their inputs, with
// a backward pass. Scalars are float; gradient tests use double. DenseGradient is the linear layer whose weights stay
// as they are: the teacher's, and the head's.

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>

#include <cbq/core/context.hpp>
#include <cbq/nn/products.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// y = x W^T + bias and its gradient. `backward` gets dy = dL/dy and the x of the forward pass, writes or adds
/// dx = dL/dx, and adds dL/dW to what the operator keeps of it, if it is trained.
template <class L>
concept DifferentiableLinear =
    std::movable<L> &&
    requires(L& op, const L& constant, const MatrixView<const typename L::Scalar>& in,
             const MatrixView<typename L::Scalar>& out, Accumulate accumulate, ExecutionContext<>& context) {
      { constant.outputs() } -> std::same_as<std::size_t>;
      { constant.inputs() } -> std::same_as<std::size_t>;
      { constant.forward(in, out, context) } -> std::same_as<Status>;
      { op.backward(in, in, out, accumulate, context) } -> std::same_as<Status>;
    };

/// What happens to the input of linear layers: x^ = site(x), of the same shape; x^ may be x. Where is_identity(),
/// neither call is made. `backward` gets dL/dx^, x and x^ and replaces dL/dx^ by dL/dx in place.
template <class A>
concept DifferentiableActivation =
    std::movable<A> && requires(A& site, const A& constant, const MatrixView<const typename A::Scalar>& in,
                                const MatrixView<typename A::Scalar>& out, ExecutionContext<>& context) {
      { constant.is_identity() } -> std::same_as<bool>;
      { constant.forward(in, out, context) } -> std::same_as<Status>;
      { site.backward(out, in, in, context) } -> std::same_as<Status>;
    };

/// A matrix that a forward pass leaves for the backward pass; its memory is kept from one step to the next.
template <class T>
class TapeMatrix {
 public:
  /// Uninitialized; Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] Status reshape(std::size_t rows, std::size_t columns) noexcept {
    const Result<std::size_t> size = checked_product(rows, columns);
    if (!size) return size.error();
    if (*size > memory_.size()) {
      Result<AlignedBuffer<T>> memory = AlignedBuffer<T>::allocate(*size);
      if (!memory) return memory.error();
      memory_ = *std::move(memory);
    }
    view_ = matrix_view(memory_.data(), rows, columns);
    return {};
  }
  [[nodiscard]] const MatrixView<T>& view() const noexcept { return view_; }
  [[nodiscard]] MatrixView<const T> constant() const noexcept { return as_const(view_); }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size() * sizeof(T); }

 private:
  AlignedBuffer<T> memory_;
  MatrixView<T> view_ = {};
};

/// The options of float_matmul() for a context.
template <Executor E>
[[nodiscard]] FloatMatmulOptions<E> product_options(ExecutionContext<E>& context,
                                                    Accumulate accumulate = Accumulate::overwrite) noexcept {
  FloatMatmulOptions<E> options{.executor = context.executor(), .cap = context.isa()};
  options.accumulate = accumulate;
  return options;
}

/// Calls task(row index) for every row.
template <class Task, Executor E>
void for_each_row(std::size_t count, const Task& task, ExecutionContext<E>& context) noexcept {
  for_each_row_block(context.executor(), count, [&](const RowBlock& block) {
    for (std::size_t r = block.first; r < block.first + block.count; ++r) task(r);
  });
}

/// Adds `bias` to every row; an empty bias adds nothing.
template <class T, Executor E>
void add_bias(const MatrixView<T>& y, std::span<const T> bias, ExecutionContext<E>& context) noexcept {
  if (bias.empty()) return;
  for_each_row(
      y.rows,
      [&](std::size_t r) {
        T* values = row(y, r);
        for (std::size_t i = 0; i < y.columns; ++i) values[i] += bias[i];
      },
      context);
}

/// A linear layer with constant weights, which it does not own.
template <class T>
class DenseGradient {
 public:
  using Scalar = T;
  explicit DenseGradient(const MatrixView<const T>& weights, std::span<const T> bias = {}) noexcept
      : weights_(weights), bias_(bias) {}

  [[nodiscard]] std::size_t outputs() const noexcept { return weights_.rows; }
  [[nodiscard]] std::size_t inputs() const noexcept { return weights_.columns; }

  /// See DifferentiableLinear.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& y,
                               ExecutionContext<E>& context) const noexcept {
    const Status done = products::multiply_transposed(x, weights_, y, product_options(context));
    if (done) add_bias(y, bias_, context);
    return done;
  }
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>&, const MatrixView<T>& dx,
                                Accumulate accumulate, ExecutionContext<E>& context) const noexcept {
    return products::multiply(dy, weights_, dx, product_options(context, accumulate));
  }

 private:
  MatrixView<const T> weights_;
  std::span<const T> bias_;
};

static_assert(DifferentiableLinear<DenseGradient<float>> && DifferentiableLinear<DenseGradient<double>>);

}  // namespace CBQ_ABI
}  // namespace cbq
