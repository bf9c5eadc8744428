// SPDX-License-Identifier: Apache-2.0
#pragma once

// TrainableLinear: a linear layer whose weights are what a rounding method makes of float weights now, and whose
// backward pass collects the gradient for that method. One training step is
//
//   refresh -> forward, backward -> update_gradients -> optimizer over rounding().parameters() -> rounding().project()
//
// and at last harden(), which makes the codes and keeps them.

#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include <cbq/nn/differentiable.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <TrainableRounding R>
class TrainableLinear {
 public:
  using Scalar = typename R::Scalar;
  using T = Scalar;

  /// Copies `weights` [outputs x inputs] and `bias` (empty: none). Errors of R::create(), and Errc::out_of_memory.
  template <Executor E = SerialExecutor>
  [[nodiscard]] static Result<TrainableLinear> create(const MatrixView<const T>& weights, std::span<const T> bias,
                                                      const Grid& grid, const typename R::Options& options,
                                                      std::uint64_t seed, const E& executor = {}) {
    TrainableLinear linear;
    for (TapeMatrix<T>* matrix : {&linear.weights_, &linear.quantized_, &linear.gradient_}) {
      if (const Status taken = matrix->reshape(weights.rows, weights.columns); !taken) return taken.error();
    }
    if (const Status taken = linear.bias_.reshape(1, bias.size()); !taken) return taken.error();
    for (std::size_t r = 0; r < weights.rows; ++r) {
      std::memcpy(row(linear.weights_.view(), r), row(weights, r), weights.columns * sizeof(T));
    }
    if (!bias.empty()) std::memcpy(linear.bias_.view().data, bias.data(), bias.size_bytes());
    Result<R> rounding = R::create(linear.weights_.constant(), grid, options, seed, executor);
    if (!rounding) return rounding.error();
    linear.rounding_.emplace(*std::move(rounding));
    linear.clear_gradient();
    if (const Status done = linear.rounding_->soft_weights(linear.quantized_.view(), executor); !done)
      return done.error();
    return linear;
  }

  [[nodiscard]] std::size_t outputs() const noexcept { return weights_.view().rows; }
  [[nodiscard]] std::size_t inputs() const noexcept { return weights_.view().columns; }
  [[nodiscard]] R& rounding() noexcept { return *rounding_; }
  [[nodiscard]] const R& rounding() const noexcept { return *rounding_; }

  /// The weights of the next forward passes: those of training, or those that harden() would make.
  template <Executor E>
  [[nodiscard]] Status refresh(ExecutionContext<E>& context) noexcept {
    return rounding_->soft_weights(quantized_.view(), context.executor());
  }
  template <Executor E>
  [[nodiscard]] Status refresh_hard(ExecutionContext<E>& context) noexcept {
    return rounding_->hard_weights(quantized_.view(), context.executor());
  }

  /// Makes the final codes; forward passes use them from now on. Errc::out_of_memory.
  template <Executor E>
  [[nodiscard]] Status harden(ExecutionContext<E>& context) noexcept {
    Result<QuantizedMatrix> codes = rounding_->harden();
    if (!codes) return codes.error();
    codes_ = *std::move(codes);
    return refresh_hard(context);
  }
  /// The same with codes that harden() made of the same layer before. Errc::bad_shape.
  [[nodiscard]] Status harden(QuantizedMatrix codes) noexcept {
    const MatrixView<T> out = quantized_.view();
    if (codes.outputs() != out.rows || codes.inputs() != out.columns || codes.grid() != rounding_->grid()) {
      return Error{Errc::bad_shape, "not codes of this layer", "codes",
                   ErrorText(codes.outputs()) << " x " << codes.inputs(), ErrorText(out.rows) << " x " << out.columns};
    }
    codes_ = std::move(codes);
    const QuantizedMatrixView view = codes_.view();
    const Grid& grid = codes_.grid();
    const std::size_t length = group_length(grid, out.columns);
    for (std::size_t n = 0; n < out.rows; ++n) {
      for (std::size_t k = 0; k < out.columns; ++k) {
        const int zero = grid.zero == Zero::affine ? int{row(view.zeros, n)[k / length]} : symmetric_zero(grid);
        row(out, n)[k] =
            static_cast<T>(row(view.scales, n)[k / length]) * static_cast<T>(int{row(view.codes, n)[k]} - zero);
      }
    }
    return {};
  }
  /// What harden() made; empty before.
  [[nodiscard]] const QuantizedMatrix& codes() const noexcept { return codes_; }
  [[nodiscard]] QuantizedMatrix take_codes() noexcept { return std::move(codes_); }

  /// See DifferentiableLinear.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& y,
                               ExecutionContext<E>& context) const noexcept {
    const Status done = products::multiply_transposed(x, quantized_.constant(), y, product_options(context));
    if (done) add_bias(y, std::span<const T>(bias_.view().data, bias_.view().columns), context);
    return done;
  }
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, const MatrixView<T>& dx,
                                Accumulate accumulate, ExecutionContext<E>& context) noexcept {
    const Workspace::Frame frame(context.workspace());
    const Result<std::size_t> size = products::outer_workspace(dy.rows, dy.columns);
    if (!size) return size.error();
    const auto workspace = context.workspace().template take<float>(*size);
    if (!workspace) return workspace.error();
    auto options = product_options(context, Accumulate::add);
    options.workspace = *workspace;
    if (const Status done = products::outer(dy, x, gradient_.view(), options); !done) return done;
    return products::multiply(dy, quantized_.constant(), dx, product_options(context, accumulate));
  }

  /// Hands the gradient of all backward passes since the last call to the rounding, and clears it.
  template <Executor E>
  [[nodiscard]] Status update_gradients(const Penalty& penalty, ExecutionContext<E>& context) noexcept {
    const Status done = rounding_->backward(gradient_.constant(), penalty, context.executor());
    clear_gradient();
    return done;
  }

  [[nodiscard]] std::size_t bytes() const noexcept {
    return weights_.bytes() + quantized_.bytes() + gradient_.bytes() + bias_.bytes() + rounding_->bytes();
  }

 private:
  TrainableLinear() = default;
  void clear_gradient() noexcept {
    std::memset(gradient_.view().data, 0, gradient_.view().rows * gradient_.view().columns * sizeof(T));
  }

  TapeMatrix<T> weights_;
  TapeMatrix<T> quantized_;
  TapeMatrix<T> gradient_;
  TapeMatrix<T> bias_;
  QuantizedMatrix codes_;
  std::optional<R> rounding_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
