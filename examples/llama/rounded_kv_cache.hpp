// SPDX-License-Identifier: Apache-2.0
#pragma once

// A key/value cache in float whose rows are rounded as a KvScheme says: what the packed cache holds, without its
// integer attention, so that the loss of either can be told apart; or what it would hold if keys were quantized before
// their rotary embedding. Rows that are still exact are kept beside it until they are rounded. Cost: that of the float
// cache, and as much memory again.

#include <cstddef>
#include <memory>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/quantized_kv_options.hpp>
#include <cbq/nn/rotary.hpp>

namespace cbq_llama {

class RoundedKvCache {
 public:
  /// `transform` is applied to rows before they are rounded and undone after; the factors it points to must outlive
  /// the cache. With `rotary`, keys are rotated back before and rotated after; a row's position is its index. Policies
  /// are not looked at. Errc::bad_shape, Errc::unsupported, Errc::out_of_memory.
  [[nodiscard]] static cbq::Result<RoundedKvCache> create(const cbq::QuantizedKvOptions& options,
                                                          const cbq::RowTransform& transform,
                                                          std::shared_ptr<const cbq::RotaryTable> rotary = nullptr);

  [[nodiscard]] std::size_t size() const { return floats_.size(); }
  [[nodiscard]] std::size_t capacity() const { return floats_.capacity(); }
  /// All rows, the past ones rounded.
  [[nodiscard]] const cbq::FloatKvCache& floats() const { return floats_; }

  /// Appends rows [tokens x heads * width]. With past_only they stay exact until the next call. Errc::bad_shape,
  /// Errc::not_finite.
  [[nodiscard]] cbq::Status append(const cbq::MatrixView<const float>& keys,
                                   const cbq::MatrixView<const float>& values);
  /// Forgets all positions from `size` on. Of what is left, rows of a page that is no longer whole become exact again
  /// where whole pages are rounded.
  void truncate(std::size_t size);

 private:
  struct Rows {
    std::vector<float> keys;
    std::vector<float> values;
  };

  [[nodiscard]] cbq::Status settle();
  [[nodiscard]] cbq::Status round_rows(std::size_t first, std::size_t count, Rows& rounded);
  [[nodiscard]] cbq::Status rotate(const cbq::MatrixView<float>& keys, std::size_t first,
                                   cbq::RotaryDirection direction) const;
  [[nodiscard]] cbq::Status round_keys(std::size_t head, const cbq::MatrixView<float>& rows);
  [[nodiscard]] cbq::Status round_channels(std::size_t head, const cbq::MatrixView<float>& rows);
  [[nodiscard]] cbq::Status round_values(std::size_t head, const cbq::MatrixView<float>& rows);

  cbq::KvScheme scheme_;
  cbq::KvLayout layout_;
  cbq::RowTransform transform_;
  std::shared_ptr<const cbq::RotaryTable> rotary_;  // null: keys are rounded as they come
  cbq::FloatKvCache floats_;
  cbq::AlignedBuffer<std::byte> page_;  // of a head, for one position or 64
  Rows given_;                          // all rows, as they came
  std::size_t rounded_ = 0;             // positions before it are rounded in floats_
};

}  // namespace cbq_llama
