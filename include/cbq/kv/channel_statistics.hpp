// SPDX-License-Identifier: Apache-2.0
#pragma once

// KvChannelStatistics: what calibration must remember of the queries, keys and values of a layer to smooth its cache:
// per channel of a key/value head the mean and the variance of each. Sums are taken row by row in double, so the
// cutting of a text into calls changes no bit. Nine numbers per channel, one pass over each row. Rows that are not
// finite are an error, never skipped.

#include <cstddef>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Means and deviations of one kind of rows, around their first row, so that no digits cancel.
class RowMoments {
 public:
  [[nodiscard]] static Result<RowMoments> create(std::size_t channels) noexcept {
    Result<AlignedBuffer<double>> sums = AlignedBuffer<double>::allocate(channels);
    Result<AlignedBuffer<double>> squares = AlignedBuffer<double>::allocate(channels);
    Result<AlignedBuffer<float>> firsts = AlignedBuffer<float>::allocate(channels);
    if (!sums) return sums.error();
    if (!squares) return squares.error();
    if (!firsts) return firsts.error();
    RowMoments moments;
    moments.sums_ = *std::move(sums);
    moments.squares_ = *std::move(squares);
    moments.firsts_ = *std::move(firsts);
    return moments;
  }

  [[nodiscard]] std::size_t channels() const noexcept { return sums_.size(); }
  [[nodiscard]] std::size_t rows() const noexcept { return rows_; }
  /// 0 before the first row; channel < channels().
  [[nodiscard]] double mean(std::size_t channel) const noexcept {
    return rows_ == 0 ? 0.0 : static_cast<double>(firsts_[channel]) + sums_[channel] / static_cast<double>(rows_);
  }
  /// Mean of the squared distance from the mean.
  [[nodiscard]] double variance(std::size_t channel) const noexcept {
    if (rows_ == 0) return 0.0;
    const double n = static_cast<double>(rows_), shift = sums_[channel] / n;
    const double variance = squares_[channel] / n - shift * shift;
    return variance < 0 ? 0.0 : variance;
  }
  [[nodiscard]] double second_moment(std::size_t channel) const noexcept {
    return variance(channel) + mean(channel) * mean(channel);
  }

  /// Adds a row: element(channel) is finite.
  template <class Element>
  void add(Element&& element) noexcept {
    const bool first = rows_++ == 0;
    for (std::size_t c = 0; c < channels(); ++c) {
      const float x = element(c);
      if (first) {
        firsts_[c] = x;
        sums_[c] = squares_[c] = 0;
      }
      const double off = static_cast<double>(x) - static_cast<double>(firsts_[c]);
      sums_[c] += off;
      squares_[c] += off * off;
    }
  }

 private:
  AlignedBuffer<double> sums_;
  AlignedBuffer<double> squares_;
  AlignedBuffer<float> firsts_;
  std::size_t rows_ = 0;
};

/// What smoothing must know of the queries, keys (both after rotary embedding) and values of one layer, over any number
/// of calls; the cutting into calls changes no bit.
class KvChannelStatistics {
 public:
  /// Of no tokens. Errc::bad_shape (no heads, no width, too many), Errc::out_of_memory.
  [[nodiscard]] static Result<KvChannelStatistics> create(const KvHeads& heads) noexcept {
    const Result<std::size_t> channels = checked_product(heads.heads, heads.width);
    if (!channels) return channels.error();
    if (*channels == 0) return Error{Errc::bad_shape, "statistics need a channel", "heads x width", *channels};
    KvChannelStatistics statistics;
    statistics.heads_ = heads;
    for (RowMoments* moments : {&statistics.queries_, &statistics.keys_, &statistics.values_}) {
      Result<RowMoments> made = RowMoments::create(*channels);
      if (!made) return made.error();
      *moments = *std::move(made);
    }
    return statistics;
  }

  [[nodiscard]] const KvHeads& heads() const noexcept { return heads_; }
  [[nodiscard]] std::size_t tokens() const noexcept { return keys_.rows(); }
  /// Of all query heads that read a key/value head.
  [[nodiscard]] const RowMoments& queries() const noexcept { return queries_; }
  [[nodiscard]] const RowMoments& keys() const noexcept { return keys_; }
  [[nodiscard]] const RowMoments& values() const noexcept { return values_; }

  /// Adds queries [tokens x query heads * width], keys and values [tokens x heads * width]; as many consecutive query
  /// heads read each key/value head. `layer` names them in errors. Errc::bad_shape, also for statistics that were moved
  /// from, and Errc::not_finite naming layer, channel and token; nothing is added then.
  [[nodiscard]] Status add(const MatrixView<const float>& queries, const MatrixView<const float>& keys,
                           const MatrixView<const float>& values, const ErrorText& layer) noexcept {
    const std::size_t channels = keys_.channels();
    if (channels == 0 || keys.columns != channels || values.columns != channels || queries.columns == 0 ||
        queries.columns % channels != 0 || values.rows != keys.rows || queries.rows != keys.rows) {
      return Error{Errc::bad_shape, "queries, keys and values do not fit the statistics", layer, keys.columns,
                   channels};
    }
    if (const Status ok = check_finite(queries, layer, "query"); !ok) return ok;
    if (const Status ok = check_finite(keys, layer, "key"); !ok) return ok;
    if (const Status ok = check_finite(values, layer, "value"); !ok) return ok;
    const std::size_t width = heads_.width, shared = queries.columns / channels;
    for (std::size_t t = 0; t < keys.rows; ++t) {
      keys_.add([&](std::size_t c) { return row(keys, t)[c]; });
      values_.add([&](std::size_t c) { return row(values, t)[c]; });
      for (std::size_t i = 0; i < shared; ++i) {  // the i-th query head of every key/value head
        queries_.add([&](std::size_t c) { return row(queries, t)[(c / width * shared + i) * width + c % width]; });
      }
    }
    return {};
  }

 private:
  [[nodiscard]] Status check_finite(const MatrixView<const float>& x, const ErrorText& layer,
                                    const char* what) const noexcept {
    for (std::size_t t = 0; t < x.rows; ++t) {
      for (std::size_t c = 0; c < x.columns; ++c) {
        if (is_finite(row(x, t)[c])) continue;
        ErrorText where = layer;
        where << ", " << what << " channel " << c << ", token " << tokens() + t;
        return Error{Errc::not_finite, "a calibration activation is NaN or infinite", where};
      }
    }
    return {};
  }

  KvHeads heads_;
  RowMoments queries_;
  RowMoments keys_;
  RowMoments values_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
