// SPDX-License-Identifier: Apache-2.0
#pragma once

// OffsetRounding: a trainable rounding from two parts, a rule that says which code a weight gets with an offset, and a
// place for the offsets. straight_through, ada, lora and learned_steps are its four uses; the rule of a method of your
// own has the members that straight_through_rule.hpp explains.
//
// Work is cut into tasks of 16 rows (128 with low-rank offsets) and tiles of 4 x 256 weights. Passes over the weights:
// one forward; one backward, two while a compensation loss is weighed against the reconstruction's gradient.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/rounding/offsets.hpp>
#include <cbq/rounding/segment_loops.hpp>
#include <cbq/rounding/step_table.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// `Steps` is a StepTable, or what has its members. `Rule` is made from `OptionsOf`, which has at least step_rate,
/// offset_rate and rank (0: dense or none).
template <class T, class Rule, class Offsets, class OptionsOf, class Steps = StepTable<T>>
class OffsetRounding {
 public:
  using Scalar = T;
  using Options = OptionsOf;

  /// Steps of least squared error, offsets of zero: the start is nearest rounding. `seed` is for offsets of low rank.
  /// Errc::bad_argument (grid, rank), bad_shape, not_finite (naming row and column), unsupported (one scale per
  /// tensor), out_of_memory.
  template <Executor E = SerialExecutor>
  [[nodiscard]] static Result<OffsetRounding> create(const MatrixView<const T>& weights, const Grid& grid,
                                                     const Options& options, std::uint64_t seed,
                                                     const E& executor = {}) noexcept {
    Result<Steps> steps = Steps::search(weights, grid, executor);
    if (!steps) return steps.error();
    return create_with(weights, std::move(*steps), options, seed);
  }

  /// The same with steps from elsewhere: weight_clipping.hpp, gptq.hpp, a matrix that another method made. They must
  /// have the shape of the weights, which must be finite.
  [[nodiscard]] static Result<OffsetRounding> create_with(const MatrixView<const T>& weights, Steps steps,
                                                          const Options& options, std::uint64_t seed) noexcept {
    if (const Status same = same_shape(weights, steps, "weights"); !same) return same.error();
    auto offsets = Offsets::create(setup(weights.rows, weights.columns, options, seed));
    if (!offsets) return offsets.error();
    auto sums = AlignedBuffer<Sums>::allocate(Rule::has_penalty ? tasks_of(weights.rows) : 0);
    if (!sums) return sums.error();
    OffsetRounding made;
    made.weights_ = weights;
    made.rule_ = Rule(options);
    made.steps_ = std::move(steps);
    made.offsets_ = std::move(*offsets);
    made.sums_ = std::move(*sums);
    made.step_rate_ = options.step_rate;
    return made;
  }

  [[nodiscard]] const Grid& grid() const noexcept { return steps_.grid(); }
  [[nodiscard]] const Steps& steps() const noexcept { return steps_; }
  [[nodiscard]] std::size_t outputs() const noexcept { return weights_.rows; }
  [[nodiscard]] std::size_t inputs() const noexcept { return weights_.columns; }

  /// W^ of the forward pass with the trained steps. Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status soft_weights(const MatrixView<T>& out, const E& executor) const noexcept {
    if (const Status same = same_shape(out, steps_, "out"); !same) return same;
    write(out, phase_ != RoundingPhase::soft, nullptr, executor);
    return {};
  }

  /// dequantize(harden()), bit for bit. Errc::bad_shape, Errc::out_of_memory.
  template <Executor E>
  [[nodiscard]] Status hard_weights(const MatrixView<T>& out, const E& executor) const noexcept {
    if (const Status same = same_shape(out, steps_, "out"); !same) return same;
    auto scales = AlignedBuffer<float>::allocate(steps_.size());
    if (!scales) return scales.error();
    const MatrixView<float> stored = matrix_view(scales->data(), weights_.rows, steps_.groups());
    steps_.storable(stored);
    write(out, true, &stored, executor);
    return {};
  }

  /// Codes of the trained steps, scales rounded to what packed weights store. Errc::out_of_memory.
  [[nodiscard]] Result<QuantizedMatrix> harden() const noexcept {
    Result<QuantizedMatrix> result = QuantizedMatrix::allocate(weights_.rows, weights_.columns, grid());
    if (!result) return result;
    QuantizedMatrix& matrix = *result;
    steps_.storable(matrix.scales());
    for (std::size_t n = 0; n < weights_.rows && grid().zero == Zero::affine; ++n) {
      for (std::size_t g = 0; g < steps_.groups(); ++g) {
        row(matrix.zeros(), n)[g] = static_cast<std::uint8_t>(steps_.zero(n, g));
      }
    }
    const MatrixView<float> codes_themselves = {};
    const MatrixView<std::uint8_t> codes = matrix.codes();
    const std::size_t length = group_length(grid(), weights_.columns);
    for (std::size_t task = 0; task < tasks_of(weights_.rows); ++task) {
      write_task(task, true, &codes_themselves, [&](std::size_t n, std::size_t k, const T* values, std::size_t size) {
        for (std::size_t j = 0; j < size; ++j) {
          const auto code = static_cast<int>(values[j]) + steps_.zero(n, (k + j) / length);
          row(codes, n)[k + j] = static_cast<std::uint8_t>(code);
        }
      });
    }
    return result;
  }

  /// Overwrites the gradients of all parameters for dL/dW^ = upstream. While hardened those of the offsets stay zero.
  /// Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& upstream, const Penalty& penalty,
                                const E& executor) noexcept {
    if (const Status same = same_shape(upstream, steps_, "upstream"); !same) return same;
    auto term = rule_.term(penalty, weights_.rows * weights_.columns);
    if constexpr (Rule::has_penalty) {
      if (term.relative && phase_ != RoundingPhase::hardened) {
        for_each_task(executor, [&](std::size_t task) { measure_task(task, upstream, term); });
        Sums total;
        for (const Sums& sums : sums_)
          total = {total.reconstruction + sums.reconstruction, total.penalty + sums.penalty};
        term = rule_.weighed(term, total);
      }
    }
    for_each_task(executor, [&](std::size_t task) { backward_task(task, upstream, term); });
    if (phase_ != RoundingPhase::hardened) offsets_.finish();
    return {};
  }

  /// Offsets first (low rank: A1, A2), log steps last; offsets rest while hardened.
  [[nodiscard]] ParameterList<T> parameters() noexcept {
    ParameterList<T> list;
    offsets_.append(list, phase_ == RoundingPhase::hardened ? 0.0 : 1.0);
    steps_.append(list, step_rate_);
    return list;
  }
  [[nodiscard]] std::size_t trained_parameters() const noexcept {
    return offsets_.size() + steps_.trained_parameters();
  }

  void project() noexcept {
    if constexpr (Rule::limited) offsets_.limit(rule_.reach());
    steps_.project();
  }

  void set_phase(RoundingPhase phase) noexcept {
    phase_ = phase;
    if (phase == RoundingPhase::hardened) offsets_.clear_gradients();
  }

  [[nodiscard]] std::size_t bytes() const noexcept {
    return bytes_for(weights_.rows, weights_.columns, grid(), Options{.rank = offsets_.rank()});
  }
  [[nodiscard]] static std::size_t bytes_for(std::size_t rows, std::size_t columns, const Grid& grid,
                                             const Options& options) noexcept {
    const std::size_t sums = Rule::has_penalty ? tasks_of(rows) * sizeof(Sums) : 0;
    return Offsets::bytes_for(setup(rows, columns, options, 0)) + Steps::bytes_for(rows, columns, grid) + sums;
  }

 private:
  using Tile = offsets::Tile;
  using TileData = offsets::TileData<T>;
  using Sums = typename Rule::Sums;
  using Term = typename Rule::Term;

  template <class U>
  [[nodiscard]] static Status same_shape(const MatrixView<U>& view, const Steps& steps, const char* where) noexcept {
    if (view.rows == steps.rows() && view.columns == steps.columns() && view.stride >= view.columns) return {};
    return Error{Errc::bad_shape, "not the shape of the weights", where, ErrorText(view.rows) << " x " << view.columns,
                 ErrorText(steps.rows()) << " x " << steps.columns()};
  }
  [[nodiscard]] static constexpr offsets::Setup setup(std::size_t rows, std::size_t columns, const Options& options,
                                                      std::uint64_t seed) noexcept {
    return {.rows = rows, .columns = columns, .rank = options.rank, .rate = options.offset_rate, .seed = seed};
  }
  [[nodiscard]] static constexpr std::size_t tasks_of(std::size_t rows) noexcept {
    return divide_up(rows, Offsets::rows_per_task);
  }
  template <Executor E, class Body>
  void for_each_task(const E& executor, const Body& body) const noexcept {
    executor.for_each_index(tasks_of(weights_.rows), body);
  }

  template <class Body>
  void for_each_tile(std::size_t task, const Body& body) const noexcept {
    offsets::for_each_tile({task * Offsets::rows_per_task, Offsets::rows_per_task, 0, weights_.columns}, weights_.rows,
                           body);
  }
  template <class Body>
  void for_each_segment(const Tile& tile, const Body& body) const noexcept {
    offsets::for_each_segment(tile, group_length(grid(), weights_.columns), body);
  }

  [[nodiscard]] SegmentGrid<T> segment_grid(std::size_t n, std::size_t group) const noexcept {
    const T step = steps_.step(n, group);
    const int zero = steps_.zero(n, group);
    return {step, step, static_cast<T>(-zero), static_cast<T>(max_code(grid()) - zero)};
  }

  template <Executor E>
  void write(const MatrixView<T>& out, bool hard, const MatrixView<float>* stored, const E& executor) const noexcept {
    for_each_task(executor, [&](std::size_t task) {
      write_task(task, hard, stored, [&](std::size_t n, std::size_t k, const T* values, std::size_t size) {
        for (std::size_t j = 0; j < size; ++j) row(out, n)[k + j] = values[j];
      });
    });
  }

  /// Calls sink(row, column, values, size) with the weights of a task: values by the trained steps, by `stored` steps,
  /// or codes minus zero points where `stored` is empty.
  template <class Sink>
  void write_task(std::size_t task, bool hard, const MatrixView<float>* stored, const Sink& sink) const noexcept {
    TileData data;
    T values[offsets::tile_columns];
    for_each_tile(task, [&](const Tile& tile) {
      offsets_.read(tile, data);
      for (std::size_t i = 0; i < tile.rows; ++i) {
        const std::size_t n = tile.row + i;
        for_each_segment(tile, [&](std::size_t group, std::size_t k, std::size_t size) {
          SegmentGrid<T> at = segment_grid(n, group);
          if (stored != nullptr) at.value = stored->data == nullptr ? T{1} : static_cast<T>(row(*stored, n)[group]);
          const SegmentInput<T> in = {row(weights_, n) + tile.column + k, data.values[i] + k, nullptr, size};
          if (hard) {
            rule_.hard(in, at, values + k);
          } else {
            rule_.soft(in, at, values + k);
          }
        });
        sink(n, tile.column, values, tile.columns);
      }
    });
  }

  void measure_task(std::size_t task, const MatrixView<const T>& upstream, const Term& term) noexcept
    requires(Rule::has_penalty)
  {
    Sums sums;
    TileData data;
    for_each_tile(task, [&](const Tile& tile) {
      offsets_.read(tile, data);
      for (std::size_t i = 0; i < tile.rows; ++i) {
        for_each_segment(tile, [&](std::size_t group, std::size_t k, std::size_t size) {
          rule_.measure(input(tile, data, upstream, i, k, size), segment_grid(tile.row + i, group), term, sums);
        });
      }
    });
    sums_[task] = sums;
  }

  void backward_task(std::size_t task, const MatrixView<const T>& upstream, const Term& term) noexcept {
    const bool trained = phase_ != RoundingPhase::hardened;
    if (trained) offsets_.start(task);
    TileData data;
    for_each_tile(task, [&](const Tile& tile) {
      offsets_.read(tile, data);
      if (trained) offsets_.aim(tile, data);
      for (std::size_t i = 0; i < tile.rows; ++i) {
        const std::size_t n = tile.row + i;
        T* const gradients = trained ? data.gradients[i] : data.gradient_memory[i];
        for_each_segment(tile, [&](std::size_t group, std::size_t k, std::size_t size) {
          const SegmentGrid<T> at = segment_grid(n, group);
          const SegmentInput<T> in = input(tile, data, upstream, i, k, size);
          const T ds = phase_ == RoundingPhase::soft ? rule_.backward(in, at, term, gradients + k)
                                                     : rule_.backward_hard(in, at, term, gradients + k);
          const bool first = (tile.column + k) % group_length(grid(), weights_.columns) == 0;
          steps_.add_gradient(n, group, ds, first);
        });
      }
      if (trained) offsets_.accumulate(task, tile, data);
    });
  }

  [[nodiscard]] SegmentInput<T> input(const Tile& tile, const TileData& data, const MatrixView<const T>& upstream,
                                      std::size_t i, std::size_t k, std::size_t size) const noexcept {
    const std::size_t column = tile.column + k;
    return {row(weights_, tile.row + i) + column, data.values[i] + k, row(upstream, tile.row + i) + column, size};
  }

  MatrixView<const T> weights_;
  Rule rule_ = Rule(Options{});
  Steps steps_;
  Offsets offsets_;
  AlignedBuffer<Sums> sums_;
  double step_rate_ = 0;
  RoundingPhase phase_ = RoundingPhase::soft;
};

}  // namespace CBQ_ABI
}  // namespace cbq
