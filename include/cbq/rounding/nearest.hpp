// SPDX-License-Identifier: Apache-2.0
#pragma once

// Nearest rounding: each weight takes the code nearest to it on the grid that a RangeFinder chose for its group. The
// baseline of every other rounding method, needs no calibration data, and with MseRange the default of `cbq-llama
// quantize`. Scales come out storable (see quant/scale.hpp): packing and file formats with half scales round nothing
// further. Cost: the finder's passes plus one; the work is cut into blocks of rows, and results do not depend on the
// executor.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/quant/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {

namespace nearest {

inline constexpr std::size_t rows_per_task = 16;

/// What went wrong in one block of rows; plain data, written by one task each and read in order afterwards.
struct Report {
  bool out_of_memory = false;
  bool not_finite = false;
  std::size_t row = 0;
  std::size_t column = 0;
};

/// Error of the first block that has one, so that the message does not depend on the executor.
[[nodiscard]] inline Status first_error(const AlignedBuffer<Report>& reports) noexcept {
  for (const Report& report : reports) {
    if (report.out_of_memory) return Error{Errc::out_of_memory, "no memory for a row of weights as float"};
    if (report.not_finite) {
      return Error{Errc::not_finite, "a weight is NaN or beyond the range of float",
                   ErrorText("row ") << report.row << ", column " << report.column};
    }
  }
  return {};
}

/// Rows of any element type as float: float rows in place, others through memory of one row.
template <Element T>
class FloatRows {
 public:
  explicit FloatRows(const MatrixView<const T>& matrix) noexcept : matrix_(matrix) {}

  [[nodiscard]] bool prepare() noexcept {
    if constexpr (std::same_as<T, float>) return true;
    auto memory = AlignedBuffer<float>::allocate(matrix_.columns);
    if (memory) buffer_ = std::move(*memory);
    return memory.has_value();
  }
  [[nodiscard]] std::span<const float> operator()(std::size_t index) noexcept {
    const T* source = row(matrix_, index);
    if constexpr (std::same_as<T, float>) {
      return {source, matrix_.columns};
    } else {
      to_float_row(source, matrix_.columns, buffer_.data());
      return {buffer_.data(), matrix_.columns};
    }
  }

 private:
  MatrixView<const T> matrix_;
  AlignedBuffer<float> buffer_;
};

/// Calls body(n, row n as float, report) for all rows, in tasks of rows_per_task; stops a task at the first bad row.
template <Element T, Executor E, class Body>
[[nodiscard]] Status for_each_row(const MatrixView<const T>& matrix, const E& executor, const Body& body) noexcept {
  const std::size_t tasks = divide_up(matrix.rows, rows_per_task);
  auto reports = AlignedBuffer<Report>::allocate(tasks);
  if (!reports) return reports.error();
  for (Report& report : *reports) report = {};
  executor.for_each_index(tasks, [&](std::size_t task) {
    Report& report = (*reports)[task];
    FloatRows<T> floats(matrix);
    report.out_of_memory = !floats.prepare();
    const std::size_t first = task * rows_per_task;
    const std::size_t last = matrix.rows - first < rows_per_task ? matrix.rows : first + rows_per_task;
    for (std::size_t n = first; n < last && !report.out_of_memory && !report.not_finite; ++n)
      body(n, floats(n), report);
  });
  return first_error(*reports);
}

[[nodiscard]] inline bool check_finite(std::span<const float> x, std::size_t n, Report& report) noexcept {
  if (is_finite(max_abs(x))) return true;
  std::size_t column = 0;
  while (is_finite(x[column])) ++column;
  report = {.not_finite = true, .row = n, .column = column};
  return false;
}

/// Scales and zero points of one row, before normalization.
inline void store_grid(QuantizedMatrix& matrix, std::size_t n, std::size_t group, const CodeGrid& found) noexcept {
  row(matrix.scales(), n)[group] = found.scale;
  if (matrix.grid().zero == Zero::affine) row(matrix.zeros(), n)[group] = static_cast<std::uint8_t>(found.zero);
}

/// One scale for the whole matrix: gathers it as float, because finders want contiguous elements.
template <Element T, RangeFinder Finder>
[[nodiscard]] Status find_for_tensor(const MatrixView<const T>& weights, const Finder& finder,
                                     QuantizedMatrix& matrix) noexcept {
  auto gathered = AlignedBuffer<float>::allocate(weights.rows * weights.columns);
  if (!gathered) return gathered.error();
  const Status finite =
      for_each_row(weights, SerialExecutor{}, [&](std::size_t n, std::span<const float> x, Report& report) {
        if (!check_finite(x, n, report)) return;
        for (std::size_t k = 0; k < x.size(); ++k) (*gathered)[n * x.size() + k] = x[k];
      });
  if (!finite || weights.columns == 0) return finite;
  const CodeGrid found = finder.find({gathered->data(), gathered->size()}, matrix.grid(), ScalePrecision::half);
  for (std::size_t n = 0; n < weights.rows; ++n) store_grid(matrix, n, 0, found);
  return {};
}

}  // namespace nearest

/// Quantizes `weights` (outputs x inputs) onto `grid`: per tensor, per channel or per token (both: one scale per row)
/// or per group. Groups of zeros get the smallest scale of the matrix. Errc::bad_argument (grid), bad_shape, not_finite
/// (naming row and column), out_of_memory.
template <Element T, RangeFinder Finder = MseRange, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedMatrix> round_nearest(const MatrixView<const T>& weights, const Grid& grid,
                                                    const Finder& finder = {}, const E& executor = {}) noexcept {
  if (weights.stride < weights.columns) {
    return Error{Errc::bad_shape, "the stride is shorter than a row", "weights", weights.stride, weights.columns};
  }
  Result<QuantizedMatrix> result = QuantizedMatrix::allocate(weights.rows, weights.columns, grid);
  if (!result) return result;
  QuantizedMatrix& matrix = *result;
  const std::size_t length = group_length(grid, weights.columns);
  const auto segment = [length](std::span<const float> x, std::size_t group) {
    const std::size_t first = group * length;
    return x.subspan(first, x.size() - first < length ? x.size() - first : length);
  };
  const auto find_row = [&](std::size_t n, std::span<const float> x, nearest::Report& report) {
    if (!nearest::check_finite(x, n, report)) return;
    for (std::size_t g = 0; g < matrix.groups(); ++g) {
      nearest::store_grid(matrix, n, g, finder.find(segment(x, g), grid, ScalePrecision::half));
    }
  };
  const Status found = grid.granularity == Granularity::per_tensor ? nearest::find_for_tensor(weights, finder, matrix)
                                                                   : nearest::for_each_row(weights, executor, find_row);
  if (!found) return found.error();
  make_storable(matrix.scales());
  const QuantizedMatrixView view = matrix.view();
  const auto quantize = [&](std::size_t n, std::span<const float> x, nearest::Report&) {
    for (std::size_t g = 0; g < matrix.groups(); ++g) {
      const int zero = grid.zero == Zero::affine ? int{row(view.zeros, n)[g]} : symmetric_zero(grid);
      quantize_row(segment(x, g), {row(view.scales, n)[g], zero, max_code(grid)}, row(matrix.codes(), n) + g * length);
    }
  };
  if (const Status quantized = nearest::for_each_row(weights, executor, quantize); !quantized) return quantized.error();
  return result;
}

/// Relative squared error sum (w - w^)^2 / sum w^2 of a quantized matrix; 0 where both sums are 0. For reports.
/// Errc::bad_shape, Errc::bad_argument.
template <Element T>
[[nodiscard]] Result<double> quantization_error(const MatrixView<const T>& weights, const QuantizedMatrixView& matrix,
                                                const Grid& grid) noexcept {
  if (const Status valid = check_shape(matrix, grid); !valid) return valid.error();
  if (weights.rows != matrix.codes.rows || weights.columns != matrix.codes.columns ||
      weights.stride < weights.columns) {
    return Error{Errc::bad_shape, "the weights do not have the shape of the codes", "weights",
                 ErrorText(weights.rows) << " x " << weights.columns,
                 ErrorText(matrix.codes.rows) << " x " << matrix.codes.columns};
  }
  const std::size_t length = group_length(grid, weights.columns);
  double squared_error = 0;
  double squared_weights = 0;
  for (std::size_t n = 0; n < weights.rows; ++n) {
    for (std::size_t k = 0; k < weights.columns; ++k) {
      const int zero = grid.zero == Zero::affine ? int{row(matrix.zeros, n)[k / length]} : symmetric_zero(grid);
      const auto weight = static_cast<double>(to_float(row(weights, n)[k]));
      const double error =
          weight - static_cast<double>(row(matrix.scales, n)[k / length]) * (row(matrix.codes, n)[k] - zero);
      squared_error += error * error;
      squared_weights += weight * weight;
    }
  }
  return squared_error == 0 ? 0.0 : squared_error / squared_weights;
}

}  // namespace CBQ_ABI
}  // namespace cbq
