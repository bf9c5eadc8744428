// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values of one attention layer in float, laid out as the panels that float tiles read, so that attention
// packs nothing: keys as panels of 16 positions x width, values as panels of positions x 16 elements. Appending a row
// costs a copy.
//
//   keys    [kv head][position / 16][element][position % 16]
//   values  [kv head][element / 16][position][element % 16], padded with zeros to a multiple of 16 elements

#include <cstddef>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/view.hpp>

namespace cbq {

/// Read access to cached keys and values; plain data.
struct FloatKvView {
  const float* keys = nullptr;
  const float* values = nullptr;
  std::size_t heads = 0;     ///< key/value heads
  std::size_t width = 0;     ///< elements per head
  std::size_t capacity = 0;  ///< positions, a multiple of 16
  std::size_t size = 0;      ///< positions in use
};

inline namespace CBQ_ABI {

/// Errc::bad_shape unless keys and values that are appended have memory, and rows that do not overlap.
[[nodiscard]] inline Status check_kv_rows(const MatrixView<const float>& keys,
                                          const MatrixView<const float>& values) noexcept {
  if (keys.rows != 0 && (keys.data == nullptr || values.data == nullptr)) {
    return Error{Errc::bad_shape, "keys and values have no memory", "rows", keys.rows};
  }
  if (keys.rows > 1 && (keys.stride < keys.columns || values.stride < values.columns)) {
    return Error{Errc::bad_shape, "rows of keys or values overlap", "strides",
                 ErrorText(keys.stride) << ", " << values.stride, ErrorText("at least ") << keys.columns};
  }
  return {};
}

class FloatKvCache {
 public:
  static constexpr std::size_t panel = 16;

  FloatKvCache() = default;  ///< without room; what a cache becomes that is moved from
  FloatKvCache(FloatKvCache&& other) noexcept
      : keys_(std::move(other.keys_)),
        values_(std::move(other.values_)),
        view_(other.view_),
        value_width_(other.value_width_),
        limit_(other.limit_),
        written_(other.written_) {
    other.forget();
  }
  FloatKvCache& operator=(FloatKvCache&& other) noexcept {
    if (this == &other) return *this;
    keys_ = AlignedBuffer<float>(std::move(other.keys_));
    values_ = AlignedBuffer<float>(std::move(other.values_));
    view_ = other.view_;
    value_width_ = other.value_width_;
    limit_ = other.limit_;
    written_ = other.written_;
    other.forget();
    return *this;
  }
  FloatKvCache(const FloatKvCache&) = delete;
  FloatKvCache& operator=(const FloatKvCache&) = delete;
  ~FloatKvCache() = default;

  /// Room for `capacity` positions of `heads` key/value heads of `width` elements; memory is touched only when it is
  /// used. Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<FloatKvCache> create(std::size_t heads, std::size_t width,
                                                   std::size_t capacity) noexcept {
    if (heads == 0 || width == 0) {
      return Error{Errc::bad_shape, "a key/value cache needs heads of at least one element", "heads x width",
                   ErrorText(heads) << " x " << width};
    }
    const Result<std::size_t> padded = checked_sum(capacity, panel - 1);
    if (!padded) return padded.error();
    const Result<std::size_t> padded_width = checked_sum(width, panel - 1);
    if (!padded_width) return padded_width.error();
    FloatKvCache cache;
    cache.view_ = {.heads = heads, .width = width, .capacity = *padded / panel * panel};
    cache.value_width_ = *padded_width / panel * panel;
    const Result<std::size_t> keys = checked_product(heads, width, cache.view_.capacity);
    const Result<std::size_t> values = checked_product(heads, cache.value_width_, cache.view_.capacity);
    if (!keys) return keys.error();
    if (!values) return values.error();
    Result<AlignedBuffer<float>> key_memory = AlignedBuffer<float>::allocate(*keys);
    if (!key_memory) return key_memory.error();
    Result<AlignedBuffer<float>> value_memory = AlignedBuffer<float>::allocate(*values);
    if (!value_memory) return value_memory.error();
    cache.keys_ = *std::move(key_memory);
    cache.values_ = *std::move(value_memory);
    cache.limit_ = capacity;
    return cache;
  }

  [[nodiscard]] std::size_t size() const noexcept { return view_.size; }
  [[nodiscard]] std::size_t capacity() const noexcept { return limit_; }
  [[nodiscard]] FloatKvView view() const noexcept {
    FloatKvView view = view_;
    view.keys = keys_.data();
    view.values = values_.data();
    return view;
  }

  /// Forgets all positions from `size` on, for rollback; size <= size().
  void truncate(std::size_t size) noexcept { view_.size = size < view_.size ? size : view_.size; }
  void reset() noexcept { view_.size = 0; }

  /// Forgets the first `count` positions; the others move to their place. count <= size(). Costs a copy of what stays.
  void drop_front(std::size_t count) noexcept {
    const std::size_t left = view_.size - count;
    for (std::size_t head = 0; head < view_.heads; ++head) {
      float* keys = keys_.data() + head * view_.capacity * view_.width;
      for (std::size_t p = 0; p < left; ++p) {
        float* to = key_in(keys, p);
        const float* from = key_in(keys, p + count);
        for (std::size_t i = 0; i < view_.width; ++i) to[i * panel] = from[i * panel];
      }
      for (std::size_t first = 0; first < value_width_; first += panel) {
        float* values = values_.data() + (head * value_width_ + first) * view_.capacity;
        __builtin_memmove(values, values + count * panel, left * panel * sizeof(float));
      }
    }
    view_.size = left;
  }

  /// Copies the key or value of one head at a position < size() to `to` [width].
  void copy_key(std::size_t head, std::size_t position, float* to) const noexcept {
    const float* from = key_in(keys_.data() + head * view_.capacity * view_.width, position);
    for (std::size_t i = 0; i < view_.width; ++i) to[i] = from[i * panel];
  }
  void copy_value(std::size_t head, std::size_t position, float* to) const noexcept {
    const float* from = values_.data() + head * value_width_ * view_.capacity + position * panel;
    for (std::size_t i = 0; i < view_.width; ++i) to[i] = from[i / panel * panel * view_.capacity + i % panel];
  }

  /// Appends one position per row of `keys` and `values` [tokens x heads * width]. Errc::bad_shape, also when the cache
  /// is full; then nothing was appended.
  [[nodiscard]] Status append(const MatrixView<const float>& keys, const MatrixView<const float>& values) noexcept {
    const std::size_t columns = view_.heads * view_.width;
    if (keys.columns != columns || values.columns != columns || keys.rows != values.rows) {
      return Error{Errc::bad_shape, "keys and values must be tokens x heads * width", "",
                   ErrorText(keys.rows) << " x " << keys.columns << ", " << values.rows << " x " << values.columns,
                   ErrorText("tokens x ") << columns};
    }
    if (const Status memory = check_kv_rows(keys, values); !memory) return memory;
    if (keys.rows > limit_ - view_.size) {
      return Error{Errc::bad_shape, "the key/value cache is full", "positions",
                   ErrorText(view_.size) << " + " << keys.rows, limit_};
    }
    for (std::size_t t = 0; t < keys.rows; ++t) {
      for (std::size_t head = 0; head < view_.heads; ++head) {
        store_key(head, view_.size + t, row(keys, t) + head * view_.width);
        store_value(head, view_.size + t, row(values, t) + head * view_.width);
      }
    }
    view_.size += keys.rows;
    if (view_.size > written_) written_ = view_.size;
    return {};
  }

 private:
  void forget() noexcept {
    view_ = {};
    value_width_ = limit_ = written_ = 0;
  }
  /// First element of a position among the keys of one head; the next ones follow `panel` floats apart.
  template <class Float>
  [[nodiscard]] Float* key_in(Float* keys, std::size_t position) const noexcept {
    return keys + position / panel * panel * view_.width + position % panel;
  }
  void store_key(std::size_t head, std::size_t position, const float* key) noexcept {
    float* to = key_in(keys_.data() + head * view_.capacity * view_.width, position);
    // Tiles read whole panels: positions that do not exist yet must at least be numbers of this program.
    if (position % panel == 0 && position >= written_) __builtin_memset(to, 0, panel * view_.width * sizeof(float));
    for (std::size_t i = 0; i < view_.width; ++i) to[i * panel] = key[i];
  }
  void store_value(std::size_t head, std::size_t position, const float* value) noexcept {
    float* to = values_.data() + (head * value_width_ * view_.capacity) + position * panel;
    for (std::size_t first = 0; first < value_width_; first += panel) {
      for (std::size_t i = 0; i < panel; ++i) to[i] = first + i < view_.width ? value[first + i] : 0.0f;
      to += view_.capacity * panel;
    }
  }

  AlignedBuffer<float> keys_;
  AlignedBuffer<float> values_;
  FloatKvView view_ = {};
  std::size_t value_width_ = 0;
  std::size_t limit_ = 0;
  std::size_t written_ = 0;  ///< the most positions there ever were
};

}  // namespace CBQ_ABI
}  // namespace cbq
