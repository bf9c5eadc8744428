// SPDX-License-Identifier: Apache-2.0
#pragma once

// A linear layer whose weights are trained themselves: what gradients are checked with.

#include <cstddef>
#include <vector>

#include <cbq/nn/differentiable.hpp>

namespace support {

template <class T>
class TrainedLinear {
 public:
  using Scalar = T;
  TrainedLinear(std::size_t outputs, std::size_t inputs, const std::vector<float>& initial,
                const std::vector<float>& bias)
      : weights(initial.begin(), initial.end()),
        gradient(initial.size(), T(0)),
        bias_(bias.begin(), bias.end()),
        outputs_(outputs),
        inputs_(inputs) {}

  [[nodiscard]] std::size_t outputs() const { return outputs_; }
  [[nodiscard]] std::size_t inputs() const { return inputs_; }

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const T>& x, const cbq::MatrixView<T>& y,
                                    cbq::ExecutionContext<E>& context) const {
    const auto w = cbq::matrix_view<const T>(weights.data(), outputs_, inputs_);
    const cbq::Status done = cbq::products::multiply_transposed(x, w, y, cbq::product_options(context));
    if (done) cbq::add_bias(y, std::span<const T>(bias_), context);
    return done;
  }

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const T>& dy, const cbq::MatrixView<const T>& x,
                                     const cbq::MatrixView<T>& dx, cbq::Accumulate accumulate,
                                     cbq::ExecutionContext<E>& context) {
    const cbq::Workspace::Frame frame(context.workspace());
    auto options = cbq::product_options(context, cbq::Accumulate::add);
    const auto workspace =
        context.workspace().template take<float>(*cbq::products::outer_workspace(dy.rows, dy.columns));
    if (!workspace) return workspace.error();
    options.workspace = *workspace;
    const auto g = cbq::matrix_view(gradient.data(), outputs_, inputs_);
    if (const cbq::Status done = cbq::products::outer(dy, x, g, options); !done) return done;
    const auto w = cbq::matrix_view<const T>(weights.data(), outputs_, inputs_);
    return cbq::products::multiply(dy, w, dx, cbq::product_options(context, accumulate));
  }

  std::vector<T> weights;
  std::vector<T> gradient;

 private:
  std::vector<T> bias_;
  std::size_t outputs_;
  std::size_t inputs_;
};

static_assert(cbq::DifferentiableLinear<TrainedLinear<double>>);

}  // namespace support
