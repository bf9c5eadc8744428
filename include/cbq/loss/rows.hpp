// SPDX-License-Identifier: Apache-2.0
#pragma once

// How the losses go over matrices of tokens: rows are cut into at most 64 chunks by their number alone, each chunk adds
// its rows in double, chunks are added in order. The same bits for any executor; no memory.

#include <xsimd/xsimd.hpp>

#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/checked.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// A loss between what a quantized part computes, `y`, and what it should, `target`: tokens x channels, of one shape.
///   l.value(y, target[, executor])                  the loss
///   l.gradient(y, target, dy[, executor])           the loss; dL/dy overwrites dy
///   l.add_gradient(y, target, weight, dy[, executor])  the loss itself; adds weight * dL/dy to dy
/// All are means over tokens, 0 without any. A batch in pieces: weight = tokens of the piece / tokens of the batch.
template <class L>
concept Loss = requires(const L& loss, const MatrixView<const float>& y, const MatrixView<float>& dy,
                        const SerialExecutor& executor) {
  { loss.value(y, y, executor) } noexcept -> std::same_as<double>;
  { loss.gradient(y, y, dy, executor) } noexcept -> std::same_as<double>;
  { loss.add_gradient(y, y, 1.0, dy, executor) } noexcept -> std::same_as<double>;
};

namespace losses {

inline constexpr std::size_t most_chunks = 64;

/// Sum of body(row) over all rows.
template <Executor E, class Body>
[[nodiscard]] double sum_rows(std::size_t rows, const E& executor, const Body& body) noexcept {
  const std::size_t chunk = divide_up(rows, most_chunks);
  if (chunk == 0) return 0;
  const std::size_t chunks = divide_up(rows, chunk);
  std::array<double, most_chunks> sums = {};
  executor.for_each_index(chunks, [&](std::size_t c) {
    double sum = 0;
    for (std::size_t n = c * chunk; n < rows && n < (c + 1) * chunk; ++n) sum += body(n);
    sums[c] = sum;
  });
  double total = 0;
  for (std::size_t c = 0; c < chunks; ++c) total += sums[c];
  return total;
}

/// Calls body(i, tag) for every i in steps of the register width and then one by one: `tag` is a batch or a T.
template <class T, class Body>
void for_each_lane(std::size_t size, Body&& body) noexcept {
  using Lanes = xsimd::batch<T>;
  std::size_t i = 0;
  for (; size - i >= Lanes::size; i += Lanes::size) body(i, Lanes{});
  for (; i < size; ++i) body(i, T{});
}

template <class V, class T>
[[nodiscard]] V load(const T* from) noexcept {
  if constexpr (std::same_as<V, T>) {
    return *from;
  } else {
    return V::load_unaligned(from);
  }
}
template <class V, class T>
void store(const V& value, T* to) noexcept {
  if constexpr (std::same_as<V, T>) {
    *to = value;
  } else {
    value.store_unaligned(to);
  }
}

/// A sum over a row, in registers and a rest.
template <class T>
struct RowSum {
  xsimd::batch<T> lanes = xsimd::batch<T>(T{0});
  T rest = 0;
  void add(const xsimd::batch<T>& x) noexcept { lanes += x; }
  void add(const T& x) noexcept { rest += x; }
  [[nodiscard]] double total() const noexcept { return static_cast<double>(xsimd::reduce_add(lanes) + rest); }
};

template <class T>
void fill_zero(const MatrixView<T>& matrix) noexcept {
  for (std::size_t n = 0; n < matrix.rows; ++n) {
    for (std::size_t k = 0; k < matrix.columns; ++k) row(matrix, n)[k] = T{0};
  }
}

}  // namespace losses

/// The mean square of target's elements around the mean of their token: what SquaredLoss is divided by. 0 without any.
template <class T, Executor E = SerialExecutor>
[[nodiscard]] double variance(const MatrixView<const T>& target, const E& executor = {}) noexcept {
  const auto count = static_cast<double>(target.columns);
  if (target.rows == 0 || target.columns == 0) return 0;
  const double sum = losses::sum_rows(target.rows, executor, [&](std::size_t n) {
    const T* const x = row(target, n);
    double mean = 0;
    for (std::size_t k = 0; k < target.columns; ++k) mean += static_cast<double>(x[k]);
    mean /= count;
    double squares = 0;
    for (std::size_t k = 0; k < target.columns; ++k) {
      const double d = static_cast<double>(x[k]) - mean;
      squares += d * d;
    }
    return squares;
  });
  return sum / (static_cast<double>(target.rows) * count);
}

}  // namespace CBQ_ABI
}  // namespace cbq
