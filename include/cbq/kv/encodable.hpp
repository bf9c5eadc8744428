// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one condition under which keys and values can be quantized, so that a cache can refuse a row when it is appended
// instead of failing when it becomes past.

#include <xsimd/xsimd.hpp>

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
  // By its bits, so that -ffast-math cannot remove the test. A difference below 0 is an element beyond.
  using Ints = xsimd::batch<std::int32_t>;
  constexpr std::int32_t magnitude = 0x7fffffff;
  const auto most = __builtin_bit_cast(std::int32_t, largest);
  const auto below = [=](float x) { return most - (__builtin_bit_cast(std::int32_t, x) & magnitude); };
  Ints differences(0);
  std::size_t i = 0;
  for (; row.size() - i >= Ints::size; i += Ints::size) {
    const auto bits = xsimd::bitwise_cast<std::int32_t>(xsimd::batch<float>::load_unaligned(row.data() + i));
    differences = differences | (Ints(most) - (bits & Ints(magnitude)));
  }
  if (xsimd::any(differences < Ints(0))) i = 0;
  while (i < row.size() && below(row[i]) >= 0) ++i;
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
