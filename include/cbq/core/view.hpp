// SPDX-License-Identifier: Apache-2.0
#pragma once

// MatrixView<T>: a row-major matrix in memory that somebody else owns. A plain aggregate without member functions, so
// that it can be passed between files compiled with different flags. `stride` is in elements and at least `columns`.

#include <cstddef>
#include <type_traits>

#include <cbq/config.hpp>

namespace cbq {

template <class T>
struct MatrixView {
  T* data = nullptr;
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t stride = 0;  ///< elements from one row to the next
};

inline namespace CBQ_ABI {

/// A view of `rows` x `columns` elements that lie without gaps.
template <class T>
[[nodiscard]] constexpr MatrixView<T> matrix_view(T* data, std::size_t rows, std::size_t columns) noexcept {
  return {data, rows, columns, columns};
}

/// Pointer to the first element of row `index`; index < view.rows.
template <class T>
[[nodiscard]] constexpr T* row(const MatrixView<T>& view, std::size_t index) noexcept {
  return view.data + index * view.stride;
}

/// Rows [first, first + count) of the view; first + count <= view.rows.
template <class T>
[[nodiscard]] constexpr MatrixView<T> rows(const MatrixView<T>& view, std::size_t first, std::size_t count) noexcept {
  return {view.data + first * view.stride, count, view.columns, view.stride};
}

/// Columns [first, first + count) of the view; first + count <= view.columns.
template <class T>
[[nodiscard]] constexpr MatrixView<T> columns(const MatrixView<T>& view, std::size_t first,
                                              std::size_t count) noexcept {
  return {view.data + first, view.rows, count, view.stride};
}

/// The same view with read-only elements.
template <class T>
[[nodiscard]] constexpr MatrixView<const T> as_const(const MatrixView<T>& view) noexcept {
  return {view.data, view.rows, view.columns, view.stride};
}

}  // namespace CBQ_ABI
}  // namespace cbq
