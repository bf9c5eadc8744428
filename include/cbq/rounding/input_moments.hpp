// SPDX-License-Identifier: Apache-2.0
#pragma once

// InputMoments: H = X^T X of a linear layer's inputs, added up over calibration data as it streams by. In double:
// thousands of tokens with massive activations are summed before H is factorized. What gptq.hpp needs; its diagonal is
// E[x^2] per channel. K^2 doubles; tokens * K^2 multiplications.

#include <Eigen/Core>

#include <concepts>
#include <cstddef>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/bad_alloc.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/element.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {

class InputMoments {
 public:
  /// Of no token yet. Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<InputMoments> create(std::size_t channels) noexcept {
    const Result<std::size_t> size = checked_product(channels, channels);
    if (!size) return size.error();
    const Result<std::size_t> piece = checked_product(tokens_per_piece, channels);
    if (!piece) return piece.error();
    auto sums = AlignedBuffer<double>::allocate(*size);
    if (!sums) return sums.error();
    auto memory = AlignedBuffer<double>::allocate(*piece);
    if (!memory) return memory.error();
    InputMoments moments;
    moments.sums_ = std::move(*sums);
    moments.piece_ = std::move(*memory);
    moments.channels_ = channels;
    for (double& sum : moments.sums_) sum = 0;
    return moments;
  }

  /// Adds tokens x channels inputs; the same bits for any executor. Errc::bad_shape; Errc::not_finite naming token
  /// and channel, Errc::out_of_memory: the moments are then spoiled.
  template <Element T, Executor E = SerialExecutor>
  [[nodiscard]] Status add(const MatrixView<const T>& x, const E& executor = {}) {
    if (x.columns != channels_ || x.stride < x.columns) {
      return Error{Errc::bad_shape, "not the channels that the moments are of", "inputs", x.columns, channels_};
    }
    for (std::size_t first = 0; first < x.rows; first += tokens_per_piece) {
      const std::size_t count = x.rows - first < tokens_per_piece ? x.rows - first : tokens_per_piece;
      if (const Status read = read_piece(x, first, count); !read) return read;
      const Status added = for_each_index_or_error(executor, divide_up(channels_, channels_per_task), "InputMoments",
                                                   [&](std::size_t task) { add_piece(task, count); });
      if (!added) return added;
    }
    tokens_ += x.rows;
    return {};
  }

  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  /// Sum over tokens of x_i x_j.
  [[nodiscard]] double operator()(std::size_t i, std::size_t j) const noexcept {
    return i < j ? sums_[j * channels_ + i] : sums_[i * channels_ + j];
  }

 private:
  template <class T>
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  static constexpr std::size_t tokens_per_piece = 128;
  static constexpr std::size_t channels_per_task = 64;

  template <Element T>
  [[nodiscard]] Status read_piece(const MatrixView<const T>& x, std::size_t first, std::size_t count) noexcept {
    for (std::size_t t = 0; t < count; ++t) {
      const T* const values = row(x, first + t);
      for (std::size_t k = 0; k < channels_; ++k) {
        const float value = to_float(values[k]);
        if (!is_finite(value)) {
          return Error{Errc::not_finite, "an activation is NaN or infinite",
                       ErrorText("token ") << tokens_ + first + t << ", channel " << k};
        }
        piece_[t * channels_ + k] = static_cast<double>(value);
      }
    }
    return {};
  }

  /// The rows of H of one task, up to the diagonal's block. A template, so that Eigen's product is compiled where used.
  template <std::same_as<double> T = double>
  void add_piece(std::size_t task, std::size_t count) {
    const auto index = [](std::size_t value) { return static_cast<Eigen::Index>(value); };
    const std::size_t first = task * channels_per_task;
    const std::size_t size = channels_ - first < channels_per_task ? channels_ - first : channels_per_task;
    const Eigen::Map<const Matrix<T>> x(piece_.data(), index(count), index(channels_));
    Eigen::Map<Matrix<T>> sums(sums_.data(), index(channels_), index(channels_));
    sums.block(index(first), 0, index(size), index(first + size)).noalias() +=
        x.middleCols(index(first), index(size)).transpose() * x.leftCols(index(first + size));
  }

  AlignedBuffer<double> sums_;   ///< up to the diagonal, and a little more
  AlignedBuffer<double> piece_;  ///< tokens as double
  std::size_t channels_ = 0;
  std::size_t tokens_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
