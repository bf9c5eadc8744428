// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rotation: an orthogonal matrix of any width that spreads outliers, applied without being formed,
//
//   Q = (R (x) I_b) (I_m (x) H_b) D,      width = m b, b the largest power of two that divides it
//
// with H_b the orthonormal Hadamard matrix, D random signs and R a random orthogonal m x m factor (1 for powers of
// two). A stream that layer norms read must keep its mean: RotationMean::kept puts a reflection in front that maps Q 1
// to 1, so that the mean of Q x is that of x. Cost of a vector: n (log2 b + m) additions. Equal for equal width, seed
// and type.
//
// R is a product of reflections that map each axis to a normally distributed direction, which makes it uniformly
// distributed (Stewart, 1980) and needs no algebra library.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/transform/hadamard.hpp>

namespace cbq {

/// Whether a rotation may change the mean of a vector: RMSNorm does not read it, LayerNorm does.
enum class RotationMean : unsigned char { free, kept };

inline namespace CBQ_ABI {
namespace rotation {

/// SplitMix64 (Steele et al., 2014): the same numbers on every platform, unlike the standard distributions.
class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept : state_(seed) {}
  [[nodiscard]] std::uint64_t bits() noexcept {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  /// Standard normal.
  [[nodiscard]] double normal() noexcept {
    const double radius = static_cast<double>((bits() >> 11) + 1) * 0x1p-53;
    const double angle = static_cast<double>(bits() >> 11) * 0x1p-53;
    return std::sqrt(-2 * std::log(radius)) * std::cos(6.283185307179586 * angle);
  }

 private:
  std::uint64_t state_;
};

/// Reflects the last v.size() elements of each of the `size` rows of `matrix` in the hyperplane normal to v.
inline void reflect_rows(std::span<double> matrix, std::size_t size, std::span<const double> v) noexcept {
  double squares = 0;
  for (const double element : v) squares += element * element;
  if (squares == 0) return;
  for (std::size_t r = 0; r < size; ++r) {
    double* tail = matrix.data() + r * size + size - v.size();
    double product = 0;
    for (std::size_t i = 0; i < v.size(); ++i) product += tail[i] * v[i];
    for (std::size_t i = 0; i < v.size(); ++i) tail[i] -= 2 * product / squares * v[i];
  }
}

/// A random orthogonal matrix [size x size]; `direction` is memory for `size` numbers.
inline void random_orthogonal(std::span<double> matrix, std::span<double> direction, Random& random) noexcept {
  const std::size_t size = direction.size();
  for (std::size_t i = 0; i < size; ++i) {
    for (std::size_t j = 0; j < size; ++j) matrix[i * size + j] = i != j ? 0.0 : random.bits() >> 63 == 0 ? 1.0 : -1.0;
  }
  for (std::size_t length = size; length >= 2; --length) {
    double squares = 0;
    for (double& element : direction.first(length)) {
      element = random.normal();
      squares += element * element;
    }
    // Normal to the hyperplane that mirrors the first axis onto the random direction.
    direction[0] += std::copysign(std::sqrt(squares), direction[0]);
    reflect_rows(matrix, size, direction.first(length));
  }
}

}  // namespace rotation

template <std::floating_point T>
class Rotation {
 public:
  /// A random rotation. Errc::bad_argument (width 0), Errc::out_of_memory.
  [[nodiscard]] static Result<Rotation> create(std::size_t width, std::uint64_t seed,
                                               RotationMean mean = RotationMean::free) noexcept {
    if (width == 0) return Error{Errc::bad_argument, "a rotation has at least one dimension", "width"};
    Rotation result;
    result.block_ = hadamard_size(width);
    const std::size_t blocks = width / result.block_;
    const Result<std::size_t> factor = checked_product(blocks, blocks);
    if (!factor) return factor.error();
    Result<AlignedBuffer<T>> signs = AlignedBuffer<T>::allocate(width);
    Result<AlignedBuffer<double>> matrix = AlignedBuffer<double>::allocate(blocks == 1 ? 0 : *factor);
    Result<AlignedBuffer<double>> direction = AlignedBuffer<double>::allocate(width);
    if (!signs) return signs.error();
    if (!matrix) return matrix.error();
    if (!direction) return direction.error();
    rotation::Random random(seed);
    for (T& sign : *signs) sign = random.bits() >> 63 == 0 ? T{1} : T{-1};
    if (blocks > 1) {
      rotation::random_orthogonal({matrix->data(), matrix->size()}, {direction->data(), blocks}, random);
    }
    result.signs_ = *std::move(signs);
    result.factor_ = *std::move(matrix);
    if (mean == RotationMean::kept) return keep_mean(std::move(result), *std::move(direction));
    return result;
  }

  [[nodiscard]] std::size_t width() const noexcept { return signs_.size(); }
  /// Elements that a rotation needs as scratch memory.
  [[nodiscard]] std::size_t scratch_size() const noexcept { return factor_.size() == 0 ? 0 : width(); }

  /// x = Q x; x.size() == width(), scratch.size() >= scratch_size().
  void apply(std::span<T> x, std::span<double> scratch, Isa isa) const noexcept {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= signs_[i];
    hadamard_row(x, block_, isa);
    if (factor_.size() != 0) mix_blocks(x, scratch);
    if (reflection_.size() != 0) reflect(x);
  }

 private:
  /// x = (R (x) I) x.
  void mix_blocks(std::span<T> x, std::span<double> scratch) const noexcept {
    const std::size_t blocks = x.size() / block_;
    for (std::size_t i = 0; i < blocks; ++i) {
      double* sums = scratch.data() + i * block_;
      for (std::size_t k = 0; k < block_; ++k) sums[k] = 0;
      for (std::size_t j = 0; j < blocks; ++j) {
        const double factor = factor_[i * blocks + j];
        const T* from = x.data() + j * block_;
        for (std::size_t k = 0; k < block_; ++k) sums[k] += factor * static_cast<double>(from[k]);
      }
    }
    for (std::size_t k = 0; k < x.size(); ++k) x[k] = static_cast<T>(scratch[k]);
  }

  void reflect(std::span<T> x) const noexcept {
    double product = 0;
    for (std::size_t k = 0; k < x.size(); ++k) product += static_cast<double>(x[k]) * reflection_[k];
    for (std::size_t k = 0; k < x.size(); ++k) {
      x[k] = static_cast<T>(static_cast<double>(x[k]) - 2 * product * reflection_[k]);
    }
  }

  /// Adds the reflection that maps Q 1 to 1: in the hyperplane normal to Q 1 - 1.
  [[nodiscard]] static Result<Rotation> keep_mean(Rotation result, AlignedBuffer<double> normal) noexcept {
    const std::size_t width = result.width();
    Result<AlignedBuffer<double>> scratch = AlignedBuffer<double>::allocate(width);
    Result<AlignedBuffer<T>> ones = AlignedBuffer<T>::allocate(width);
    if (!scratch) return scratch.error();
    if (!ones) return ones.error();
    for (T& one : *ones) one = 1;
    result.apply({ones->data(), width}, {scratch->data(), width}, Isa::scalar);
    double squares = 0;
    for (std::size_t k = 0; k < width; ++k) {
      normal[k] = static_cast<double>((*ones)[k]) - 1;
      squares += normal[k] * normal[k];
    }
    if (squares < 1e-12) return result;  // the mean is kept already
    for (double& element : normal) element /= std::sqrt(squares);
    result.reflection_ = std::move(normal);
    return result;
  }

  AlignedBuffer<T> signs_;
  AlignedBuffer<double> factor_;
  AlignedBuffer<double> reflection_;
  std::size_t block_ = 1;
};

namespace rotation {

/// Runs body(task, scratch) for tasks 0 .. count with memory for `elements` Ts and the rotation's own scratch.
template <std::floating_point T, Executor E, class Body>
[[nodiscard]] Status for_each_task(const Rotation<T>& q, std::size_t count, std::size_t elements, const E& executor,
                                   const Body& body) noexcept {
  Result<AlignedBuffer<unsigned char>> failed = AlignedBuffer<unsigned char>::allocate(count);
  if (!failed) return failed.error();
  for (unsigned char& flag : *failed) flag = 0;
  executor.for_each_index(count, [&](std::size_t task) {
    Result<AlignedBuffer<T>> memory = AlignedBuffer<T>::allocate(elements);
    Result<AlignedBuffer<double>> scratch = AlignedBuffer<double>::allocate(q.scratch_size());
    if (!memory || !scratch) {
      (*failed)[task] = 1;
      return;
    }
    body(task, std::span<T>(memory->data(), memory->size()), std::span<double>(scratch->data(), scratch->size()));
  });
  for (const unsigned char flag : *failed) {
    if (flag != 0) return Error{Errc::out_of_memory, "no memory for rotated rows; some are rotated already"};
  }
  return {};
}

}  // namespace rotation

/// Every row of x [rows x q.width()] becomes Q row: vectors of a rotated stream, or the weights of a layer that reads
/// one, since W x = (W Q^T) (Q x). Errc::bad_shape, Errc::out_of_memory.
template <std::floating_point T, Executor E = SerialExecutor>
[[nodiscard]] Status rotate_rows(const MatrixView<T>& x, const Rotation<T>& q, const E& executor = {}) noexcept {
  if (x.columns != q.width() || x.stride < x.columns) {
    return Error{Errc::bad_shape, "rows must have the width of the rotation", "rotation", x.columns, q.width()};
  }
  constexpr std::size_t rows_per_task = 64;
  const Isa isa = detect();
  const auto body = [&](std::size_t task, std::span<T>, std::span<double> scratch) {
    const std::size_t last = std::min(x.rows, (task + 1) * rows_per_task);
    for (std::size_t r = task * rows_per_task; r < last; ++r) q.apply({row(x, r), x.columns}, scratch, isa);
  };
  return rotation::for_each_task(q, divide_up(x.rows, rows_per_task), 0, executor, body);
}

/// Every column of x [q.width() x columns] becomes Q column: the weights of a layer that writes into a rotated stream,
/// Q W. Errc::bad_shape, Errc::out_of_memory.
template <std::floating_point T, Executor E = SerialExecutor>
[[nodiscard]] Status rotate_columns(const MatrixView<T>& x, const Rotation<T>& q, const E& executor = {}) noexcept {
  if (x.rows != q.width() || x.stride < x.columns) {
    return Error{Errc::bad_shape, "columns must have the width of the rotation", "rotation", x.rows, q.width()};
  }
  constexpr std::size_t columns_per_task = 16;  // a cache line of floats
  const Isa isa = detect();
  const auto body = [&](std::size_t task, std::span<T> block, std::span<double> scratch) {
    const std::size_t first = task * columns_per_task;
    const std::size_t count = std::min(columns_per_task, x.columns - first);
    for (std::size_t r = 0; r < x.rows; ++r) {
      for (std::size_t c = 0; c < count; ++c) block[c * x.rows + r] = row(x, r)[first + c];
    }
    for (std::size_t c = 0; c < count; ++c) q.apply(block.subspan(c * x.rows, x.rows), scratch, isa);
    for (std::size_t r = 0; r < x.rows; ++r) {
      for (std::size_t c = 0; c < count; ++c) row(x, r)[first + c] = block[c * x.rows + r];
    }
  };
  return rotation::for_each_task(q, divide_up(x.columns, columns_per_task), columns_per_task * x.rows, executor, body);
}

}  // namespace CBQ_ABI
}  // namespace cbq
