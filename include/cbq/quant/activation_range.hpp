// SPDX-License-Identifier: Apache-2.0
#pragma once

// ActivationRange: the range of a layer's input over calibration rows that come in pieces, for static activations.
// Extremes are those of all rows, per tensor and per channel. Percentiles, which clip outliers, are exact order
// statistics of a sample of rows: of all rows while they are at most `sample_rows`, then of that many that are drawn
// uniformly (reservoir sampling; the same rows in every run). Cost: a pass over each row, and memory for the sample,
// which is also what find_trip_factors() searches on; 32 passes over the sample per percentile.
//
//   symmetric   the p-th percentile of |x|, as an interval around zero
//   affine      half of the rest is cut at each end: the values between the (100 - p) / 2 and (100 + p) / 2 percentiles

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

class ActivationRange {
 public:
  static constexpr std::size_t default_sample_rows = 1024;

  /// For rows of `channels`. Errc::bad_argument (no sample rows), Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<ActivationRange> create(std::size_t channels,
                                                      std::size_t sample_rows = default_sample_rows) noexcept {
    if (sample_rows == 0) {
      return Error{Errc::bad_argument, "a range needs a sample of at least one row", "sample_rows", 0, 1};
    }
    const Result<std::size_t> size = checked_product(sample_rows, channels);
    if (!size) return size.error();
    auto sample = AlignedBuffer<float>::allocate(*size);
    if (!sample) return sample.error();
    auto channel_ranges = AlignedBuffer<Interval>::allocate(channels);
    if (!channel_ranges) return channel_ranges.error();
    ActivationRange range;
    range.sample_ = *std::move(sample);
    range.channel_ranges_ = *std::move(channel_ranges);
    range.channels_ = channels;
    range.sample_rows_ = sample_rows;
    return range;
  }

  /// Rows [tokens x channels]. Errc::bad_shape, Errc::not_finite naming the token of this call; nothing is added then.
  [[nodiscard]] Status add(const MatrixView<const float>& x) noexcept {
    if (x.columns != channels_ || (x.rows > 1 && x.stride < x.columns)) {
      return Error{Errc::bad_shape, "rows of another number of channels", "x", x.columns, channels_};
    }
    for (std::size_t t = 0; t < x.rows; ++t) {
      if (is_finite(max_abs({row(x, t), channels_}))) continue;
      return Error{Errc::not_finite, "an activation is NaN or infinite", ErrorText("token ") << t};
    }
    for (std::size_t t = 0; t < x.rows; ++t, ++tokens_) {
      const float* values = row(x, t);
      for (std::size_t c = 0; c < channels_; ++c) {
        Interval& range = channel_ranges_[c];
        range.low = tokens_ == 0 || values[c] < range.low ? values[c] : range.low;
        range.high = tokens_ == 0 || values[c] > range.high ? values[c] : range.high;
      }
      const std::size_t slot = sample_slot(tokens_);
      if (slot < sample_rows_ && channels_ != 0)
        std::memcpy(sample_.data() + slot * channels_, values, channels_ * sizeof(float));
    }
    return {};
  }

  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  /// Rows that were added.
  [[nodiscard]] std::size_t tokens() const noexcept { return tokens_; }
  /// The rows that were kept.
  [[nodiscard]] MatrixView<const float> sample() const noexcept {
    return matrix_view<const float>(sample_.data(), tokens_ < sample_rows_ ? tokens_ : sample_rows_, channels_);
  }

  /// Extremes of one channel; channel < channels(). {0, 0} before the first row.
  [[nodiscard]] Interval channel(std::size_t index) const noexcept {
    return tokens_ == 0 ? Interval{} : channel_ranges_[index];
  }
  /// Extremes of all channels.
  [[nodiscard]] Interval tensor() const noexcept {
    Interval range = channels_ == 0 ? Interval{} : channel(0);
    for (std::size_t c = 1; c < channels_; ++c) {
      range.low = channel(c).low < range.low ? channel(c).low : range.low;
      range.high = channel(c).high > range.high ? channel(c).high : range.high;
    }
    return range;
  }

  /// Range of `percentile` percent of all values, in (0, 100]; 100 are the extremes of all rows. Errc::bad_argument.
  [[nodiscard]] Result<Interval> tensor(double percentile, Zero zero) const noexcept {
    if (const Status valid = check(percentile); !valid) return valid.error();
    const MatrixView<const float> rows = sample();
    return cut({rows.data, rows.rows * rows.columns}, tensor(), percentile, zero);
  }
  /// The same for one channel; Errc::bad_argument, Errc::out_of_memory.
  [[nodiscard]] Result<Interval> channel(std::size_t index, double percentile, Zero zero) const noexcept {
    if (const Status valid = check(percentile); !valid) return valid.error();
    if (index >= channels_) return Error{Errc::bad_argument, "there is no such channel", "channel", index, channels_};
    const MatrixView<const float> rows = sample();
    auto column = AlignedBuffer<float>::allocate(rows.rows);
    if (!column) return column.error();
    for (std::size_t t = 0; t < rows.rows; ++t) (*column)[t] = row(rows, t)[index];
    return cut({column->data(), rows.rows}, channel(index), percentile, zero);
  }

 private:
  [[nodiscard]] static Status check(double percentile) noexcept {
    if (percentile > 0 && percentile <= 100) return {};
    return Error{Errc::bad_argument, "a percentile lies above 0 and at most at 100", "percentile"};
  }

  /// `extremes` are those of x or of more.
  [[nodiscard]] static Interval cut(std::span<const float> x, const Interval& extremes, double percentile,
                                    Zero zero) noexcept {
    const float largest = -extremes.low > extremes.high ? -extremes.low : extremes.high;
    const Interval all = zero == Zero::affine ? extremes : Interval{-largest, largest};
    if (x.empty() || percentile == 100) return all;
    const auto rank = [&](double part) {
      const auto wanted = static_cast<std::size_t>(std::ceil(part * static_cast<double>(x.size()) / 100));
      return wanted < 1 ? std::size_t{1} : wanted > x.size() ? x.size() : wanted;
    };
    if (zero == Zero::symmetric) {
      const float limit = order_statistic(x, Compare::magnitudes, rank(percentile));
      return {-limit, limit};
    }
    // No less than the middle: of a percentile so small that 100 less it is 100, the ends would change places.
    const std::size_t cut_at = rank(100 - (100 - percentile) / 2), middle = x.size() / 2 + 1;
    const std::size_t high = cut_at > middle ? cut_at : middle;
    return {order_statistic(x, Compare::values, x.size() + 1 - high), order_statistic(x, Compare::values, high)};
  }

  /// Where row `index` of all rows goes; sample_rows or more: nowhere. Vitter's algorithm R, with bits of SplitMix64.
  [[nodiscard]] std::size_t sample_slot(std::size_t index) const noexcept {
    if (index < sample_rows_) return index;
    std::uint64_t bits = (static_cast<std::uint64_t>(index) + 1) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::size_t>((bits ^ (bits >> 31)) % (static_cast<std::uint64_t>(index) + 1));
  }

  AlignedBuffer<float> sample_;
  AlignedBuffer<Interval> channel_ranges_;
  std::size_t channels_ = 0;
  std::size_t sample_rows_ = 0;
  std::size_t tokens_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
