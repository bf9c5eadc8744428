// SPDX-License-Identifier: Apache-2.0
#pragma once

// What truncation and clipping of weights share: the loop over rows, their report, and the error that quantizing one
// row adds to the layer's output,
//
//   sum_j E[x_j^2] (w_j - Q(v_j))^2
//
// with Q the row's own min-max grid after the weights w became v, and E[x_j^2] the mean squares of the inputs (1 where
// no calibration was run). In double; a few nanoseconds per weight.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/range.hpp>

namespace cbq {

/// Weights that a step before quantization may change, and what they will be quantized to.
template <std::floating_point T>
struct TruncationTarget {
  MatrixView<T> weights = {};  ///< outputs x inputs
  Grid grid = {.bits = 4};     ///< per group: each group of a row has its own step; else the row has one
  std::span<const double> second_moments = {};  ///< of the inputs, or empty
};

/// What was changed.
struct Truncation {
  std::size_t rows = 0;      ///< rows with a changed weight
  std::size_t elements = 0;  ///< changed weights
  double error_before = 0;   ///< error of the changed rows when quantized as they were
  double error_after = 0;    ///< and as they are now
};

inline namespace CBQ_ABI {
namespace truncation {

inline constexpr std::size_t rows_per_task = 16;

/// Errc::bad_argument (grid), Errc::bad_shape.
template <std::floating_point T>
[[nodiscard]] Status check(const TruncationTarget<T>& target) noexcept {
  if (const Status valid = check_grid(target.grid); !valid) return valid;
  if (target.weights.stride < target.weights.columns) {
    return Error{Errc::bad_shape, "the stride is shorter than a row", "weights", target.weights.stride,
                 target.weights.columns};
  }
  if (!target.second_moments.empty() && target.second_moments.size() != target.weights.columns) {
    return Error{Errc::bad_shape, "there is one second moment for each input", "second moments",
                 target.second_moments.size(), target.weights.columns};
  }
  for (std::size_t r = 0; r < target.weights.rows; ++r) {
    for (std::size_t c = 0; c < target.weights.columns; ++c) {
      if (is_finite(static_cast<float>(row(target.weights, r)[c]))) continue;
      return Error{Errc::not_finite, "a weight is NaN or beyond the range of float",
                   ErrorText("row ") << r << ", column " << c};
    }
  }
  return {};
}

/// An interval that values are clamped to.
struct Limits {
  double low = 0;
  double high = 0;
};

[[nodiscard]] inline double clamp(double value, const Limits& limits) noexcept {
  return value < limits.low ? limits.low : value > limits.high ? limits.high : value;
}

/// Error of the segment [first, first + weights.size()) of a row whose weights are clamped to `limits`.
template <std::floating_point T>
[[nodiscard]] double segment_error(std::span<const T> weights, const TruncationTarget<T>& target, std::size_t first,
                                   const Limits& limits) noexcept {
  Limits range;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    const double value = clamp(static_cast<double>(weights[j]), limits);
    range.low = j == 0 || value < range.low ? value : range.low;
    range.high = j == 0 || value > range.high ? value : range.high;
  }
  const CodeGrid found = ranges::from_interval({static_cast<float>(range.low), static_cast<float>(range.high)},
                                               target.grid, ScalePrecision::full);
  const auto scale = static_cast<double>(found.scale);
  double error = 0;
  for (std::size_t j = 0; j < weights.size(); ++j) {
    const auto weight = static_cast<double>(weights[j]);
    double rounded = 0;
    if (scale > 0) {
      const double lowest = -found.zero, highest = found.max_code - found.zero;
      rounded = scale * clamp(std::nearbyint(clamp(weight, limits) / scale), {lowest, highest});
    }
    const double moment = target.second_moments.empty() ? 1.0 : target.second_moments[first + j];
    error += moment * (weight - rounded) * (weight - rounded);
  }
  return error;
}

/// Error of a whole row, its weights clamped to `limits`.
template <std::floating_point T>
[[nodiscard]] double row_error(std::span<const T> weights, const TruncationTarget<T>& target,
                               const Limits& limits) noexcept {
  const std::size_t length = group_length(target.grid, weights.size());
  double error = 0;
  for (std::size_t first = 0; first < weights.size(); first += length) {
    const std::size_t size = weights.size() - first < length ? weights.size() - first : length;
    error += segment_error(weights.subspan(first, size), target, first, limits);
  }
  return error;
}

/// Runs body(row, scratch, report) for all rows in tasks of rows_per_task; the reports of the tasks in order, summed.
template <std::floating_point T, Executor E, class Body>
[[nodiscard]] Result<Truncation> for_each_row(const MatrixView<T>& weights, const E& executor,
                                              const Body& body) noexcept {
  struct Report {
    Truncation done;
    bool out_of_memory = false;
  };
  const std::size_t tasks = divide_up(weights.rows, rows_per_task);
  Result<AlignedBuffer<Report>> reports = AlignedBuffer<Report>::allocate(tasks);
  if (!reports) return reports.error();
  executor.for_each_index(tasks, [&](std::size_t task) {
    Report& report = (*reports)[task];
    report = {};
    Result<AlignedBuffer<T>> scratch = AlignedBuffer<T>::allocate(weights.columns);
    report.out_of_memory = !scratch;
    if (!scratch) return;
    const std::size_t first = task * rows_per_task;
    const std::size_t last = std::min(weights.rows, first + rows_per_task);
    const std::span<T> span(scratch->data(), scratch->size());
    for (std::size_t r = first; r < last; ++r) body(r, span, report.done);
  });
  Truncation total;
  for (const Report& report : *reports) {
    if (report.out_of_memory) return Error{Errc::out_of_memory, "no memory for a row of weights"};
    total.rows += report.done.rows;
    total.elements += report.done.elements;
    total.error_before += report.done.error_before;
    total.error_after += report.done.error_after;
  }
  return total;
}

}  // namespace truncation
}  // namespace CBQ_ABI
}  // namespace cbq
