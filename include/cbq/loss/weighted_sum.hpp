// SPDX-License-Identifier: Apache-2.0
#pragma once

// WeightedSum: sum of w_i L_i over the same y and target, for example the paper's L2 + KL:
//
//   WeightedSum loss(SquaredLoss{}, FeatureKl{});
//   WeightedSum loss(std::array{1.0, 0.1}, SquaredLoss{}, FeatureKl{});
//
// A term of weight 0 is not computed.

#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

#include <cbq/loss/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <Loss... Terms>
class WeightedSum {
 public:
  /// All weights 1.
  explicit WeightedSum(const Terms&... terms) noexcept : terms_(terms...) { weights_.fill(1.0); }
  explicit WeightedSum(const std::array<double, sizeof...(Terms)>& weights, const Terms&... terms) noexcept
      : terms_(terms...), weights_(weights) {}

  template <class T, Executor E = SerialExecutor>
  [[nodiscard]] double value(const MatrixView<const T>& y, const MatrixView<const T>& target,
                             const E& executor = {}) const noexcept {
    return sum([&](const auto& term, double) { return term.value(y, target, executor); });
  }

  template <class T, Executor E = SerialExecutor>
  double add_gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, double weight,
                      const MatrixView<T>& dy, const E& executor = {}) const noexcept {
    return sum([&](const auto& term, double own) { return term.add_gradient(y, target, weight * own, dy, executor); });
  }

  template <class T, Executor E = SerialExecutor>
  double gradient(const MatrixView<const T>& y, const MatrixView<const T>& target, const MatrixView<T>& dy,
                  const E& executor = {}) const noexcept {
    losses::fill_zero(dy);
    return add_gradient(y, target, 1.0, dy, executor);
  }

 private:
  template <class Body>
  [[nodiscard]] double sum(const Body& body) const noexcept {
    double total = 0;
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      ((weights_[I] != 0 ? void(total += weights_[I] * body(std::get<I>(terms_), weights_[I])) : void()), ...);
    }(std::make_index_sequence<sizeof...(Terms)>{});
    return total;
  }

  std::tuple<Terms...> terms_;
  std::array<double, sizeof...(Terms)> weights_ = {};
};

}  // namespace CBQ_ABI
}  // namespace cbq
