// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values of one attention layer in INT8, one scale per head for all positions, so that both products of
// attention are integer (<cbq/kv/integer_attention.hpp>). Scales are static, from calibration: what lies beyond is
// clipped, as static means. Or they are dynamic: the first rows of a head set its scale; it doubles as often as a later
// row needs, and what is stored is halved with it, rounded to even. One byte per element; appending costs a division
// per element.
//
//   code = clamp(round(x / scale), -127, 127), stored + 128;  dynamic scale = max |x| / 127
//
//   [head][page of 64 positions]  keys: [position / 16][element / 32][element / 4 % 8][position % 16][element % 4]
//                                 values: [element / 16][position / 32][position / 4 % 8][element % 16][position % 4]
//
// which is what the kernels of <cbq/kv/kv_tile.hpp> read, without headers.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/int8_rows.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/row_transform.hpp>

namespace cbq {

/// Static scales of one layer, each the value of one code; all empty: dynamic ones.
struct Int8KvScales {
  std::span<const float> queries = {};  ///< per query head
  std::span<const float> keys = {};     ///< per key/value head
  std::span<const float> values = {};   ///< per key/value head
};

/// Read access to an Int8KvCache; plain data.
struct Int8KvView {
  const std::byte* pages = nullptr;
  std::size_t heads = 0;
  std::size_t width = 0;
  std::size_t head_bytes = 0;                ///< from one head to the next
  std::size_t size = 0;                      ///< positions in use
  const float* key_scales = nullptr;         ///< [heads]
  const float* value_scales = nullptr;       ///< [heads]
  std::span<const float> query_scales = {};  ///< per query head; empty: every query has its own
};

inline namespace CBQ_ABI {

/// Panels of 16 keys in a page.
inline constexpr std::size_t int8_key_panels = kv_page_positions / panel_outputs;

/// Bytes of the keys, and of the values, of one head and page.
[[nodiscard]] constexpr std::size_t int8_key_bytes(std::size_t width) noexcept {
  return divide_up(width, block_inputs) * block_inputs * kv_page_positions;
}
[[nodiscard]] constexpr std::size_t int8_value_bytes(std::size_t width) noexcept {
  return divide_up(width, panel_outputs) * panel_outputs * kv_page_positions;
}

class Int8KvCache {
 public:
  Int8KvCache() = default;  ///< without room; what a cache becomes that is moved from
  Int8KvCache(Int8KvCache&& other) noexcept { *this = std::move(other); }
  Int8KvCache& operator=(Int8KvCache&& other) noexcept {
    if (this == &other) return *this;
    pages_ = AlignedBuffer<std::byte>(std::move(other.pages_));
    scales_ = AlignedBuffer<float>(std::move(other.scales_));
    view_ = other.view_;
    limit_ = other.limit_;
    static_ = other.static_;
    other.view_ = {};
    other.limit_ = 0;
    return *this;
  }
  Int8KvCache(const Int8KvCache&) = delete;
  Int8KvCache& operator=(const Int8KvCache&) = delete;
  ~Int8KvCache() = default;

  /// Room for `capacity` positions of `heads` key/value heads of `width` elements, at most 256. Static scales are
  /// copied. Errc::bad_shape, Errc::unsupported (width), Errc::bad_argument (scales that are not finite or below
  /// 2^-100), Errc::out_of_memory.
  [[nodiscard]] static Result<Int8KvCache> create(const KvHeads& heads, std::size_t capacity,
                                                  const Int8KvScales& scales = {}) noexcept {
    if (const Status valid = check(heads, scales); !valid) return valid.error();
    const Result<std::size_t> padded = checked_sum(capacity, kv_page_positions - 1);
    if (!padded) return padded.error();
    Int8KvCache cache;
    const std::size_t page = int8_key_bytes(heads.width) + int8_value_bytes(heads.width);
    const Result<std::size_t> head_bytes = checked_product(*padded / kv_page_positions, page);
    if (!head_bytes) return head_bytes.error();
    const Result<std::size_t> bytes = checked_product(heads.heads, *head_bytes);
    if (!bytes) return bytes.error();
    const Result<std::size_t> own_scales = checked_product(heads.heads, std::size_t{2});
    if (!own_scales) return own_scales.error();
    const Result<std::size_t> all_scales = checked_sum(*own_scales, scales.queries.size());
    if (!all_scales) return all_scales.error();
    Result<AlignedBuffer<std::byte>> pages = AlignedBuffer<std::byte>::allocate(*bytes);
    if (!pages) return pages.error();
    Result<AlignedBuffer<float>> memory = AlignedBuffer<float>::allocate(*all_scales);
    if (!memory) return memory.error();
    cache.pages_ = *std::move(pages);
    cache.scales_ = *std::move(memory);
    cache.limit_ = capacity;
    cache.static_ = !scales.keys.empty();
    for (std::size_t h = 0; h < heads.heads; ++h) {
      cache.scales_[h] = cache.static_ ? scales.keys[h] : 0.0f;
      cache.scales_[heads.heads + h] = cache.static_ ? scales.values[h] : 0.0f;
    }
    for (std::size_t h = 0; h < scales.queries.size(); ++h) cache.scales_[2 * heads.heads + h] = scales.queries[h];
    cache.view_ = {.heads = heads.heads, .width = heads.width, .head_bytes = *head_bytes};
    return cache;
  }

  [[nodiscard]] std::size_t size() const noexcept { return view_.size; }
  [[nodiscard]] std::size_t capacity() const noexcept { return limit_; }
  [[nodiscard]] Int8KvView view() const noexcept {
    Int8KvView view = view_;
    view.pages = pages_.data();
    view.key_scales = scales_.data();
    view.value_scales = scales_.data() + view_.heads;
    view.query_scales = {scales_.data() + 2 * view_.heads, scales_.size() - 2 * view_.heads};
    return view;
  }

  /// Forgets all positions from `size` on, for rollback. Dynamic scales that forgotten positions widened stay wide, and
  /// what is left stays as coarse as they made it: also after an error in a model, which truncates.
  void truncate(std::size_t size) noexcept { view_.size = size < view_.size ? size : view_.size; }
  /// Forgets all positions; dynamic scales are found anew.
  void reset() noexcept { view_.size = 0; }

  /// Appends one position per row of `keys` and `values` [tokens x heads * width]. Errc::bad_shape, also when the cache
  /// is full, Errc::not_finite (also of elements beyond 2^100); then nothing was appended.
  [[nodiscard]] Status append(const MatrixView<const float>& keys, const MatrixView<const float>& values) noexcept {
    if (const Status fits = check_append(keys, values); !fits) return fits;
    for (std::size_t head = 0; head < view_.heads; ++head) {
      widen(head, keys, Part::keys);
      widen(head, values, Part::values);
      for (std::size_t t = 0; t < keys.rows; ++t) {
        store_key(head, view_.size + t, row(keys, t) + head * view_.width);
        store_value(head, view_.size + t, row(values, t) + head * view_.width);
      }
    }
    view_.size += keys.rows;
    return {};
  }

  /// Code of one element of a key or value at a position < size().
  [[nodiscard]] int key_code(std::size_t head, std::size_t position, std::size_t element) const noexcept {
    return static_cast<int>(pages_[key_at(head, position) + key_element(element)]) - 128;
  }
  [[nodiscard]] int value_code(std::size_t head, std::size_t position, std::size_t element) const noexcept {
    return static_cast<int>(pages_[value_at(head, position) + value_element(element)]) - 128;
  }

 private:
  enum class Part : unsigned char { keys, values };

  [[nodiscard]] static Status check(const KvHeads& heads, const Int8KvScales& scales) noexcept;
  [[nodiscard]] Status check_append(const MatrixView<const float>& keys,
                                    const MatrixView<const float>& values) const noexcept;

  [[nodiscard]] std::size_t page_bytes() const noexcept {
    return int8_key_bytes(view_.width) + int8_value_bytes(view_.width);
  }
  [[nodiscard]] std::size_t page_at(std::size_t head, std::size_t position) const noexcept {
    return head * view_.head_bytes + position / kv_page_positions * page_bytes();
  }
  /// Of element 0; the others lie key_element() and value_element() further on.
  [[nodiscard]] std::size_t key_at(std::size_t head, std::size_t position) const noexcept {
    const std::size_t inside = position % kv_page_positions;
    return page_at(head, position) + inside / panel_outputs * (int8_key_bytes(view_.width) / int8_key_panels) +
           inside % panel_outputs * step_inputs;
  }
  [[nodiscard]] std::size_t value_at(std::size_t head, std::size_t position) const noexcept {
    const std::size_t inside = position % kv_page_positions;
    return page_at(head, position) + int8_key_bytes(view_.width) +
           inside / step_inputs * (panel_outputs * step_inputs) + inside % step_inputs;
  }
  [[nodiscard]] static constexpr std::size_t key_element(std::size_t i) noexcept {
    return i / step_inputs * (panel_outputs * step_inputs) + i % step_inputs;
  }
  [[nodiscard]] static constexpr std::size_t value_element(std::size_t i) noexcept {
    return i / panel_outputs * (panel_outputs * kv_page_positions) + i % panel_outputs * step_inputs;
  }

  void store_key(std::size_t head, std::size_t position, const float* x) noexcept {
    // A page is written as a whole before its first position: kernels read all of it.
    if (position % kv_page_positions == 0) std::memset(pages_.data() + page_at(head, position), 128, page_bytes());
    std::int8_t codes[int8_most_width];
    encode_int8({x, view_.width}, scales_[head], codes);
    std::byte* to = pages_.data() + key_at(head, position);
    for (std::size_t i = 0; i < view_.width; ++i) to[key_element(i)] = stored(codes[i]);
  }
  void store_value(std::size_t head, std::size_t position, const float* x) noexcept {
    std::int8_t codes[int8_most_width];
    encode_int8({x, view_.width}, scales_[view_.heads + head], codes);
    std::byte* to = pages_.data() + value_at(head, position);
    for (std::size_t i = 0; i < view_.width; ++i) to[value_element(i)] = stored(codes[i]);
  }
  [[nodiscard]] static std::byte stored(std::int8_t code) noexcept { return static_cast<std::byte>(code + 128); }

  /// Makes a dynamic scale large enough for the head's part of `rows`.
  void widen(std::size_t head, const MatrixView<const float>& rows, Part part) noexcept {
    if (static_) return;
    float largest = 0.0f;
    for (std::size_t t = 0; t < rows.rows; ++t) {
      const float own = max_abs({row(rows, t) + head * view_.width, view_.width});
      largest = own > largest ? own : largest;
    }
    float& scale = scales_[part == Part::keys ? head : view_.heads + head];
    const float wanted = int8_scale(largest);
    if (view_.size == 0) {
      scale = wanted;
      return;
    }
    int doublings = 0;
    for (; scale < wanted; ++doublings) scale *= 2.0f;
    if (doublings == 0) return;
    const std::size_t first = part == Part::keys ? 0 : int8_key_bytes(view_.width);
    const std::size_t count = part == Part::keys ? int8_key_bytes(view_.width) : int8_value_bytes(view_.width);
    for (std::size_t p = 0; p < view_.size; p += kv_page_positions) {
      std::byte* codes = pages_.data() + page_at(head, p) + first;
      for (std::size_t i = 0; i < count; ++i) codes[i] = halved(codes[i], doublings);
    }
  }
  /// A stored code over 2^doublings, rounded to nearest even.
  [[nodiscard]] static std::byte halved(std::byte code, int doublings) noexcept {
    const int value = static_cast<int>(code) - 128;
    if (doublings > 8) return std::byte{128};
    const int odd = (value >> doublings) & 1;
    return static_cast<std::byte>(((value + (1 << (doublings - 1)) - 1 + odd) >> doublings) + 128);
  }

  AlignedBuffer<std::byte> pages_;
  AlignedBuffer<float> scales_;  // keys, values, queries
  Int8KvView view_;
  std::size_t limit_ = 0;
  bool static_ = false;
};

inline Status Int8KvCache::check(const KvHeads& heads, const Int8KvScales& scales) noexcept {
  if (heads.heads == 0 || heads.width == 0) {
    return Error{Errc::bad_shape, "a key/value cache needs heads of at least one element", "heads x width",
                 ErrorText(heads.heads) << " x " << heads.width};
  }
  if (heads.width > int8_most_width) {
    return Error{Errc::unsupported, "attention heads have at most 256 elements", "head width", heads.width,
                 int8_most_width};
  }
  const bool none = scales.queries.empty() && scales.keys.empty() && scales.values.empty();
  if (!none && (scales.keys.size() != heads.heads || scales.values.size() != heads.heads || scales.queries.empty() ||
                scales.queries.size() % heads.heads != 0)) {
    return Error{Errc::bad_shape, "static scales are one per head of queries, keys and values", "scales",
                 ErrorText(scales.queries.size()) << ", " << scales.keys.size() << ", " << scales.values.size(),
                 heads.heads};
  }
  for (const std::span<const float>& each : {scales.queries, scales.keys, scales.values}) {
    for (const float scale : each) {
      if (is_finite(scale) && scale >= smallest_scale) continue;
      return Error{Errc::bad_argument, "a scale must be finite and at least 2^-100", "scales"};
    }
  }
  return {};
}

inline Status Int8KvCache::check_append(const MatrixView<const float>& keys,
                                        const MatrixView<const float>& values) const noexcept {
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
  if (const Status finite = check_int8_rows(keys, "keys"); !finite) return finite;
  return check_int8_rows(values, "values");
}

}  // namespace CBQ_ABI
}  // namespace cbq
