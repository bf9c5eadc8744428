// SPDX-License-Identifier: Apache-2.0
#pragma once

// InputMoments: H = X^T X of a linear layer's inputs, added up over calibration data as it streams by: 128 tokens at a
// time in float, a fourth of the time that doubles take, and these sums in double, as thousands of tokens with massive
// activations are summed before H is factorized. What gptq.hpp needs; its diagonal is E[x^2] per channel. K^2 doubles
// and some rows of floats; tokens * K^2 / 2 multiplications.

#include <cstddef>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/element.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/gemm/float_matmul.hpp>
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
    const Result<std::size_t> products = checked_product(channels_per_strip, channels);
    if (!products) return products.error();
    const Result<std::size_t> workspace = float_matmul_transposed_workspace(channels_per_strip, tokens_per_piece);
    if (!workspace) return workspace.error();
    auto sums = AlignedBuffer<double>::allocate(*size);
    if (!sums) return sums.error();
    InputMoments moments;
    const auto allocate = [](AlignedBuffer<float>& buffer, std::size_t count) noexcept -> Status {
      auto memory = AlignedBuffer<float>::allocate(count);
      if (!memory) return memory.error();
      buffer = std::move(*memory);
      return {};
    };
    if (const Status made = allocate(moments.piece_, *piece); !made) return made.error();
    if (const Status made = allocate(moments.products_, *products); !made) return made.error();
    if (const Status made = allocate(moments.workspace_, *workspace); !made) return made.error();
    moments.sums_ = std::move(*sums);
    moments.channels_ = channels;
    for (double& sum : moments.sums_) sum = 0;
    return moments;
  }

  /// Adds tokens x channels inputs; the same bits for any executor. Errc::bad_shape; Errc::not_finite naming token
  /// and channel, or the channel whose squares are beyond float: the moments are then spoiled.
  template <Element T, Executor E = SerialExecutor>
  [[nodiscard]] Status add(const MatrixView<const T>& x, const E& executor = {}) {
    if (x.columns != channels_ || x.stride < x.columns) {
      return Error{Errc::bad_shape, "not the channels that the moments are of", "inputs", x.columns, channels_};
    }
    for (std::size_t first = 0; first < x.rows; first += tokens_per_piece) {
      const std::size_t count = x.rows - first < tokens_per_piece ? x.rows - first : tokens_per_piece;
      if (const Status read = read_piece(x, first, count); !read) return read;
      for (std::size_t channel = 0; channel < channels_; channel += channels_per_strip) {
        if (const Status added = add_strip(channel, count, executor); !added) return added;
      }
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
  static constexpr std::size_t tokens_per_piece = 128;
  static constexpr std::size_t channels_per_strip = 256;

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
        piece_[t * channels_ + k] = value;
      }
    }
    return {};
  }

  /// The rows of H from `first` on, up to the end of the diagonal's block.
  template <Executor E>
  [[nodiscard]] Status add_strip(std::size_t first, std::size_t count, const E& executor) {
    const std::size_t size = channels_ - first < channels_per_strip ? channels_ - first : channels_per_strip;
    const std::size_t columns = first + size;
    const MatrixView<const float> strip{piece_.data() + first, count, size, channels_};
    const MatrixView<const float> x{piece_.data(), count, columns, channels_};
    const MatrixView<float> products{products_.data(), size, columns, columns};
    const FloatMatmulOptions<E> options{.executor = executor,
                                        .workspace = std::span<float>(workspace_.data(), workspace_.size())};
    const Status multiplied = float_matmul_transposed(strip, row_major(x), products, NoEpilogue{}, options);
    if (!multiplied) return multiplied;
    executor.for_each_index(size, [&](std::size_t i) {
      double* const sums = sums_.data() + (first + i) * channels_;
      const float* const added = row(products, i);
      for (std::size_t j = 0; j < columns; ++j) sums[j] += static_cast<double>(added[j]);
    });
    for (std::size_t i = 0; i < size; ++i) {
      if (is_finite(row(products, i)[first + i])) continue;
      return Error{Errc::not_finite, "squares of activations are beyond float", ErrorText("channel ") << first + i};
    }
    return {};
  }

  AlignedBuffer<double> sums_;      ///< up to the diagonal, and a little more
  AlignedBuffer<float> piece_;      ///< tokens as float
  AlignedBuffer<float> products_;   ///< of one strip
  AlignedBuffer<float> workspace_;  ///< of their product
  std::size_t channels_ = 0;
  std::size_t tokens_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
