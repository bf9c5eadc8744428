// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a QuantizedKvCache is made for, as plain data, and what it accepts.

#include <cstddef>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/kv_policy.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/row_transform.hpp>

namespace cbq {

/// What a QuantizedKvCache is made for.
struct QuantizedKvOptions {
  KvScheme scheme = {};
  KvPolicy policy = {};
  std::size_t heads = 0;           ///< key/value heads
  std::size_t width = 0;           ///< elements per head
  std::size_t capacity = 0;        ///< positions
  std::size_t largest_append = 0;  ///< rows of one append; with past_only so many stay exact at a time
  friend constexpr bool operator==(const QuantizedKvOptions&, const QuantizedKvOptions&) = default;
};

inline namespace CBQ_ABI {

/// Errc::bad_argument: no capacity or no rows per append; factors without `_2d` in the scheme, or none with it; a
/// factor of 0. Errc::not_finite: a factor.
[[nodiscard]] inline Status check_quantized_kv(const QuantizedKvOptions& options,
                                               const RowTransform& transform) noexcept {
  if (options.capacity == 0 || options.largest_append == 0) {
    return Error{Errc::bad_argument, "a cache needs room for a position and appends of a row", "capacity, rows",
                 ErrorText(options.capacity) << ", " << options.largest_append};
  }
  const bool given = transform.key_scales != nullptr || transform.key_offsets != nullptr ||
                     transform.value_scales != nullptr || transform.value_offsets != nullptr;
  if (options.scheme.smoothed != given) {
    return Error{Errc::bad_argument, "smoothing factors belong to schemes with `_2d`, and to no others",
                 kv_scheme_name(options.scheme).c_str(), given ? "factors" : "no factors"};
  }
  return check_row_transform(transform, {options.heads, options.width});
}

/// Errc::bad_shape unless a sequence of `size` positions takes these rows.
[[nodiscard]] inline Status check_append(const QuantizedKvOptions& options, std::size_t size,
                                         const MatrixView<const float>& keys,
                                         const MatrixView<const float>& values) noexcept {
  const std::size_t columns = options.heads * options.width;
  if (keys.columns != columns || values.columns != columns || keys.rows != values.rows) {
    return Error{Errc::bad_shape, "keys and values must be tokens x heads * width", "",
                 ErrorText(keys.rows) << " x " << keys.columns << ", " << values.rows << " x " << values.columns,
                 ErrorText("tokens x ") << columns};
  }
  if (const Status memory = check_kv_rows(keys, values); !memory) return memory;
  if (keys.rows > options.largest_append) {
    return Error{Errc::bad_shape, "more rows than the cache was created to append at once", "rows", keys.rows,
                 ErrorText("at most ") << options.largest_append};
  }
  if (keys.rows > options.capacity - size) {
    return Error{Errc::bad_shape, "the key/value cache is full", "positions", ErrorText(size) << " + " << keys.rows,
                 options.capacity};
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
