// SPDX-License-Identifier: Apache-2.0
#pragma once

// GPTQ (Frantar et al., 2022), the baseline without training: columns are rounded one after the other and the error of
// each is made up for by the columns that follow, as far as the layer's inputs allow.
//
//   H = X^T X + damping mean(diag H) I,   H^-1 = U^T U, U upper      (U = R^-1 where H = R R^T, R upper)
//   column c:  e = (w_c - w^_c) / U_cc,   w_j -= e U_cj for all j > c
//
// Blocked: inside a block column by column, behind it once per block. Rows are independent, so tasks are 32 rows and no
// executor changes a bit. Order by falling H_cc (`act-order`) needs groups whose ranges are known beforehand. Ranges by
// any RangeFinder. K^3 operations once and N K^2 for the rows; K^2 doubles beside H. The K^3 are Eigen's: a host that
// compiles with OpenMP and wants no threads but its executor's calls Eigen::setNbThreads(1).

#include <Eigen/Cholesky>
#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/bad_alloc.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/rounding/input_moments.hpp>
#include <cbq/rounding/nearest.hpp>

namespace cbq {

enum class ColumnOrder : unsigned char {
  natural,
  by_activation,  ///< largest inputs first; takes GroupRanges::original
};

/// Which weights a group's scale and zero point come from; per channel always the original ones.
enum class GroupRanges : unsigned char {
  updated,   ///< as they are when the group's turn comes
  original,  ///< as they were ("static groups")
};

inline namespace CBQ_ABI {

template <RangeFinder Finder = MseRange>
struct GptqOptions {
  double damping = 0.01;  ///< share of the mean of H's diagonal; multiplied by 10 until H can be factorized
  ColumnOrder order = ColumnOrder::natural;
  GroupRanges ranges = GroupRanges::updated;
  std::size_t block = 128;  ///< columns; rounded up to whole groups
  Finder finder = {};
};

namespace gptq_detail {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

[[nodiscard]] inline Eigen::Index index(std::size_t value) noexcept {
  return static_cast<Eigen::Index>(value);
}

/// Order of the columns, which of them no input ever reaches, and U.
struct Factor {
  AlignedBuffer<std::size_t> order;
  AlignedBuffer<bool> dead;  ///< by column
  Matrix upper;              ///< by place in the order
};

/// R^-1 with H = R R^T, R upper: the Cholesky factor of H read backwards. False unless H is positive definite. A
/// template, as all that instantiates Eigen here, so that including this header costs no more than reading it.
template <std::same_as<Matrix> M>
[[nodiscard]] bool factorize(const M& hessian, M& upper) {
  const Eigen::Index size = hessian.rows();
  const Eigen::LLT<M> reversed(hessian.reverse());
  if (reversed.info() != Eigen::Success) return false;
  const M lower = reversed.matrixL();
  upper = lower.reverse().template triangularView<Eigen::Upper>().solve(M::Identity(size, size));
  return upper.allFinite();
}

template <std::same_as<InputMoments> Moments>
[[nodiscard]] Result<Factor> factor(const Moments& moments, double damping, ColumnOrder order) {
  const std::size_t size = moments.channels();
  Factor made;
  auto places = AlignedBuffer<std::size_t>::allocate(size);
  if (!places) return places.error();
  auto dead = AlignedBuffer<bool>::allocate(size);
  if (!dead) return dead.error();
  made.order = std::move(*places);
  made.dead = std::move(*dead);
  double mean = 0;
  for (std::size_t k = 0; k < size; ++k) {
    made.order[k] = k;
    made.dead[k] = !(moments(k, k) > 0);
    mean += (made.dead[k] ? 0.0 : moments(k, k)) / static_cast<double>(size);
  }
  mean = mean > 0 ? mean : 1;
  if (order == ColumnOrder::by_activation) {
    std::sort(made.order.begin(), made.order.end(), [&](std::size_t a, std::size_t b) {
      return moments(a, a) != moments(b, b) ? moments(a, a) > moments(b, b) : a < b;
    });
  }
  Matrix hessian(index(size), index(size));
  for (int attempt = 0; attempt<6; ++attempt, damping = damping> 0 ? damping * 10 : 1e-6) {
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = 0; j < size; ++j) {
        hessian(index(i), index(j)) = moments(made.order[i], made.order[j]);
      }
      hessian(index(i), index(i)) += damping * mean + (made.dead[made.order[i]] ? mean : 0.0);
    }
    if (factorize(hessian, made.upper)) return made;
  }
  return Error{Errc::bad_argument, "the moments of the inputs cannot be factorized, however damped", "InputMoments"};
}

/// What all rows share.
template <class T, RangeFinder Finder>
struct Job {
  MatrixView<const T> weights;
  const Factor* factor = nullptr;
  const GptqOptions<Finder>* options = nullptr;
  QuantizedMatrix* result = nullptr;
  std::size_t block = 0;
};

/// Up to 32 rows.
template <class T, RangeFinder Finder>
class Rows {
 public:
  static constexpr std::size_t per_task = 32;

  Rows(const Job<T, Finder>& job, std::size_t first, std::size_t count)
      : job_(job),
        grid_(job.result->grid()),
        length_(group_length(grid_, job.weights.columns)),
        first_(first),
        weights_(index(count), index(job.weights.columns)),
        errors_(index(count), index(job.block)),
        segment_(1, index(length_)) {
    for (std::size_t r = 0; r < count; ++r) {
      for (std::size_t c = 0; c < job.weights.columns; ++c) {
        const std::size_t column = job.factor->order[c];
        weights_(index(r), index(c)) =
            job.factor->dead[column] ? 0.0 : static_cast<double>(to_float(row(job.weights, first + r)[column]));
      }
    }
  }

  void round() {
    const auto columns = static_cast<std::size_t>(weights_.cols());
    if (fixed_ranges()) {
      for (std::size_t g = 0; g < job_.result->groups(); ++g) find_original(g);
    }
    for (std::size_t first = 0; first < columns; first += job_.block) {
      const std::size_t count = columns - first < job_.block ? columns - first : job_.block;
      for (std::size_t c = first; c < first + count; ++c) {
        if (!fixed_ranges() && c % length_ == 0) find_updated(c);
        round_column(c, first, first + count);
      }
      const Eigen::Index behind = index(columns - first - count);
      weights_.rightCols(behind).noalias() -=
          errors_.leftCols(index(count)) *
          job_.factor->upper.block(index(first), index(first + count), index(count), behind);
    }
  }

 private:
  [[nodiscard]] bool fixed_ranges() const noexcept {
    return job_.options->ranges == GroupRanges::original || grid_.granularity != Granularity::per_group;
  }

  void find_original(std::size_t group) {
    const std::size_t from = group * length_, rest = job_.weights.columns - from;
    const std::size_t size = rest < length_ ? rest : length_;
    for (Eigen::Index r = 0; r < weights_.rows(); ++r) {
      const T* const source = row(job_.weights, first_ + static_cast<std::size_t>(r)) + from;
      for (std::size_t k = 0; k < size; ++k)
        segment_(0, index(k)) = job_.factor->dead[from + k] ? 0.0f : to_float(source[k]);
      store(r, group, size);
    }
  }
  void find_updated(std::size_t from) {
    const std::size_t rest = static_cast<std::size_t>(weights_.cols()) - from;
    const std::size_t size = rest < length_ ? rest : length_;
    for (Eigen::Index r = 0; r < weights_.rows(); ++r) {
      for (std::size_t k = 0; k < size; ++k) segment_(0, index(k)) = static_cast<float>(weights_(r, index(from + k)));
      store(r, from / length_, size);
    }
  }
  void store(Eigen::Index r, std::size_t group, std::size_t size) {
    const CodeGrid found = job_.options->finder.find({segment_.data(), size}, grid_, ScalePrecision::half);
    nearest::store_grid(*job_.result, first_ + static_cast<std::size_t>(r), group, found);
  }

  /// Codes of the column at place c, and what they mean for the rest of its block, which ends at `end`.
  void round_column(std::size_t c, std::size_t block, std::size_t end) {
    const std::size_t column = job_.factor->order[c], group = column / length_;
    const double* const upper = job_.factor->upper.data() + c * static_cast<std::size_t>(weights_.cols());
    for (Eigen::Index r = 0; r < weights_.rows(); ++r) {
      const std::size_t n = first_ + static_cast<std::size_t>(r);
      const auto scale = static_cast<double>(row(job_.result->scales(), n)[group]);
      const int zero = grid_.zero == Zero::affine ? int{row(job_.result->zeros(), n)[group]} : symmetric_zero(grid_);
      double* const w = &weights_(r, 0);
      const double low = -zero, high = max_code(grid_) - zero;
      const double u = scale != 0 ? std::nearbyint(w[c] / scale) : 0.0;
      const double d = u < low ? low : u > high ? high : u;
      row(job_.result->codes(), n)[column] = static_cast<std::uint8_t>(static_cast<int>(d) + zero);
      const double error = (w[c] - scale * d) / upper[c];
      errors_(r, index(c - block)) = error;
      for (std::size_t j = c + 1; j < end; ++j) w[j] -= error * upper[j];
    }
  }

  const Job<T, Finder>& job_;
  Grid grid_;
  std::size_t length_;
  std::size_t first_;
  Matrix weights_;  ///< by place in the order
  Matrix errors_;
  Eigen::Matrix<float, 1, Eigen::Dynamic> segment_;
};

}  // namespace gptq_detail

/// Codes for `weights` (outputs x inputs) and inputs of these moments. Errc::bad_argument (grid; by_activation with
/// updated ranges; damping below 0; moments that cannot be factorized), bad_shape, not_finite, out_of_memory.
template <Element T, RangeFinder Finder = MseRange, Executor E = SerialExecutor>
[[nodiscard]] Result<QuantizedMatrix> gptq(const MatrixView<const T>& weights, const InputMoments& moments,
                                           const Grid& grid, const GptqOptions<Finder>& options = {},
                                           const E& executor = {}) {
  if (weights.columns != moments.channels() || weights.stride < weights.columns) {
    return Error{Errc::bad_shape, "the weights do not have the channels of the moments", "weights", weights.columns,
                 moments.channels()};
  }
  if (grid.granularity == Granularity::per_tensor) {
    return Error{Errc::unsupported, "gptq rounds per channel or per group", "Grid.granularity"};
  }
  const bool moving = grid.granularity == Granularity::per_group && options.ranges == GroupRanges::updated;
  if ((options.order == ColumnOrder::by_activation && moving) || !(options.damping >= 0) || options.block == 0) {
    return Error{Errc::bad_argument, "order by activation takes original ranges; damping >= 0; block > 0",
                 "GptqOptions"};
  }
  const auto check = [](std::size_t n, std::span<const float> x, nearest::Report& report) {
    (void)nearest::check_finite(x, n, report);
  };
  if (const Status finite = nearest::for_each_row(weights, executor, check); !finite) return finite.error();
  Result<QuantizedMatrix> result = QuantizedMatrix::allocate(weights.rows, weights.columns, grid);
  if (!result || weights.rows == 0 || weights.columns == 0) return result;
  const auto factor =
      bad_alloc_as_error("gptq", [&] { return gptq_detail::factor(moments, options.damping, options.order); });
  if (!factor) return factor.error();
  const std::size_t length = moving ? group_length(grid, weights.columns) : 1;
  using Rows = gptq_detail::Rows<T, Finder>;
  const gptq_detail::Job<T, Finder> job = {weights, &*factor, &options, &*result,
                                           divide_up(options.block, length) * length};
  const auto round = [&](std::size_t task) {
    const std::size_t first = task * Rows::per_task, rest = weights.rows - first;
    Rows(job, first, rest < Rows::per_task ? rest : Rows::per_task).round();
  };
  const Status rounded = for_each_index_or_error(executor, divide_up(weights.rows, Rows::per_task), "gptq", round);
  if (!rounded) return rounded.error();
  make_storable(result->scales());
  return result;
}

}  // namespace CBQ_ABI
}  // namespace cbq
