// SPDX-License-Identifier: Apache-2.0
#pragma once

// StepTable: the steps (scales) of one weight matrix while they are trained, one per output and group.
//
//   s = s0 e^rho,   dL/drho = s dL/ds       rho = 0 at the start, |rho| <= 4
//
// A step keeps its sign (symmetric grids use both, see quant/range.hpp) and can never reach zero. Zero points are
// constants. Logarithms because one learning rate then fits rows of any magnitude. Cost: an exponential per group and
// pass; three scalars and a byte per group.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/rounding/nearest.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class T>
class StepTable {
 public:
  /// Steps and zero points of `start`, which must be valid. Errc::unsupported (one scale per tensor), out_of_memory.
  [[nodiscard]] static Result<StepTable> from(const QuantizedMatrix& start) noexcept {
    if (start.grid().granularity == Granularity::per_tensor) {
      return Error{Errc::unsupported, "steps are trained per channel or per group", "Grid.granularity"};
    }
    StepTable table;
    table.grid_ = start.grid();
    table.rows_ = start.outputs();
    table.columns_ = start.inputs();
    const std::size_t size = table.size();
    for (AlignedBuffer<T>* buffer : {&table.starts_, &table.logs_, &table.gradients_}) {
      auto memory = AlignedBuffer<T>::allocate(size);
      if (!memory) return memory.error();
      *buffer = std::move(*memory);
    }
    auto zeros = AlignedBuffer<std::uint8_t>::allocate(size);
    if (!zeros) return zeros.error();
    table.zeros_ = std::move(*zeros);
    const bool affine = table.grid_.zero == Zero::affine;
    for (std::size_t i = 0; i < size; ++i) {
      table.starts_[i] = static_cast<T>(start.view().scales.data[i]);
      table.zeros_[i] = affine ? start.view().zeros.data[i] : static_cast<std::uint8_t>(symmetric_zero(table.grid_));
      table.logs_[i] = table.gradients_[i] = T{0};
    }
    return table;
  }

  /// Steps of least squared error. Errors of round_nearest() and from().
  template <Executor E = SerialExecutor>
  [[nodiscard]] static Result<StepTable> search(const MatrixView<const T>& weights, const Grid& grid,
                                                const E& executor = {}) noexcept {
    const Result<QuantizedMatrix> start = round_nearest(weights, grid, MseRange{}, executor);
    if (!start) return start.error();
    return from(*start);
  }

  [[nodiscard]] const Grid& grid() const noexcept { return grid_; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t columns() const noexcept { return columns_; }
  [[nodiscard]] std::size_t groups() const noexcept { return group_count(grid_, columns_); }
  [[nodiscard]] std::size_t size() const noexcept { return rows_ * groups(); }
  [[nodiscard]] static constexpr std::size_t bytes_for(std::size_t rows, std::size_t columns,
                                                       const Grid& grid) noexcept {
    return rows * group_count(grid, columns) * (3 * sizeof(T) + 1);
  }

  [[nodiscard]] T step(std::size_t n, std::size_t group) const noexcept {
    const std::size_t i = n * groups() + group;
    return starts_[i] * std::exp(logs_[i]);
  }
  [[nodiscard]] int zero(std::size_t n, std::size_t group) const noexcept { return zeros_[n * groups() + group]; }
  /// Adds dL/ds of a part of a group to the group's gradient, or starts it with the first part.
  void add_gradient(std::size_t n, std::size_t group, T ds, bool first) noexcept {
    T& gradient = gradients_[n * groups() + group];
    gradient = (first ? T{0} : gradient) + ds * step(n, group);
  }
  void append(ParameterList<T>& list, double rate) noexcept {
    list.add({logs_.data(), gradients_.data(), logs_.size(), rate});
  }
  [[nodiscard]] std::size_t trained_parameters() const noexcept { return size(); }

  void project() noexcept {
    for (T& log : logs_) log = log < T{-4} ? T{-4} : log > T{4} ? T{4} : log;
  }

  /// The steps as packed weights store them (see quant/scale.hpp), at most 2^-12 from the trained ones unless 2^28
  /// smaller than the largest. `scales`: rows x groups.
  void storable(const MatrixView<float>& scales) const noexcept {
    for (std::size_t n = 0; n < rows_; ++n) {
      for (std::size_t g = 0; g < groups(); ++g) row(scales, n)[g] = static_cast<float>(step(n, g));
    }
    make_storable(scales);
  }

 private:
  AlignedBuffer<T> starts_, logs_, gradients_;
  AlignedBuffer<std::uint8_t> zeros_;
  Grid grid_ = {.bits = 8};
  std::size_t rows_ = 0;
  std::size_t columns_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
