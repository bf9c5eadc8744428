// SPDX-License-Identifier: Apache-2.0
#pragma once

// RMSNorm and LayerNorm with a backward pass; gains and biases are constant. The backward pass recomputes a row's
// statistics from x, so nothing is kept but x. Sums run in double.
//
//   RMSNorm    r = (mean(x^2) + eps)^-1/2     dx = r (g - x r^2 mean(g x)),                        g = w dy
//   LayerNorm  r = (var(x) + eps)^-1/2        dx = r (g - mean(g) - x^ mean(g x^)), x^ = (x - mean(x)) r

#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

#include <cbq/nn/differentiable.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace norm_gradient {

[[nodiscard]] inline Status check(std::size_t width, std::size_t x, std::size_t y) noexcept {
  if (x == width && y == width) return {};
  return Error{Errc::bad_shape, "a norm's rows must have its width", "columns", ErrorText(x) << ", " << y, width};
}

/// Sum over i of term(i), in double with four sums, which compilers keep in registers.
template <class Term>
[[nodiscard]] double sum(std::size_t count, const Term& term) noexcept {
  double sums[4] = {};
  std::size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (std::size_t lane = 0; lane < 4; ++lane) sums[lane] += static_cast<double>(term(i + lane));
  }
  for (; i < count; ++i) sums[0] += static_cast<double>(term(i));
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace norm_gradient

template <class T>
class RmsNormGradient {
 public:
  using Scalar = T;
  /// `gain` must outlive the norm.
  RmsNormGradient(std::span<const T> gain, double epsilon) noexcept : gain_(gain), epsilon_(epsilon) {}

  [[nodiscard]] std::size_t width() const noexcept { return gain_.size(); }

  /// y = norm(x). Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& y,
                               ExecutionContext<E>& context) const noexcept {
    if (const Status fits = norm_gradient::check(width(), x.columns, y.columns); !fits) return fits;
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          const T* in = row(x, r);
          T* out = row(y, r);
          const T scale = inverse_root(in);
          for (std::size_t i = 0; i < width(); ++i) out[i] = in[i] * scale * gain_[i];
        },
        context);
    return {};
  }

  /// dx += dL/dx for dy = dL/dy. Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, const MatrixView<T>& dx,
                                ExecutionContext<E>& context) const noexcept {
    if (const Status fits = norm_gradient::check(width(), dy.columns, dx.columns); !fits) return fits;
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          const T* in = row(x, r);
          const T* gradient = row(dy, r);
          T* out = row(dx, r);
          const T scale = inverse_root(in);
          const double dot = norm_gradient::sum(width(), [&](std::size_t i) { return gradient[i] * gain_[i] * in[i]; });
          const T along = static_cast<T>(dot / static_cast<double>(width())) * scale * scale;
          for (std::size_t i = 0; i < width(); ++i) out[i] += scale * (gradient[i] * gain_[i] - in[i] * along);
        },
        context);
    return {};
  }

 private:
  [[nodiscard]] T inverse_root(const T* x) const noexcept {
    const double squares = norm_gradient::sum(width(), [&](std::size_t i) { return x[i] * x[i]; });
    return static_cast<T>(1.0 / std::sqrt(squares / static_cast<double>(width()) + epsilon_));
  }

  std::span<const T> gain_;
  double epsilon_;
};

template <class T>
class LayerNormGradient {
 public:
  using Scalar = T;
  /// `gain` and `bias`, of one length, must outlive the norm.
  LayerNormGradient(std::span<const T> gain, std::span<const T> bias, double epsilon) noexcept
      : gain_(gain), bias_(bias), epsilon_(epsilon) {}

  [[nodiscard]] std::size_t width() const noexcept { return gain_.size(); }

  /// y = norm(x). Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& y,
                               ExecutionContext<E>& context) const noexcept {
    if (const Status fits = norm_gradient::check(width(), x.columns, y.columns); !fits) return fits;
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          const T* in = row(x, r);
          T* out = row(y, r);
          const Statistics of = statistics(in);
          for (std::size_t i = 0; i < width(); ++i) out[i] = (in[i] - of.mean) * of.scale * gain_[i] + bias_[i];
        },
        context);
    return {};
  }

  /// dx += dL/dx for dy = dL/dy. Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, const MatrixView<T>& dx,
                                ExecutionContext<E>& context) const noexcept {
    if (const Status fits = norm_gradient::check(width(), dy.columns, dx.columns); !fits) return fits;
    const auto count = static_cast<double>(width());
    for_each_row(
        x.rows,
        [&](std::size_t r) {
          const T* in = row(x, r);
          const T* gradient = row(dy, r);
          T* out = row(dx, r);
          const Statistics of = statistics(in);
          const double sum = norm_gradient::sum(width(), [&](std::size_t i) { return gradient[i] * gain_[i]; });
          const double dot = norm_gradient::sum(
              width(), [&](std::size_t i) { return gradient[i] * gain_[i] * ((in[i] - of.mean) * of.scale); });
          const T mean = static_cast<T>(sum / count);
          const T along = static_cast<T>(dot / count);
          for (std::size_t i = 0; i < width(); ++i) {
            out[i] += of.scale * (gradient[i] * gain_[i] - mean - (in[i] - of.mean) * of.scale * along);
          }
        },
        context);
    return {};
  }

 private:
  struct Statistics {
    T mean;
    T scale;
  };
  [[nodiscard]] Statistics statistics(const T* x) const noexcept {
    const auto count = static_cast<double>(width());
    const double mean = norm_gradient::sum(width(), [&](std::size_t i) { return x[i]; }) / count;
    const double squares = norm_gradient::sum(width(), [&](std::size_t i) {
      const double difference = static_cast<double>(x[i]) - mean;
      return difference * difference;
    });
    return {static_cast<T>(mean), static_cast<T>(1.0 / std::sqrt(squares / count + epsilon_))};
  }

  std::span<const T> gain_;
  std::span<const T> bias_;
  double epsilon_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
