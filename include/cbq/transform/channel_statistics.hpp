// SPDX-License-Identifier: Apache-2.0
#pragma once

// ChannelStatistics: what calibration must remember of the input of a linear layer, over any number of batches: per
// channel the smallest and largest value and the mean square. Memory: three numbers per channel. Sums are taken token
// by token in double, so neither the executor nor the cutting into batches changes a bit. Activations that are not
// finite are an error, never skipped: a single one means that the float model already fails on this text (float16
// overflow of down_proj inputs is the usual cause).

#include <concepts>
#include <cstddef>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <std::floating_point T>
class ChannelStatistics {
 public:
  /// Statistics of no tokens. Errc::out_of_memory.
  [[nodiscard]] static Result<ChannelStatistics> create(std::size_t channels) noexcept {
    Result<AlignedBuffer<T>> minima = AlignedBuffer<T>::allocate(channels);
    Result<AlignedBuffer<T>> maxima = AlignedBuffer<T>::allocate(channels);
    Result<AlignedBuffer<double>> squares = AlignedBuffer<double>::allocate(channels);
    Result<AlignedBuffer<std::size_t>> bad = AlignedBuffer<std::size_t>::allocate(channels);
    if (!minima) return minima.error();
    if (!maxima) return maxima.error();
    if (!squares) return squares.error();
    if (!bad) return bad.error();
    ChannelStatistics result;
    result.minima_ = *std::move(minima);
    result.maxima_ = *std::move(maxima);
    result.squares_ = *std::move(squares);
    result.bad_ = *std::move(bad);
    for (std::size_t c = 0; c < channels; ++c) {
      result.minima_[c] = result.maxima_[c] = 0;
      result.squares_[c] = 0;
    }
    return result;
  }

  [[nodiscard]] std::size_t channels() const noexcept { return minima_.size(); }
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  /// Smallest value of each channel; 0 before the first token.
  [[nodiscard]] std::span<const T> minima() const noexcept { return {minima_.data(), minima_.size()}; }
  /// Largest value of each channel; 0 before the first token.
  [[nodiscard]] std::span<const T> maxima() const noexcept { return {maxima_.data(), maxima_.size()}; }
  /// max |x| of a channel; channel < channels().
  [[nodiscard]] T magnitude(std::size_t channel) const noexcept {
    return maxima_[channel] > -minima_[channel] ? maxima_[channel] : -minima_[channel];
  }
  /// Mean of the squares of a channel, 0 before the first token; channel < channels().
  [[nodiscard]] double second_moment(std::size_t channel) const noexcept {
    return tokens_ == 0 ? 0.0 : squares_[channel] / static_cast<double>(tokens_);
  }

  /// Adds the rows of `x` [tokens x channels]; `layer` names the input in errors. Errc::bad_shape, and Errc::not_finite
  /// naming layer, channel and token of the first such activation; nothing is added then.
  template <Executor E = SerialExecutor>
  [[nodiscard]] Status add(const MatrixView<const T>& x, const ErrorText& layer, const E& executor = {}) noexcept {
    if (x.columns != channels() || x.stride < x.columns) {
      return Error{Errc::bad_shape, "activations have another width than the statistics", layer, x.columns, channels()};
    }
    if (x.rows == 0) return {};
    const std::size_t blocks = divide_up(channels(), block);
    executor.for_each_index(blocks, [&](std::size_t b) { find_bad(x, b * block, end_of(b)); });
    for (std::size_t c = 0; c < channels(); ++c) {
      if (bad_[c] == x.rows) continue;
      ErrorText where = layer;
      where << ", channel " << c << ", token " << tokens_ + bad_[c];
      return Error{Errc::not_finite, "a calibration activation is NaN or infinite", where};
    }
    executor.for_each_index(blocks, [&](std::size_t b) { accumulate(x, b * block, end_of(b)); });
    tokens_ += x.rows;
    return {};
  }

 private:
  static constexpr std::size_t block = 64;  // channels per task

  [[nodiscard]] std::size_t end_of(std::size_t b) const noexcept {
    return channels() - b * block < block ? channels() : (b + 1) * block;
  }

  /// bad_[c] = first row whose value in channel c is not finite, or the number of rows.
  void find_bad(const MatrixView<const T>& x, std::size_t first, std::size_t last) noexcept {
    for (std::size_t c = first; c < last; ++c) bad_[c] = x.rows;
    for (std::size_t r = x.rows; r-- > 0;) {
      const T* values = row(x, r);
      for (std::size_t c = first; c < last; ++c) bad_[c] = is_finite(values[c]) ? bad_[c] : r;
    }
  }

  void accumulate(const MatrixView<const T>& x, std::size_t first, std::size_t last) noexcept {
    if (tokens_ == 0) {
      for (std::size_t c = first; c < last; ++c) minima_[c] = maxima_[c] = row(x, 0)[c];
    }
    for (std::size_t r = 0; r < x.rows; ++r) {
      const T* values = row(x, r);
      for (std::size_t c = first; c < last; ++c) {
        const T value = values[c];
        minima_[c] = value < minima_[c] ? value : minima_[c];
        maxima_[c] = value > maxima_[c] ? value : maxima_[c];
        squares_[c] += static_cast<double>(value) * static_cast<double>(value);
      }
    }
  }

  AlignedBuffer<T> minima_;
  AlignedBuffer<T> maxima_;
  AlignedBuffer<double> squares_;
  AlignedBuffer<std::size_t> bad_;
  std::size_t tokens_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
