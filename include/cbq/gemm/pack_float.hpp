// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packs floating-point weights in one pass: each panel of 16 outputs is fitted, rounded to nearest and packed while it
// lies in the cache, tasks of whole panels over an executor. The bytes are those of round_nearest() and pack(), without
// a matrix of codes between them. Cost with MinMaxRange: one division and about ten more vector instructions for 4
// weights, several more for each scale, which binds it and not memory; with MseRange that of its search.
//
// Scales are found before the largest of the matrix is known, to 11 significant bits, which is what storing keeps of
// nearly all of them. Panels with a scale more than 2^28 below the largest are quantized again with what is stored.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/gemm/float_codes.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/packing.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

/// Weights and what they are quantized with, outputs x groups.
template <Element T>
struct FloatMatrix {
  MatrixView<const T> weights;
  Grid grid;
  MatrixView<float> scales;
  MatrixView<std::uint8_t> zeros;  ///< affine grids only
};

/// Codes in the memory of a panel; headers come later.
struct HeadlessRows : CodeRows {
  [[nodiscard]] static constexpr bool header(const Panel&, std::size_t, std::byte*) noexcept { return true; }
};

/// Calls body(group, its part of the row).
template <class Body>
void for_each_group(std::span<const float> x, const Grid& grid, const Body& body) noexcept {
  const std::size_t length = group_length(grid, x.size());
  for (std::size_t first = 0, group = 0; first < x.size(); first += length, ++group) {
    body(group, x.subspan(first, x.size() - first < length ? x.size() - first : length));
  }
}

/// Row n as float: in place, or converted into `memory`.
template <Element T>
[[nodiscard]] std::span<const float> float_row(const MatrixView<const T>& weights, std::size_t n,
                                               AlignedBuffer<float>& memory) noexcept {
  if constexpr (std::same_as<T, float>) {
    return {row(weights, n), weights.columns};
  } else {
    to_float_row(row(weights, n), weights.columns, memory.data());
    return {memory.data(), weights.columns};
  }
}

/// Quantizes row n with its scales and zero points; a scale of 0 stands for a group of zeros.
template <Element T>
void quantize_output(const FloatMatrix<T>& matrix, std::size_t n, std::span<const float> x,
                     std::uint8_t* codes) noexcept {
  const Grid& grid = matrix.grid;
  for_each_group(x, grid, [&](std::size_t group, std::span<const float> segment) {
    const float scale = row(matrix.scales, n)[group];
    const int zero = grid.zero == Zero::affine ? int{row(matrix.zeros, n)[group]} : symmetric_zero(grid);
    float_codes(segment, {scale == 0 ? 1.0f : scale, zero, max_code(grid)}, codes + (segment.data() - x.data()));
  });
}

/// Quantizes and packs one panel but for its headers; `fit(n, x)` chooses the scales of row n or returns false.
template <Element T, class Fit>
[[nodiscard]] bool pack_float_panel(const FloatMatrix<T>& matrix, const Panel& panel, const Fit& fit) noexcept {
  const std::size_t inputs = matrix.weights.columns;
  auto codes = AlignedBuffer<std::uint8_t>::allocate(panel.count * inputs);
  auto floats = AlignedBuffer<float>::allocate(std::same_as<T, float> ? 0 : inputs);
  if (!codes || !floats) return false;
  for (std::size_t o = 0; o < panel.count; ++o) {
    const std::span<const float> x = float_row(matrix.weights, panel.first + o, *floats);
    if (!fit(panel.first + o, x)) return false;
    quantize_output(matrix, panel.first + o, x, codes->data() + o * inputs);
  }
  const MatrixView<const std::uint8_t> view = as_const(matrix_view(codes->data(), panel.count, inputs));
  Panel local = panel;
  local.first = 0;  // rows of the buffer
  return pack_panel(HeadlessRows{CodeRows(view)}, local);
}

/// finder.find(), for a segment whose largest magnitude costs less than its ends when only that is wanted.
template <RangeFinder Finder>
[[nodiscard]] CodeGrid find_grid(const Finder& finder, std::span<const float> segment, const Grid& grid) noexcept {
  if constexpr (std::same_as<Finder, MinMaxRange>) {
    if (grid.zero == Zero::symmetric) {
      const float limit = __builtin_bit_cast(float, largest_magnitude(segment));
      return ranges::from_interval({-limit, limit}, grid, ScalePrecision::half);
    }
  }
  return finder.find(segment, grid, ScalePrecision::half);
}

/// Chooses scales and zero points of row n; false when it is not finite.
template <Element T, RangeFinder Finder>
[[nodiscard]] bool fit_output(const FloatMatrix<T>& matrix, const Finder& finder, std::size_t n,
                              std::span<const float> x) noexcept {
  if (largest_magnitude(x) >= 0x7f800000u) return false;
  for_each_group(x, matrix.grid, [&](std::size_t group, std::span<const float> segment) {
    const CodeGrid found = find_grid(finder, segment, matrix.grid);
    row(matrix.scales, n)[group] = found.scale;
    if (matrix.grid.zero == Zero::affine) row(matrix.zeros, n)[group] = static_cast<std::uint8_t>(found.zero);
  });
  return true;
}

/// Why a panel failed: the first weight that is not finite, else memory.
template <Element T>
[[nodiscard]] Error float_failure(const MatrixView<const T>& weights) noexcept {
  for (std::size_t n = 0; n < weights.rows; ++n) {
    for (std::size_t k = 0; k < weights.columns; ++k) {
      if (is_finite(to_float(row(weights, n)[k]))) continue;
      return Error{Errc::not_finite, "[cbq] pack_float: a weight is NaN or beyond the range of float",
                   ErrorText("row ") << n << ", column " << k};
    }
  }
  return Error{Errc::out_of_memory, "[cbq] pack_float: no memory for a panel of codes"};
}

/// Makes the scales of the panel's outputs storable; whether a scale other than 0 changed.
[[nodiscard]] inline bool store_exactly(const MatrixView<float>& scales, const Panel& panel, float largest) noexcept {
  bool changed = false;
  for (std::size_t n = panel.first; n < panel.first + panel.count; ++n) {
    for (std::size_t g = 0; g < scales.columns; ++g) {
      float& scale = row(scales, n)[g];
      const float stored = largest >= smallest_scale ? storable_scale(scale, scale_exponent(largest)) : 1.0f;
      changed = changed || (scale != 0 && stored != scale);
      scale = stored;
    }
  }
  return changed;
}

/// The second pass: headers, and the codes of panels whose scales storing changed.
template <Element T, Executor E>
[[nodiscard]] Result<PackedMatrix> finish_float(const FloatMatrix<T>& matrix, const PackedLayout& layout,
                                                std::span<std::byte> memory, const E& executor) noexcept {
  const float largest = largest_scale(as_const(matrix.scales));
  const float stored = largest >= smallest_scale ? largest : layout.groups != 0 && layout.outputs != 0 ? 1.0f : 0.0f;
  const float multiplier = scale_multiplier(__builtin_bit_cast(std::uint32_t, stored));
  const QuantizedMatrixView numbers{{}, as_const(matrix.scales), as_const(matrix.zeros)};
  const Parameters parameters{numbers, 1.0f / multiplier};
  const auto given = [](std::size_t, std::span<const float>) { return true; };
  const bool packed = for_each_panel(layout, matrix.grid, memory.data(), executor, [&](const Panel& panel) {
    const bool changed = store_exactly(matrix.scales, panel, largest);
    if (changed && !pack_float_panel(matrix, panel, given)) return false;
    for (std::size_t group = 0; group < layout.groups; ++group) {
      if (!parameters.header(panel, group, panel.data + group * layout.group_bytes)) return false;
    }
    return true;
  });
  if (!packed) return float_failure(matrix.weights);
  return PackedMatrix{memory.data(), layout, multiplier};
}

/// pack_float() for a grid known at run time.
template <Element T, RangeFinder Finder, Executor E>
[[nodiscard]] Result<PackedMatrix> pack_float_matrix(const MatrixView<const T>& weights, const Grid& grid,
                                                     std::span<std::byte> memory, const Finder& finder,
                                                     const E& executor) noexcept {
  const Result<PackedLayout> layout = layout_for(grid, weights.rows, weights.columns, memory.size());
  if (!layout) return layout.error();
  if (weights.stride < weights.columns) {
    return Error{Errc::bad_shape, "[cbq] pack_float: the stride is shorter than a row", "weights", weights.stride,
                 weights.columns};
  }
  const Result<std::size_t> count = checked_product(layout->outputs, layout->groups);
  if (!count) return count.error();
  auto scales = AlignedBuffer<float>::allocate(*count);
  if (!scales) return scales.error();
  auto zeros = AlignedBuffer<std::uint8_t>::allocate(grid.zero == Zero::affine ? *count : 0);
  if (!zeros) return zeros.error();
  const FloatMatrix<T> matrix{weights, grid, matrix_view(scales->data(), layout->outputs, layout->groups),
                              matrix_view(zeros->data(), layout->outputs, layout->groups)};
  const auto fit = [&](std::size_t n, std::span<const float> x) { return fit_output(matrix, finder, n, x); };
  const bool packed = for_each_panel(*layout, grid, memory.data(), executor,
                                     [&](const Panel& panel) { return pack_float_panel(matrix, panel, fit); });
  if (!packed) return float_failure(weights);
  return finish_float(matrix, *layout, memory, executor);
}

}  // namespace packing

/// Quantizes `weights` (outputs x inputs) to the nearest codes of S.weight with the ranges of `finder` and packs them
/// into `memory` of at least packed_size<S>() bytes. Errors: bad_shape, not_finite (naming row and column),
/// out_of_memory (a panel of codes per task, and the scales as float). The bytes do not depend on the executor.
template <Scheme S, Element T, RangeFinder Finder = MseRange, Executor E = SerialExecutor>
[[nodiscard]] Result<PackedWeightsView<S>> pack_float(const MatrixView<const T>& weights, std::span<std::byte> memory,
                                                      const Finder& finder = {}, const E& executor = {}) noexcept {
  const Result<PackedMatrix> packed =
      packing::pack_float_matrix(weights, checked<S>().weight, memory, finder, executor);
  if (!packed) return packed.error();
  return PackedWeightsView<S>{*packed};
}

}  // namespace CBQ_ABI
}  // namespace cbq
