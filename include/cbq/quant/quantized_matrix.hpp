// SPDX-License-Identifier: Apache-2.0
#pragma once

// QuantizedMatrix: the codes, scales and zero points of one weight matrix, one byte per code. What every rounding
// method returns, what the packers read and what checkpoints are written from; four bits are packed only at the end.
//
//   w[n][k] = scale[n][g] * (code[n][k] - zero[n][g]),   g = k / group,   code in 0 .. 2^bits - 1
//
// Symmetric weights store no zero points: theirs is 2^(bits-1). Their scales have either sign, affine ones are
// positive. Cost: one byte per weight, 4 or 5 bytes per group.

#include <cstddef>
#include <cstdint>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/scale.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Whether `grid` describes codes: 2..8 bits, a group with per_group and only then. Errc::bad_argument.
[[nodiscard]] constexpr Status check_grid(const Grid& grid) noexcept {
  if (grid.bits < 2 || grid.bits > 8) {
    return Error{Errc::bad_argument, "a quantized operand has 2 to 8 bits", "Grid.bits", grid.bits, "2..8"};
  }
  if ((grid.granularity == Granularity::per_group) != (grid.group > 0) || grid.group < 0) {
    return Error{Errc::bad_argument, "a group length goes with per_group, and only with it", "Grid.group", grid.group};
  }
  return {};
}

/// Whether the shapes of `matrix` fit each other and `grid`; reads no element. Errc::bad_shape, Errc::bad_argument.
[[nodiscard]] constexpr Status check_shape(const QuantizedMatrixView& matrix, const Grid& grid) noexcept {
  if (const Status valid = check_grid(grid); !valid) return valid;
  const std::size_t groups = group_count(grid, matrix.codes.columns);
  const auto fits = [&](std::size_t rows, std::size_t columns, std::size_t stride) {
    return rows == matrix.codes.rows && columns == groups && stride >= columns;
  };
  if (matrix.codes.stride < matrix.codes.columns) {
    return Error{Errc::bad_shape, "the stride is shorter than a row", "codes", matrix.codes.stride,
                 matrix.codes.columns};
  }
  if (!fits(matrix.scales.rows, matrix.scales.columns, matrix.scales.stride)) {
    return Error{Errc::bad_shape, "the scales do not fit the codes", "scales",
                 ErrorText(matrix.scales.rows) << " x " << matrix.scales.columns,
                 ErrorText(matrix.codes.rows) << " x " << groups};
  }
  if (grid.zero == Zero::affine && !fits(matrix.zeros.rows, matrix.zeros.columns, matrix.zeros.stride)) {
    return Error{Errc::bad_shape, "the zero points do not fit the codes", "zeros",
                 ErrorText(matrix.zeros.rows) << " x " << matrix.zeros.columns,
                 ErrorText(matrix.codes.rows) << " x " << groups};
  }
  return {};
}

/// Whether every code and zero point lies on the grid and every scale is finite, storable (see scale.hpp) and, on
/// affine grids, positive; check_shape() must hold. For matrices from files and from other programs.
/// Errc::bad_argument, Errc::not_finite.
[[nodiscard]] constexpr Status check_values(const QuantizedMatrixView& matrix, const Grid& grid) noexcept {
  const int exponent = scale_exponent(largest_scale(matrix.scales));
  const auto at = [](const char* what, std::size_t r, std::size_t c) {
    return ErrorText(what) << " " << r << ", " << c;
  };
  for (std::size_t r = 0; r < matrix.codes.rows; ++r) {
    for (std::size_t c = 0; c < matrix.codes.columns; ++c) {
      const int code = row(matrix.codes, r)[c];
      if (code > max_code(grid)) {
        return Error{Errc::bad_argument, "a code lies outside the grid", at("code", r, c), code, max_code(grid)};
      }
    }
    for (std::size_t c = 0; c < matrix.scales.columns; ++c) {
      const float scale = row(matrix.scales, r)[c];
      if (!is_finite(scale)) return Error{Errc::not_finite, "a scale is not finite", at("scale", r, c)};
      if (storable_scale(scale, exponent) != scale) {
        return Error{Errc::bad_argument, "a scale is zero or not a half times the power of two of its matrix",
                     at("scale", r, c)};
      }
      if (grid.zero == Zero::affine && scale < 0) {
        return Error{Errc::bad_argument, "a scale of an affine grid is negative", at("scale", r, c)};
      }
      if (grid.zero == Zero::affine && int{row(matrix.zeros, r)[c]} > max_code(grid)) {
        return Error{Errc::bad_argument, "a zero point lies outside the grid", at("zero", r, c),
                     int{row(matrix.zeros, r)[c]}, max_code(grid)};
      }
    }
  }
  return {};
}

/// Owner of a QuantizedMatrixView; movable.
class QuantizedMatrix {
 public:
  QuantizedMatrix() noexcept = default;

  /// Uninitialized codes, scales and (affine only) zero points of an `outputs` x `inputs` matrix.
  /// Errc::bad_argument, Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<QuantizedMatrix> allocate(std::size_t outputs, std::size_t inputs,
                                                        const Grid& grid) noexcept {
    if (const Status valid = check_grid(grid); !valid) return valid.error();
    const std::size_t groups = group_count(grid, inputs);
    const Result<std::size_t> codes = checked_product(outputs, inputs);
    if (!codes) return codes.error();
    auto code_memory = AlignedBuffer<std::uint8_t>::allocate(*codes);
    if (!code_memory) return code_memory.error();
    auto scale_memory = AlignedBuffer<float>::allocate(outputs * groups);  // groups <= inputs: no overflow
    if (!scale_memory) return scale_memory.error();
    auto zero_memory = AlignedBuffer<std::uint8_t>::allocate(grid.zero == Zero::affine ? outputs * groups : 0);
    if (!zero_memory) return zero_memory.error();
    QuantizedMatrix matrix;
    matrix.codes_ = std::move(*code_memory);
    matrix.scales_ = std::move(*scale_memory);
    matrix.zeros_ = std::move(*zero_memory);
    matrix.grid_ = grid;
    matrix.outputs_ = outputs;
    matrix.inputs_ = inputs;
    return matrix;
  }

  [[nodiscard]] const Grid& grid() const noexcept { return grid_; }
  [[nodiscard]] std::size_t outputs() const noexcept { return outputs_; }
  [[nodiscard]] std::size_t inputs() const noexcept { return inputs_; }
  [[nodiscard]] std::size_t groups() const noexcept { return group_count(grid_, inputs_); }

  [[nodiscard]] QuantizedMatrixView view() const noexcept {
    const bool affine = grid_.zero == Zero::affine;
    return {matrix_view(codes_.data(), outputs_, inputs_), matrix_view(scales_.data(), outputs_, groups()),
            affine ? matrix_view(zeros_.data(), outputs_, groups()) : MatrixView<const std::uint8_t>{}};
  }
  [[nodiscard]] MatrixView<std::uint8_t> codes() noexcept { return matrix_view(codes_.data(), outputs_, inputs_); }
  [[nodiscard]] MatrixView<float> scales() noexcept { return matrix_view(scales_.data(), outputs_, groups()); }
  /// Empty for symmetric grids.
  [[nodiscard]] MatrixView<std::uint8_t> zeros() noexcept {
    if (grid_.zero == Zero::symmetric) return {};
    return matrix_view(zeros_.data(), outputs_, groups());
  }

 private:
  AlignedBuffer<std::uint8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::uint8_t> zeros_;
  Grid grid_ = {.bits = 8};
  std::size_t outputs_ = 0;
  std::size_t inputs_ = 0;
};

/// weights[n][k] = scale * (code - zero) as T: one rounding in float, one more where T is narrower. `weights` has the
/// shape of the codes. Errc::bad_shape, Errc::bad_argument.
template <Element T>
[[nodiscard]] Status dequantize(const QuantizedMatrixView& matrix, const Grid& grid,
                                const MatrixView<T>& weights) noexcept {
  if (const Status valid = check_shape(matrix, grid); !valid) return valid;
  if (weights.rows != matrix.codes.rows || weights.columns != matrix.codes.columns ||
      weights.stride < weights.columns) {
    return Error{Errc::bad_shape, "the result does not have the shape of the codes", "weights",
                 ErrorText(weights.rows) << " x " << weights.columns,
                 ErrorText(matrix.codes.rows) << " x " << matrix.codes.columns};
  }
  const std::size_t length = group_length(grid, weights.columns);
  for (std::size_t n = 0; n < weights.rows; ++n) {
    const std::uint8_t* codes = row(matrix.codes, n);
    T* out = row(weights, n);
    for (std::size_t g = 0, k = 0; k < weights.columns; ++g) {
      const float scale = row(matrix.scales, n)[g];
      const int zero = grid.zero == Zero::affine ? int{row(matrix.zeros, n)[g]} : symmetric_zero(grid);
      const std::size_t end = weights.columns - k < length ? weights.columns : k + length;
      for (; k < end; ++k) out[k] = from_float<T>(scale * static_cast<float>(codes[k] - zero));
    }
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
