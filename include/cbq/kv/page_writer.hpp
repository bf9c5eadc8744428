// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of a float cache into pages: what a QuantizedKvCache does with positions that became past. Rows are transformed
// and were checked when they were appended (encodable.hpp), so nothing fails and nothing is allocated.

#include <cstddef>
#include <cstring>
#include <span>

#include <cbq/core/view.hpp>
#include <cbq/kv/encodable.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/key_block.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/kv/value_block.hpp>

namespace cbq {

/// A row of a float cache and its position (0 .. 63) in a page.
struct PageRow {
  std::size_t row = 0;
  std::size_t position = 0;
};

/// Where the 64 keys of a page come from.
struct PageKeys {
  std::size_t hidden = 0;  ///< first positions, which no query sees and which have no rows; below 64
  std::size_t before = 0;  ///< positions up to here are in the page already, not below `hidden`
  std::size_t row = 0;     ///< of the float cache, for position `before`
};

inline namespace CBQ_ABI {

namespace page_writer {

/// Writes the row whose heads are key(head) and value(head).
template <class KeyOf, class ValueOf>
void write_heads(const KvLayout& layout, const RowTransform& transform, std::size_t position, std::byte* page,
                 const KeyOf& key, const ValueOf& value) noexcept {
  for (std::size_t head = 0; head < layout.heads; ++head) {
    std::byte* const keys = page + kv_keys_offset(layout, head);
    std::byte* const values = page + kv_values_offset(layout, head);
    if (head + 1 < layout.heads) {
      if (!layout.channel_keys) prefetch_key(layout, position, keys + layout.head_bytes);
      prefetch_value(layout, position, values + layout.head_bytes);
    }
    if (!layout.channel_keys) {
      (void)encode_key(layout, position, key(head), keys, key_refinement(transform, head, layout.width));
    }
    (void)encode_value(layout, position, value(head), values, value_refinement(transform));
  }
}

}  // namespace page_writer

/// Writes a row of `exact` to a page, refined as `transform` says; with channel_keys its values only.
inline void write_row(const KvLayout& layout, const RowTransform& transform, const FloatKvCache& exact,
                      const PageRow& from, std::byte* page) noexcept {
  float memory[key_codes::most_channels];
  const std::span<float> x(memory, layout.width);
  const auto key = [&](std::size_t head) -> std::span<const float> {
    exact.copy_key(head, from.row, x.data());
    return x;
  };
  const auto value = [&](std::size_t head) -> std::span<const float> {
    exact.copy_value(head, from.row, x.data());
    return x;
  };
  page_writer::write_heads(layout, transform, from.position, page, key, value);
}

/// The same for a row that lies in one piece, and its position in the page.
inline void write_row(const KvLayout& layout, const RowTransform& transform, const KvRow& row, std::size_t position,
                      std::byte* page) noexcept {
  const auto head_of = [&](const float* elements) {
    return [&, elements](std::size_t head) { return std::span(elements + head * layout.width, layout.width); };
  };
  page_writer::write_heads(layout, transform, position, page, head_of(row.key), head_of(row.value));
}

/// Writes all keys of a page with channel_keys; `memory` has room for 64 * width floats. Keys that the page held
/// before, left there by a rollback, are quantized again from what they decode to, cut to half's largest number: scales
/// are rounded up, and what reaches beyond it could not be encoded for ever. Hidden ones must not widen a channel's
/// range: they become copies of the first that is seen.
inline void write_page_keys(const KvLayout& layout, const FloatKvCache& exact, const PageKeys& from, float* memory,
                            std::byte* page) noexcept {
  const auto keys = matrix_view(memory, kv_page_positions, layout.width);
  for (std::size_t head = 0; head < layout.heads; ++head) {
    std::byte* const bytes = page + kv_keys_offset(layout, head);
    for (std::size_t p = from.hidden; p < kv_page_positions; ++p) {
      if (p < from.before) {
        decode_key(layout, bytes, p, row(keys, p));
        for (std::size_t c = 0; c < layout.width; ++c) {
          const float x = row(keys, p)[c];
          row(keys, p)[c] = x > largest_kv_element ? largest_kv_element : x;
        }
      } else {
        exact.copy_key(head, from.row + p - from.before, row(keys, p));
      }
    }
    for (std::size_t p = 0; p < from.hidden; ++p) {
      std::memcpy(row(keys, p), row(keys, from.hidden), layout.width * sizeof(float));
    }
    (void)encode_key_channels(layout, as_const(keys), bytes);
  }
}

/// Copies row `p` of `from`: all heads' keys to `key` and values to `value` [heads * width].
inline void copy_row(const FloatKvCache& from, std::size_t p, float* key, float* value) noexcept {
  const FloatKvView shape = from.view();
  for (std::size_t head = 0; head < shape.heads; ++head) {
    from.copy_key(head, p, key + head * shape.width);
    from.copy_value(head, p, value + head * shape.width);
  }
}

/// Appends all rows of `from` to `to`, a cache of the same heads with room for them; `memory` holds a row of keys and
/// one of values.
inline void copy_rows(const FloatKvCache& from, FloatKvCache& to, float* memory) noexcept {
  const FloatKvView shape = from.view();
  const std::size_t columns = shape.heads * shape.width;
  const auto key = matrix_view<const float>(memory, 1, columns);
  const auto value = matrix_view<const float>(memory + columns, 1, columns);
  for (std::size_t p = 0; p < shape.size; ++p) {
    copy_row(from, p, memory, memory + columns);
    (void)to.append(key, value);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
