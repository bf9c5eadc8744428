// SPDX-License-Identifier: Apache-2.0
#pragma once

// LowRankOffsets: the offsets of OffsetRounding as a product V = A1 A2, A1 [N x r] ~ N(0, 1/r), A2 [r x K] = 0, with
// (N + K) r parameters. V and its gradient P exist in tiles of 4 x 256 only.
//
//   dL/dA1 = P A2^T      dL/dA2 = A1^T P
//
// The sum over rows of the second is kept per task of 128 rows and added in order, so that no executor changes a bit:
// N / 128 * r * K scalars beside the parameters. 2 r operations per weight forward, 6 r backward.

#include <cmath>
#include <cstddef>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/rounding/offsets.hpp>
#include <cbq/rounding/segment_loops.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class T>
class LowRankOffsets {
 public:
  static constexpr std::size_t rows_per_task = 128;

  /// Errc::bad_argument (rank), bad_shape, out_of_memory.
  [[nodiscard]] static Result<LowRankOffsets> create(const offsets::Setup& setup) noexcept {
    const std::size_t most = setup.rows < setup.columns ? setup.rows : setup.columns;
    if (setup.rank == 0 || setup.rank > most) {
      return Error{Errc::bad_argument, "a rank is at least 1 and at most the smaller side of the matrix", "rank",
                   setup.rank, ErrorText("1..") << most};
    }
    LowRankOffsets made;
    made.setup_ = setup;
    const std::size_t tasks = divide_up(setup.rows, rows_per_task);
    const Result<std::size_t> partial_size = checked_product(tasks, setup.rank, setup.columns);
    if (!partial_size) return partial_size.error();
    const std::pair<AlignedBuffer<T>*, std::size_t> buffers[] = {{&made.left_, setup.rows * setup.rank},
                                                                 {&made.left_gradients_, setup.rows * setup.rank},
                                                                 {&made.right_, setup.rank * setup.columns},
                                                                 {&made.right_gradients_, setup.rank * setup.columns},
                                                                 {&made.partial_, *partial_size}};
    for (const auto& [buffer, size] : buffers) {
      auto memory = offsets::zeros<T>(size);
      if (!memory) return memory.error();
      *buffer = std::move(*memory);
    }
    const double deviation = 1 / std::sqrt(static_cast<double>(setup.rank));
    for (std::size_t i = 0; i < made.left_.size(); ++i) {
      made.left_[i] = static_cast<T>(deviation * offsets::gaussian(setup.seed, i));
    }
    return made;
  }
  [[nodiscard]] static std::size_t bytes_for(const offsets::Setup& setup) noexcept {
    const std::size_t tasks = divide_up(setup.rows, rows_per_task);
    return sizeof(T) * setup.rank * (2 * (setup.rows + setup.columns) + tasks * setup.columns);
  }

  /// V of a tile.
  void read(const offsets::Tile& tile, offsets::TileData<T>& data) const noexcept {
    for (std::size_t i = 0; i < tile.rows; ++i) data.values[i] = data.value_memory[i];
    for (std::size_t k = 0; k < tile.columns; k += segments::width) {
      Lanes sums[offsets::tile_rows][count];
      for (auto& sum : sums) {
        for (Lanes& lanes : sum) lanes = Lanes(T{0});
      }
      for (std::size_t j = 0; j < setup_.rank; ++j) {
        Lanes factor[count];
        load(right(j) + tile.column + k, tile.columns - k, factor);
        for (std::size_t i = 0; i < tile.rows; ++i) {
          const Lanes a(left(tile.row + i)[j]);
          for (std::size_t v = 0; v < count; ++v) sums[i][v] += a * factor[v];
        }
      }
      for (std::size_t i = 0; i < tile.rows; ++i) {
        for (std::size_t v = 0; v < count; ++v) {
          sums[i][v].store_unaligned(data.value_memory[i] + k + v * Lanes::size);  // a tile's memory is whole blocks
        }
      }
    }
  }
  void aim(const offsets::Tile& tile, offsets::TileData<T>& data) noexcept {
    for (std::size_t i = 0; i < tile.rows; ++i) {
      data.gradients[i] = data.gradient_memory[i];
      for (std::size_t k = tile.columns; k % segments::width != 0; ++k) data.gradient_memory[i][k] = T{0};
    }
  }

  void start(std::size_t task) noexcept {
    const std::size_t first = task * rows_per_task;
    const std::size_t last = setup_.rows - first < rows_per_task ? setup_.rows : first + rows_per_task;
    for (std::size_t i = first * setup_.rank; i < last * setup_.rank; ++i) left_gradients_[i] = T{0};
    T* const sums = partial(task);
    for (std::size_t i = 0; i < setup_.rank * setup_.columns; ++i) sums[i] = T{0};
  }
  /// Adds what the gradients of a tile, in data.gradient_memory, mean for A1 and A2.
  void accumulate(std::size_t task, const offsets::Tile& tile, const offsets::TileData<T>& data) noexcept {
    for (std::size_t j = 0; j < setup_.rank; ++j) {
      segments::Sum<T> dots[offsets::tile_rows];
      T* const sums = partial(task) + j * setup_.columns + tile.column;
      for (std::size_t k = 0; k < tile.columns; k += segments::width) {
        Lanes factor[count], outer[count];
        load(right(j) + tile.column + k, tile.columns - k, factor);
        load(sums + k, tile.columns - k, outer);
        for (std::size_t i = 0; i < tile.rows; ++i) {
          const Lanes a(left(tile.row + i)[j]);
          for (std::size_t v = 0; v < count; ++v) {
            const Lanes gradient = Lanes::load_unaligned(data.gradient_memory[i] + k + v * Lanes::size);
            dots[i].parts[v] += gradient * factor[v];
            outer[v] += a * gradient;
          }
        }
        store(outer, tile.columns - k, sums + k);
      }
      for (std::size_t i = 0; i < tile.rows; ++i) {
        left_gradients_[(tile.row + i) * setup_.rank + j] += dots[i].total();
      }
    }
  }
  /// Adds the tasks' sums.
  void finish() noexcept {
    const std::size_t size = setup_.rank * setup_.columns;
    for (std::size_t i = 0; i < size; ++i) right_gradients_[i] = T{0};
    for (std::size_t task = 0; task < divide_up(setup_.rows, rows_per_task); ++task) {
      const T* const sums = partial(task);
      for (std::size_t i = 0; i < size; ++i) right_gradients_[i] += sums[i];
    }
  }
  void clear_gradients() noexcept {
    for (T& gradient : left_gradients_) gradient = T{0};
    for (T& gradient : right_gradients_) gradient = T{0};
  }
  /// The product has no bounds of its own; rules limit what they read.
  void limit(T) noexcept {}
  void append(ParameterList<T>& list, double scale) noexcept {
    list.add({left_.data(), left_gradients_.data(), left_.size(), setup_.rate * scale});
    list.add({right_.data(), right_gradients_.data(), right_.size(), setup_.rate * scale});
  }
  [[nodiscard]] std::size_t size() const noexcept { return left_.size() + right_.size(); }
  [[nodiscard]] std::size_t rank() const noexcept { return setup_.rank; }

 private:
  using Lanes = segments::Lanes<T>;
  static constexpr std::size_t count = segments::registers<T>;

  /// Sixteen elements, or `valid` ones and zeros.
  static void load(const T* from, std::size_t valid, Lanes (&out)[count]) noexcept {
    T padded[segments::width] = {};
    if (valid < segments::width) {
      for (std::size_t j = 0; j < valid; ++j) padded[j] = from[j];
      from = padded;
    }
    for (std::size_t v = 0; v < count; ++v) out[v] = Lanes::load_unaligned(from + v * Lanes::size);
  }
  static void store(const Lanes (&lanes)[count], std::size_t valid, T* to) noexcept {
    T padded[segments::width];
    T* const whole = valid < segments::width ? padded : to;
    for (std::size_t v = 0; v < count; ++v) lanes[v].store_unaligned(whole + v * Lanes::size);
    for (std::size_t j = 0; whole == padded && j < valid; ++j) to[j] = padded[j];
  }
  [[nodiscard]] const T* left(std::size_t n) const noexcept { return left_.data() + n * setup_.rank; }
  [[nodiscard]] const T* right(std::size_t j) const noexcept { return right_.data() + j * setup_.columns; }
  [[nodiscard]] T* partial(std::size_t task) noexcept { return partial_.data() + task * setup_.rank * setup_.columns; }

  AlignedBuffer<T> left_, right_, left_gradients_, right_gradients_, partial_;
  offsets::Setup setup_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
