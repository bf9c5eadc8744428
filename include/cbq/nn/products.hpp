// SPDX-License-Identifier: Apache-2.0
#pragma once

// The three products of a linear layer and its gradient, for float on the dispatched float matmul and for double, which
// only gradient tests use, as plain loops. The same bits for any executor.
//
//   forward  y = x W^T        backward  dx = dy W        dW = dy^T x

#include <algorithm>
#include <cstddef>
#include <span>

#include <cbq/gemm/float_matmul.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace products {

namespace plain {

struct Shape {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t inputs = 0;
};

[[nodiscard]] inline Status check(bool fits) noexcept {
  if (fits) return {};
  return Error{Errc::bad_shape, "the operands of a product do not fit"};
}

/// c (+)= sum over i of left(row, i) * right(i, column).
template <class Left, class Right, Executor E>
void multiply(const Shape& shape, const Left& left, const Right& right, const MatrixView<double>& c,
              const FloatMatmulOptions<E>& options) {
  options.executor.for_each_index(shape.rows, [&](std::size_t r) {
    for (std::size_t n = 0; n < shape.columns; ++n) {
      double sum = options.accumulate == Accumulate::add ? row(c, r)[n] : 0.0;
      for (std::size_t i = 0; i < shape.inputs; ++i) sum += left(r, i) * right(i, n);
      row(c, r)[n] = sum;
    }
  });
}

}  // namespace plain

/// y [M x N] (+)= x [M x K] w^T, w [N x K]. Errc::bad_shape.
template <Executor E>
[[nodiscard]] Status multiply_transposed(const MatrixView<const float>& x, const MatrixView<const float>& w,
                                         const MatrixView<float>& y, const FloatMatmulOptions<E>& options) {
  return float_matmul(x, transposed(w), y, NoEpilogue{}, options);
}
template <Executor E>
[[nodiscard]] Status multiply_transposed(const MatrixView<const double>& x, const MatrixView<const double>& w,
                                         const MatrixView<double>& y, const FloatMatmulOptions<E>& options) {
  const Status fits = plain::check(x.columns == w.columns && y.rows == x.rows && y.columns == w.rows);
  if (!fits) return fits;
  plain::multiply(
      {y.rows, y.columns, x.columns}, [&](std::size_t r, std::size_t i) { return row(x, r)[i]; },
      [&](std::size_t i, std::size_t n) { return row(w, n)[i]; }, y, options);
  return {};
}

/// dx [M x K] (+)= dy [M x N] w, w [N x K]. Errc::bad_shape.
template <Executor E>
[[nodiscard]] Status multiply(const MatrixView<const float>& dy, const MatrixView<const float>& w,
                              const MatrixView<float>& dx, const FloatMatmulOptions<E>& options) {
  return float_matmul(dy, row_major(w), dx, NoEpilogue{}, options);
}
template <Executor E>
[[nodiscard]] Status multiply(const MatrixView<const double>& dy, const MatrixView<const double>& w,
                              const MatrixView<double>& dx, const FloatMatmulOptions<E>& options) {
  const Status fits = plain::check(dy.columns == w.rows && dx.rows == dy.rows && dx.columns == w.columns);
  if (!fits) return fits;
  plain::multiply(
      {dx.rows, dx.columns, dy.columns}, [&](std::size_t r, std::size_t i) { return row(dy, r)[i]; },
      [&](std::size_t i, std::size_t n) { return row(w, i)[n]; }, dx, options);
  return {};
}

/// Elements of workspace for outer() with a dy of `rows` x `outputs`; doubles need none.
[[nodiscard]] constexpr Result<std::size_t> outer_workspace(std::size_t rows, std::size_t outputs) noexcept {
  return float_matmul_transposed_workspace(outputs, rows);
}

/// g [N x K] (+)= dy^T x, dy [M x N], x [M x K]. Floats need options.workspace. Errc::bad_shape, Errc::bad_argument.
template <Executor E>
[[nodiscard]] Status outer(const MatrixView<const float>& dy, const MatrixView<const float>& x,
                           const MatrixView<float>& g, const FloatMatmulOptions<E>& options) {
  return float_matmul_transposed(dy, row_major(x), g, NoEpilogue{}, options);
}
template <Executor E>
[[nodiscard]] Status outer(const MatrixView<const double>& dy, const MatrixView<const double>& x,
                           const MatrixView<double>& g, const FloatMatmulOptions<E>& options) {
  const Status fits = plain::check(dy.rows == x.rows && g.rows == dy.columns && g.columns == x.columns);
  if (!fits) return fits;
  plain::multiply(
      {g.rows, g.columns, dy.rows}, [&](std::size_t r, std::size_t i) { return row(dy, i)[r]; },
      [&](std::size_t i, std::size_t n) { return row(x, i)[n]; }, g, options);
  return {};
}

}  // namespace products
}  // namespace CBQ_ABI
}  // namespace cbq
