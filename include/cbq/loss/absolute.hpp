// SPDX-License-Identifier: Apache-2.0
#pragma once

// AbsoluteLoss: L = scale / N * sum_n |y_n - t_n|_1 over N tokens, dL/dy = scale sign(y - t) / N, 0 at a tie. With
// per_element() the mean over all elements, as WKVQuant trains with.

#include <cstddef>

#include <cbq/loss/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {

struct AbsoluteLoss {
  double scale = 1;

  [[nodiscard]] static AbsoluteLoss per_element(std::size_t channels) noexcept {
    return {1 / static_cast<double>(channels == 0 ? 1 : channels)};
  }

  template <class T, Executor E = SerialExecutor>
  [[nodiscard]] double value(const MatrixView<const T>& y, const MatrixView<const T>& target,
                             const E& executor = {}) const noexcept {
    return mean(y, executor, [&](std::size_t n) {
      const T *const a = row(y, n), *const b = row(target, n);
      losses::RowSum<T> sum;
      losses::for_each_lane<T>(y.columns, [&]<class V>(std::size_t k, V) {
        const V d = losses::load<V>(a + k) - losses::load<V>(b + k);
        sum.add(xsimd::abs(d));
      });
      return sum.total();
    });
  }

  template <class T, Executor E = SerialExecutor>
  double add_gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, double weight,
                      const MatrixView<T>& dy, const E& executor = {}) const noexcept {
    const auto factor = static_cast<T>(weight * scale / static_cast<double>(y.rows == 0 ? 1 : y.rows));
    return mean(y, executor, [&](std::size_t n) {
      const T *const a = row(y, n), *const b = row(target, n);
      T* const out = row(dy, n);
      double sum = 0;
      for (std::size_t k = 0; k < y.columns; ++k) {
        const T d = a[k] - b[k];
        sum += static_cast<double>(d < 0 ? -d : d);
        out[k] += d > 0 ? factor : d < 0 ? -factor : T{0};
      }
      return sum;
    });
  }

  template <class T, Executor E = SerialExecutor>
  double gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, const MatrixView<T>& dy,
                  const E& executor = {}) const noexcept {
    losses::fill_zero(dy);
    return add_gradient(y, target, 1.0, dy, executor);
  }

 private:
  template <class T, Executor E, class Body>
  [[nodiscard]] double mean(const MatrixView<const T>& y, const E& executor, const Body& body) const noexcept {
    const double sum = losses::sum_rows(y.rows, executor, body);
    return y.rows == 0 ? 0.0 : scale * sum / static_cast<double>(y.rows);
  }
};

static_assert(Loss<AbsoluteLoss>);

}  // namespace CBQ_ABI
}  // namespace cbq
