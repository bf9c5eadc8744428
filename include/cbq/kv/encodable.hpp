// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one condition under which keys and values can be quantized, so that a cache can refuse a row when it is appended
// instead of failing when it becomes past.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include <cbq/core/result.hpp>

namespace cbq {

/// Key and value of one position, all heads.
struct KvRow {
  const float* key = nullptr;
  const float* value = nullptr;
  std::size_t columns = 0;  ///< of each
};

inline namespace CBQ_ABI {

/// Half's largest number. A group of elements up to it has an offset and, with 2 bits or more, a scale in half.
inline constexpr float largest_kv_element = 65504.0f;

/// Index of the first element that is NaN or beyond `largest` in magnitude, or row.size().
[[nodiscard]] inline std::size_t first_beyond(std::span<const float> row, float largest) noexcept {
  // By its bits, so that -ffast-math cannot remove the test; one pass without branches, a second only for an error.
  constexpr std::uint32_t magnitude = 0x7fffffffu;
  const auto most = __builtin_bit_cast(std::uint32_t, largest);
  bool beyond = false;
  for (const float x : row) beyond |= (__builtin_bit_cast(std::uint32_t, x) & magnitude) > most;
  std::size_t i = beyond ? 0 : row.size();
  while (i < row.size() && (__builtin_bit_cast(std::uint32_t, row[i]) & magnitude) <= most) ++i;
  return i;
}

/// Whether row number `number`, which became `transformed`, can be quantized. Errc::not_finite where it held NaN or
/// infinity, Errc::bad_argument where it became too large.
[[nodiscard]] inline Status check_encodable(const KvRow& row, const KvRow& transformed, std::size_t number) noexcept {
  const auto where = [number](const char* part, std::size_t element) {
    return ErrorText(part) << " of row " << number << ", element " << element;
  };
  const std::size_t key = first_beyond({transformed.key, row.columns}, largest_kv_element);
  const std::size_t value = first_beyond({transformed.value, row.columns}, largest_kv_element);
  if (key == row.columns && value == row.columns) return {};
  constexpr float largest = std::numeric_limits<float>::max();
  constexpr const char* not_finite = "a key or value is NaN or infinite";
  const std::size_t raw_key = first_beyond({row.key, row.columns}, largest);
  if (raw_key != row.columns) return Error{Errc::not_finite, not_finite, where("key", raw_key)};
  const std::size_t raw_value = first_beyond({row.value, row.columns}, largest);
  if (raw_value != row.columns) return Error{Errc::not_finite, not_finite, where("value", raw_value)};
  return Error{Errc::bad_argument, "a transformed key or value does not fit in half",
               key != row.columns ? where("key", key) : where("value", value), "", "at most 65504"};
}

}  // namespace CBQ_ABI
}  // namespace cbq
