// SPDX-License-Identifier: Apache-2.0
#pragma once

// SoftmaxKl: the mean over tokens of KL(p || r) with p = softmax(target), r = softmax(y) along a row; dL/dy = (r - p) /
// N. FeatureKl, rows being hidden states, is the paper's second term; LogitsKl, rows being logits, is what the last
// window of the default minimizes beside the squared error. In nats.
//
//   KL = sum_k p_k ((t_k - max t) - (y_k - max y)) + log sum e^(y - max y) - log sum e^(t - max t)
//
// Two exponentials per element, four with the gradient.

#include <cmath>
#include <cstddef>

#include <cbq/loss/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {

struct SoftmaxKl {
  template <class T, Executor E = SerialExecutor>
  [[nodiscard]] double value(const MatrixView<const T>& y, const MatrixView<const T>& target,
                             const E& executor = {}) const noexcept {
    const double sum = losses::sum_rows(
        y.rows, executor, [&](std::size_t n) { return measure(row(y, n), row(target, n), y.columns).divergence; });
    return y.rows == 0 ? 0.0 : sum / static_cast<double>(y.rows);
  }

  template <class T, Executor E = SerialExecutor>
  double add_gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, double weight,
                      const MatrixView<T>& dy, const E& executor = {}) const noexcept {
    const double factor = weight / static_cast<double>(y.rows == 0 ? 1 : y.rows);
    const double sum = losses::sum_rows(y.rows, executor, [&](std::size_t n) {
      const T *const student = row(y, n), *const teacher = row(target, n);
      T* const out = row(dy, n);
      const Token<T> token = measure(student, teacher, y.columns);
      const auto of_y = static_cast<T>(factor / token.sum_y), of_t = static_cast<T>(factor / token.sum_target);
      losses::for_each_lane<T>(y.columns, [&]<class V>(std::size_t k, V) {
        const V r = xsimd::exp(losses::load<V>(student + k) - V(token.most_y)) * V(of_y);
        const V p = xsimd::exp(losses::load<V>(teacher + k) - V(token.most_target)) * V(of_t);
        losses::store(losses::load<V>(out + k) + (r - p), out + k);
      });
      return token.divergence;
    });
    return y.rows == 0 ? 0.0 : sum / static_cast<double>(y.rows);
  }

  template <class T, Executor E = SerialExecutor>
  double gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, const MatrixView<T>& dy,
                  const E& executor = {}) const noexcept {
    losses::fill_zero(dy);
    return add_gradient(y, target, 1.0, dy, executor);
  }

 private:
  /// Maxima, sums of exponentials and divergence of one row.
  template <class T>
  struct Token {
    T most_y = 0;
    T most_target = 0;
    double sum_y = 1;
    double sum_target = 1;
    double divergence = 0;
  };

  template <class T>
  [[nodiscard]] static Token<T> measure(const T* y, const T* target, std::size_t size) noexcept {
    Token<T> token;
    if (size == 0) return token;
    token.most_y = largest(y, size);
    token.most_target = largest(target, size);
    losses::RowSum<T> of_y, of_target, products;
    losses::for_each_lane<T>(size, [&]<class V>(std::size_t k, V) {
      const V a = losses::load<V>(y + k) - V(token.most_y), b = losses::load<V>(target + k) - V(token.most_target);
      const V p = xsimd::exp(b);
      of_y.add(xsimd::exp(a));
      of_target.add(p);
      products.add(p * (b - a));
    });
    token.sum_y = of_y.total();
    token.sum_target = of_target.total();
    token.divergence = products.total() / token.sum_target + std::log(token.sum_y) - std::log(token.sum_target);
    return token;
  }

  template <class T>
  [[nodiscard]] static T largest(const T* x, std::size_t size) noexcept {
    T most = x[0];
    for (std::size_t k = 1; k < size; ++k) most = x[k] > most ? x[k] : most;
    return most;
  }
};

/// Over hidden features.
using FeatureKl = SoftmaxKl;
/// Over the logits of the vocabulary.
using LogitsKl = SoftmaxKl;

static_assert(Loss<FeatureKl>);

}  // namespace CBQ_ABI
}  // namespace cbq
