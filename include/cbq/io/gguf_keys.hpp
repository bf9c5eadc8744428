// SPDX-License-Identifier: Apache-2.0
#pragma once

// GgufKeys: the metadata of a GGUF file that is to be written (gguf_writer.hpp), of every kind that GgufMetadata reads.
// Values are encoded as they are added, so what is held is what the file will hold; layout in gguf.hpp.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/gguf_metadata.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Numbers that a metadata value can be, by their exact type.
template <class T>
concept GgufNumber =
    std::is_same_v<T, std::uint8_t> || std::is_same_v<T, std::int8_t> || std::is_same_v<T, std::uint16_t> ||
    std::is_same_v<T, std::int16_t> || std::is_same_v<T, std::uint32_t> || std::is_same_v<T, std::int32_t> ||
    std::is_same_v<T, std::uint64_t> || std::is_same_v<T, std::int64_t> || std::is_same_v<T, float> ||
    std::is_same_v<T, double> || std::is_same_v<T, bool>;

/// The kind that a number of type T is stored as.
template <GgufNumber T>
[[nodiscard]] constexpr GgufKind gguf_kind() noexcept {
  if constexpr (std::is_same_v<T, bool>) return GgufKind::boolean;
  if constexpr (std::is_same_v<T, float>) return GgufKind::f32;
  if constexpr (std::is_same_v<T, double>) return GgufKind::f64;
  constexpr bool is_signed = std::is_signed_v<T>;
  switch (sizeof(T)) {
    case 1:
      return is_signed ? GgufKind::i8 : GgufKind::u8;
    case 2:
      return is_signed ? GgufKind::i16 : GgufKind::u16;
    case 4:
      return is_signed ? GgufKind::i32 : GgufKind::u32;
    default:
      return is_signed ? GgufKind::i64 : GgufKind::u64;
  }
}

/// Metadata to be written, in the order it is added. The first key that breaks a rule is kept as status() and refused
/// by GgufWriter::create().
class GgufKeys {
 public:
  explicit GgufKeys(const GgufLimits& limits = {}) : limits_(limits) {}

  /// A number or a boolean. Errc::bad_argument: an empty, overlong or repeated key, more keys than the limits allow.
  template <GgufNumber T>
  GgufKeys& add(std::string_view key, T value) {
    if (begin(key, gguf_kind<T>())) append(value);
    return *this;
  }
  /// A text. Errors as above, and a text above the limits.
  GgufKeys& add(std::string_view key, std::string_view text) {
    if (begin(key, GgufKind::text)) append_text(key, text);
    return *this;
  }
  /// An array, perhaps empty. Errors as above, and an array above the limits.
  template <GgufNumber T>
  GgufKeys& add(std::string_view key, std::span<const T> values) {
    if (!begin_array(key, gguf_kind<T>(), values.size())) return *this;
    for (const T value : values) append(value);
    return *this;
  }
  GgufKeys& add(std::string_view key, std::span<const std::string> texts) {
    if (!begin_array(key, GgufKind::text, texts.size())) return *this;
    for (const std::string& text : texts) append_text(key, text);
    return *this;
  }

  [[nodiscard]] Status status() const noexcept { return status_; }
  [[nodiscard]] std::size_t size() const noexcept { return keys_.size(); }
  [[nodiscard]] bool has(std::string_view key) const noexcept {
    return std::binary_search(keys_.begin(), keys_.end(), key);
  }
  /// All of them as they stand in the file.
  [[nodiscard]] std::string_view bytes() const noexcept { return bytes_; }

 private:
  static constexpr std::size_t largest_key = 65535;

  template <class T>
  void append(T number) {
    bytes_.append(reinterpret_cast<const char*>(&number), sizeof number);
  }
  void append_text(std::string_view key, std::string_view text) {
    if (text.size() > limits_.text_bytes) {
      refuse("a text is too long", key, text.size(), limits_.text_bytes);
      return;
    }
    append(std::uint64_t{text.size()});
    bytes_.append(text);
  }
  void refuse(const char* what, std::string_view key, std::size_t got, std::size_t most) {
    if (status_) status_ = Error{Errc::bad_argument, what, key, got, ErrorText("at most ") << most};
  }

  bool begin(std::string_view key, GgufKind kind) {
    if (!status_) return false;
    const auto at = std::lower_bound(keys_.begin(), keys_.end(), key);
    if (key.empty()) {
      status_ = Error{Errc::bad_argument, "an empty metadata key"};
    } else if (key.size() > largest_key) {
      refuse("a metadata key is too long", key, key.size(), largest_key);
    } else if (at != keys_.end() && *at == key) {
      status_ = Error{Errc::bad_argument, "the same metadata key twice", key};
    } else if (keys_.size() >= limits_.keys) {
      refuse("too many metadata keys", key, keys_.size() + 1, limits_.keys);
    }
    if (!status_) return false;
    keys_.emplace(at, key);
    append(std::uint64_t{key.size()});
    bytes_.append(key);
    append(static_cast<std::uint32_t>(kind));
    return true;
  }
  bool begin_array(std::string_view key, GgufKind element, std::size_t count) {
    if (!begin(key, GgufKind::array)) return false;
    if (count > limits_.array_elements) {
      refuse("an array is too long", key, count, limits_.array_elements);
      return false;
    }
    append(static_cast<std::uint32_t>(element));
    append(std::uint64_t{count});
    return true;
  }

  GgufLimits limits_;
  std::vector<std::string> keys_;  // sorted
  std::string bytes_;
  Status status_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
