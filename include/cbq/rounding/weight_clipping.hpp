// SPDX-License-Identifier: Apache-2.0
#pragma once

// WeightClipping: nearest rounding whose range is the weights' own, shrunk by two learned strengths per group. Train it
// like any rounding and hand clipped_steps() to another method as its start, or keep its codes.
//
//   hi = sig(c) max(w), lo = sig(b) min(w)       c = b = 4 at the start: sig 0.982; 0 always lies in the range
//   affine     s = (hi - lo) / (2^b - 1), z = round(-lo / s)      symmetric  s = max(|hi|, |lo|) / (2^(b-1) - 1)
//   dL/dc = dL/ds max(w) sig'(c) / (2^b - 1),  dL/db = -dL/ds min(w) sig'(b) / (2^b - 1),  z constant;
//   symmetric: only the strength of the larger side moves
//
// Shao et al., OmniQuant (2023), learnable weight clipping. dL/ds as in learned_steps.hpp. Two parameters per group.

#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/rounding/nearest.hpp>
#include <cbq/rounding/offset_rounding.hpp>
#include <cbq/rounding/straight_through_rule.hpp>

namespace cbq {

struct WeightClippingOptions {
  double step_rate = 1e-2;  ///< of the strengths
  double offset_rate = 0;   ///< there are no offsets
  double reach = std::numeric_limits<double>::infinity();
  std::size_t rank = 0;
};

inline namespace CBQ_ABI {

/// The steps of WeightClipping, with the members of a StepTable.
template <class T>
class ClippingTable {
 public:
  /// Ranges of all groups. Errc::bad_argument (grid), bad_shape, not_finite, unsupported, out_of_memory.
  template <Executor E = SerialExecutor>
  [[nodiscard]] static Result<ClippingTable> search(const MatrixView<const T>& weights, const Grid& grid,
                                                    const E& executor = {}) noexcept {
    // Checks everything and says where; what it finds is not used.
    const Result<QuantizedMatrix> checked = round_nearest(weights, grid, MinMaxRange{}, executor);
    if (!checked) return checked.error();
    if (grid.granularity == Granularity::per_tensor) {
      return Error{Errc::unsupported, "strengths are trained per channel or per group", "Grid.granularity"};
    }
    ClippingTable table;
    table.grid_ = grid;
    table.rows_ = weights.rows;
    table.columns_ = weights.columns;
    auto memory = AlignedBuffer<Group>::allocate(table.size());
    if (!memory) return memory.error();
    table.ranges_ = std::move(*memory);
    for (AlignedBuffer<T>* buffer : {&table.strengths_, &table.gradients_}) {
      auto values = AlignedBuffer<T>::allocate(2 * table.size());
      if (!values) return values.error();
      *buffer = std::move(*values);
    }
    for (T& strength : table.strengths_) strength = T{4};
    for (T& gradient : table.gradients_) gradient = T{0};
    for (std::size_t n = 0; n < table.rows_; ++n) table.measure(n, row(weights, n));
    return table;
  }

  [[nodiscard]] const Grid& grid() const noexcept { return grid_; }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::size_t columns() const noexcept { return columns_; }
  [[nodiscard]] std::size_t groups() const noexcept { return group_count(grid_, columns_); }
  [[nodiscard]] std::size_t size() const noexcept { return rows_ * groups(); }
  [[nodiscard]] static constexpr std::size_t bytes_for(std::size_t rows, std::size_t columns,
                                                       const Grid& grid) noexcept {
    return rows * group_count(grid, columns) * (sizeof(Group) + 4 * sizeof(T));
  }

  [[nodiscard]] T step(std::size_t n, std::size_t group) const noexcept {
    const Group range = clipped(n * groups() + group);
    const T step = grid_.zero == Zero::affine ? (range.high - range.low) / levels()
                                              : (range.high > -range.low ? range.high : -range.low) / levels();
    return step > static_cast<T>(smallest_scale) ? step : static_cast<T>(smallest_scale);
  }
  [[nodiscard]] int zero(std::size_t n, std::size_t group) const noexcept {
    if (grid_.zero == Zero::symmetric) return symmetric_zero(grid_);
    const T zero = std::nearbyint(-clipped(n * groups() + group).low / step(n, group));
    return static_cast<int>(zero < static_cast<T>(max_code(grid_)) ? zero : static_cast<T>(max_code(grid_)));
  }

  void add_gradient(std::size_t n, std::size_t group, T ds, bool first) noexcept {
    const std::size_t i = n * groups() + group;
    const Group clip = clipped(i);
    const bool affine = grid_.zero == Zero::affine, above = clip.high > -clip.low;
    // sig' = sig (1 - sig), and sig * max is the clipped bound already.
    const T high = affine || above ? clip.high * (1 - sigmoid(strengths_[i])) / levels() : T{0};
    const T low = affine || !above ? clip.low * (1 - sigmoid(strengths_[size() + i])) / levels() : T{0};
    gradients_[i] = (first ? T{0} : gradients_[i]) + ds * high;
    gradients_[size() + i] = (first ? T{0} : gradients_[size() + i]) - ds * low;
  }
  void append(ParameterList<T>& list, double rate) noexcept {
    list.add({strengths_.data(), gradients_.data(), size(), rate});
    list.add({strengths_.data() + size(), gradients_.data() + size(), size(), rate});
  }
  [[nodiscard]] std::size_t trained_parameters() const noexcept { return 2 * size(); }

  /// Strengths stay in +-12: nothing is clipped away, and no slope vanishes for good.
  void project() noexcept {
    for (T& strength : strengths_) strength = strength < T{-12} ? T{-12} : strength > T{12} ? T{12} : strength;
  }

  void storable(const MatrixView<float>& scales) const noexcept {
    for (std::size_t n = 0; n < rows_; ++n) {
      for (std::size_t g = 0; g < groups(); ++g) row(scales, n)[g] = static_cast<float>(step(n, g));
    }
    make_storable(scales);
  }

 private:
  struct Group {
    T low = 0;
    T high = 0;
  };

  [[nodiscard]] static T sigmoid(T x) noexcept { return 1 / (1 + std::exp(-x)); }
  [[nodiscard]] T levels() const noexcept {
    return static_cast<T>(grid_.zero == Zero::affine ? max_code(grid_) : max_code(grid_) - symmetric_zero(grid_));
  }
  [[nodiscard]] Group clipped(std::size_t i) const noexcept {
    return {ranges_[i].low * sigmoid(strengths_[size() + i]), ranges_[i].high * sigmoid(strengths_[i])};
  }
  void measure(std::size_t n, const T* weights) noexcept {
    const std::size_t length = group_length(grid_, columns_);
    for (std::size_t g = 0; g < groups(); ++g) {
      Group range;
      for (std::size_t k = g * length; k < columns_ && k < (g + 1) * length; ++k) {
        range.low = weights[k] < range.low ? weights[k] : range.low;
        range.high = weights[k] > range.high ? weights[k] : range.high;
      }
      ranges_[n * groups() + g] = range;
    }
  }

  AlignedBuffer<Group> ranges_;
  AlignedBuffer<T> strengths_, gradients_;  ///< of the upper ends, then of the lower ones
  Grid grid_ = {.bits = 8};
  std::size_t rows_ = 0;
  std::size_t columns_ = 0;
};

template <class T>
using WeightClipping = OffsetRounding<T, StraightThroughRule<T>, NoOffsets<T>, WeightClippingOptions, ClippingTable<T>>;

/// The trained steps and zero points as the start of another method: create_with(weights, *clipped_steps(r), ...).
/// Errc::out_of_memory.
template <class T>
[[nodiscard]] Result<StepTable<T>> clipped_steps(const WeightClipping<T>& clipping) noexcept {
  const Result<QuantizedMatrix> matrix = clipping.harden();
  if (!matrix) return matrix.error();
  return StepTable<T>::from(*matrix);
}

static_assert(TrainableRounding<WeightClipping<float>>);

}  // namespace CBQ_ABI
}  // namespace cbq
