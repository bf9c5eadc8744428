// SPDX-License-Identifier: Apache-2.0
#pragma once

// SquaredLoss: L = scale / N * sum_n ||y_n - t_n||^2 over N tokens, dL/dy = 2 scale (y - t) / N.
//
// scale 1 is the paper's and BRECQ's: sum over channels, mean over tokens. normalized() divides by the number of
// channels and the targets' variance, so that the loss is the fraction of the signal that is lost and learning rates
// and weights mean the same in every layer: the default, alone.

#include <cstddef>

#include <cbq/loss/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {

struct SquaredLoss {
  double scale = 1;

  /// For targets of `channels` channels and this variance(); a variance of 0 counts as 1.
  [[nodiscard]] static SquaredLoss normalized(double variance, std::size_t channels) noexcept {
    return {1 / ((variance > 0 ? variance : 1.0) * static_cast<double>(channels == 0 ? 1 : channels))};
  }

  template <class T, Executor E = SerialExecutor>
  [[nodiscard]] double value(const MatrixView<const T>& y, const MatrixView<const T>& target,
                             const E& executor = {}) const noexcept {
    return mean(y, executor, [&](std::size_t n) {
      const T *const a = row(y, n), *const b = row(target, n);
      losses::RowSum<T> sum;
      losses::for_each_lane<T>(y.columns, [&]<class V>(std::size_t k, V) {
        const V d = losses::load<V>(a + k) - losses::load<V>(b + k);
        sum.add(d * d);
      });
      return sum.total();
    });
  }

  template <class T, Executor E = SerialExecutor>
  double add_gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, double weight,
                      const MatrixView<T>& dy, const E& executor = {}) const noexcept {
    const auto factor = static_cast<T>(2 * weight * scale / static_cast<double>(y.rows == 0 ? 1 : y.rows));
    return mean(y, executor, [&](std::size_t n) {
      const T *const a = row(y, n), *const b = row(target, n);
      T* const out = row(dy, n);
      losses::RowSum<T> sum;
      losses::for_each_lane<T>(y.columns, [&]<class V>(std::size_t k, V) {
        const V d = losses::load<V>(a + k) - losses::load<V>(b + k);
        sum.add(d * d);
        losses::store(losses::load<V>(out + k) + V(factor) * d, out + k);
      });
      return sum.total();
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

static_assert(Loss<SquaredLoss>);

}  // namespace CBQ_ABI
}  // namespace cbq
