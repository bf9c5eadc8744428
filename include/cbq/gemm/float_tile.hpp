// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the float matmul's driver asks of the kernels of one instruction set: tall tiles over float panels, narrow tiles
// that stream panels of any element type once for at most four rows, conversion of panels to float, and a 16 x 16
// transposition. Tall tiles add the products of one output in the order of the inputs, so K blocks, row tiles and
// column ranges do not change a bit of the result.

#include <cstddef>

#include <cbq/core/element.hpp>
#include <cbq/gemm/float_panels.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Arguments of one tile: c = initial + a * panels, with 16 columns per panel. All columns of the panels are written.
template <class T>
struct FloatTile {
  const float* a = nullptr;
  std::size_t a_stride = 0;  ///< floats from one row of a to the next
  const T* panels[2] = {nullptr, nullptr};
  std::size_t panel_stride = 0;  ///< elements from one input of a panel to the next
  std::size_t inputs = 0;
  const float* initial = nullptr;  ///< null: zeros; may be c
  std::size_t initial_stride = 0;
  float* c = nullptr;
  std::size_t c_stride = 0;
};

template <class T>
using FloatTileKernel = void (*)(const FloatTile<T>&) noexcept;

/// A 16 x 16 block `from` [16][from_stride] to its transpose `to` [16][to_stride].
struct FloatBlockTranspose {
  const float* from = nullptr;
  std::size_t from_stride = 0;
  float* to = nullptr;
  std::size_t to_stride = 0;
};

using FloatTransposeKernel = void (*)(const FloatBlockTranspose&) noexcept;

inline constexpr std::size_t float_tile_most_rows = 8;    ///< of any instruction set
inline constexpr std::size_t float_tile_most_panels = 2;  ///< of any instruction set
inline constexpr std::size_t float_narrow_rows = 4;       ///< up to so many rows, narrow tiles are used

/// Tall tiles of one instruction set; `tile[p - 1][r]` has p panels and r rows. `rows` is the tallest. A block of at
/// least float_narrow_rows + 1 rows is cut into ceil(n / rows) tiles of nearly equal height, so short tiles are never
/// asked for.
struct FloatTallKernels {
  std::size_t rows = 0;
  std::size_t panels = 0;
  FloatTileKernel<float> tile[float_tile_most_panels][float_tile_most_rows + 1] = {};
};

/// Kernels of one instruction set that read panels of T.
template <class T>
struct FloatNarrowKernels {
  /// By rows, one panel. Null above float_narrow_rows for floats, for which tall tiles are as good, and where registers
  /// are too few; with more than float_narrow_rows rows the products are added in the order of the inputs as in tall
  /// tiles.
  FloatTileKernel<T> tile[float_tile_most_rows + 1] = {};
  void (*decode)(const T* from, std::size_t count, float* to) noexcept = nullptr;  ///< count: a multiple of 16
};

}  // namespace CBQ_ABI
}  // namespace cbq
