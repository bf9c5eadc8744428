// SPDX-License-Identifier: Apache-2.0
#pragma once

// GgufMetadata: the typed key-value pairs at the head of a GGUF file, left in the bytes of the file until asked for.
//
// Every count is compared with the bytes that are left before anything is sized by it, and every value is walked
// through once when the file is opened, so that the getters only have to check types. Arrays of arrays are refused:
// nothing nests.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/byte_cursor.hpp>
#include <cbq/io/gguf_limits.hpp>
#include <cbq/io/tensor.hpp>

namespace cbq {

/// Types of metadata values by their number in the file.
enum class GgufKind : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

/// One metadata value, still in the bytes of the file.
struct GgufValue {
  std::string_view key;
  GgufKind kind = GgufKind::u8;
  GgufKind element = GgufKind::u8;   ///< of an array
  std::size_t count = 0;             ///< elements of an array, else 1
  std::span<const std::byte> bytes;  ///< of the number, of the text, or of all elements
};

inline namespace CBQ_ABI {

namespace io_detail {

/// Bytes of a number of that kind; 0 for text and arrays.
constexpr std::size_t gguf_kind_bytes(GgufKind kind) noexcept {
  switch (kind) {
    case GgufKind::u8:
    case GgufKind::i8:
    case GgufKind::boolean:
      return 1;
    case GgufKind::u16:
    case GgufKind::i16:
      return 2;
    case GgufKind::u32:
    case GgufKind::i32:
    case GgufKind::f32:
      return 4;
    case GgufKind::u64:
    case GgufKind::i64:
    case GgufKind::f64:
      return 8;
    default:
      return 0;
  }
}

constexpr const char* gguf_kind_name(GgufKind kind) noexcept {
  constexpr const char* names[] = {"u8",      "i8",   "u16",   "i16", "u32", "i32", "f32",
                                   "boolean", "text", "array", "u64", "i64", "f64"};
  return names[static_cast<std::uint32_t>(kind)];
}

}  // namespace io_detail

class GgufMetadata {
 public:
  GgufMetadata() = default;

  /// Reads `count` keys at the cursor. Errc::bad_file or Errc::unsupported, with key and byte offset.
  [[nodiscard]] static Result<GgufMetadata> read(io_detail::ByteCursor& cursor, std::size_t count,
                                                 const GgufLimits& limits) {
    GgufMetadata metadata;
    if (const Status read = metadata.read_keys(cursor, count, limits); !read) return read.error();
    return metadata;
  }

  /// All metadata values, sorted by key.
  [[nodiscard]] std::span<const GgufValue> values() const noexcept { return values_; }
  /// The metadata value of that key, or nullptr.
  [[nodiscard]] const GgufValue* value(std::string_view key) const noexcept {
    const auto at = std::lower_bound(values_.begin(), values_.end(), key,
                                     [](const GgufValue& entry, std::string_view other) { return entry.key < other; });
    return at != values_.end() && at->key == key ? &*at : nullptr;
  }

  /// The value of `key` as a non-negative integer, from any integer type. Errc::bad_file: missing, negative, another
  /// type.
  [[nodiscard]] Result<std::uint64_t> unsigned_value(std::string_view key) const noexcept {
    const GgufValue* entry = value(key);
    if (entry == nullptr) return missing(key);
    if (entry->kind == GgufKind::array) return wrong_kind(*entry, "an integer");
    const Result<std::int64_t> number = integer(*entry, 0);
    if (!number && entry->kind == GgufKind::u64) return load_unaligned<std::uint64_t>(entry->bytes.data());
    if (!number) return number.error();
    if (*number < 0) return Error{Errc::bad_file, "a metadata value is negative", key, *number, "0 or more"};
    return static_cast<std::uint64_t>(*number);
  }

  /// The value of `key` as a number, from f32, f64 or any integer type.
  [[nodiscard]] Result<double> number_value(std::string_view key) const noexcept {
    const GgufValue* entry = value(key);
    if (entry == nullptr) return missing(key);
    if (entry->kind == GgufKind::f32) return static_cast<double>(load_unaligned<float>(entry->bytes.data()));
    if (entry->kind == GgufKind::f64) return load_unaligned<double>(entry->bytes.data());
    if (entry->kind == GgufKind::array) return wrong_kind(*entry, "a number");
    const Result<std::int64_t> number = integer(*entry, 0);
    if (!number) return number.error();
    return static_cast<double>(*number);
  }

  /// The value of `key` as true or false.
  [[nodiscard]] Result<bool> boolean_value(std::string_view key) const noexcept {
    const GgufValue* entry = value(key);
    if (entry == nullptr) return missing(key);
    if (entry->kind != GgufKind::boolean) return wrong_kind(*entry, "boolean");
    return entry->bytes[0] != std::byte{0};
  }

  /// The value of `key` as text, which lives as long as the bytes of the file. Not checked to be UTF-8.
  [[nodiscard]] Result<std::string_view> text_value(std::string_view key) const noexcept {
    const GgufValue* entry = value(key);
    if (entry == nullptr) return missing(key);
    if (entry->kind != GgufKind::text) return wrong_kind(*entry, "text");
    return std::string_view(reinterpret_cast<const char*>(entry->bytes.data()), entry->bytes.size());
  }

  /// The elements of an array of texts. These three: Errc::out_of_memory as well.
  [[nodiscard]] Result<std::vector<std::string_view>> text_array(std::string_view key) const {
    return bad_alloc_as_error(key, [&]() -> Result<std::vector<std::string_view>> {
      const GgufValue* entry = value(key);
      if (entry == nullptr) return missing(key);
      if (entry->kind != GgufKind::array || entry->element != GgufKind::text)
        return wrong_kind(*entry, "an array of texts");
      std::vector<std::string_view> texts;
      texts.reserve(entry->count);
      io_detail::ByteCursor cursor(entry->bytes);
      for (std::size_t i = 0; i < entry->count; ++i) {
        const Result<std::string_view> text = cursor.text(entry->bytes.size());
        if (!text) return text.error();
        texts.push_back(*text);
      }
      return texts;
    });
  }

  /// The elements of an array of any integer type (of u64 only up to 2^63 - 1).
  [[nodiscard]] Result<std::vector<std::int64_t>> integer_array(std::string_view key) const {
    return bad_alloc_as_error(key, [&]() -> Result<std::vector<std::int64_t>> {
      const GgufValue* entry = value(key);
      if (entry == nullptr) return missing(key);
      if (entry->kind != GgufKind::array) return wrong_kind(*entry, "an array of integers");
      std::vector<std::int64_t> numbers;
      for (std::size_t i = 0; i < entry->count; ++i) {
        const Result<std::int64_t> number = integer(*entry, i);
        if (!number) return number.error();
        numbers.push_back(*number);
      }
      return numbers;
    });
  }

  /// The elements of an array of f32.
  [[nodiscard]] Result<std::vector<float>> float_array(std::string_view key) const {
    return bad_alloc_as_error(key, [&]() -> Result<std::vector<float>> {
      const GgufValue* entry = value(key);
      if (entry == nullptr) return missing(key);
      if (entry->kind != GgufKind::array || entry->element != GgufKind::f32)
        return wrong_kind(*entry, "an array of f32");
      std::vector<float> numbers(entry->count);
      decode_elements<float>(entry->bytes.data(), numbers);
      return numbers;
    });
  }

 private:
  static Error missing(std::string_view key) noexcept {
    return Error{Errc::bad_file, "a metadata key is missing", key, "none", "a value"};
  }

  static Error wrong_kind(const GgufValue& entry, const char* wanted) noexcept {
    ErrorText got = io_detail::gguf_kind_name(entry.kind);
    if (entry.kind == GgufKind::array) got << " of " << io_detail::gguf_kind_name(entry.element);
    return Error{Errc::bad_file, "a metadata value has the wrong type", entry.key, got, wanted};
  }

  // Element `index` of an integer value or array.
  static Result<std::int64_t> integer(const GgufValue& entry, std::size_t index) noexcept {
    const GgufKind kind = entry.kind == GgufKind::array ? entry.element : entry.kind;
    const std::byte* from = entry.bytes.data() + index * io_detail::gguf_kind_bytes(kind);
    switch (kind) {
      case GgufKind::u8:
        return load_unaligned<std::uint8_t>(from);
      case GgufKind::i8:
        return load_unaligned<std::int8_t>(from);
      case GgufKind::u16:
        return load_unaligned<std::uint16_t>(from);
      case GgufKind::i16:
        return load_unaligned<std::int16_t>(from);
      case GgufKind::u32:
        return load_unaligned<std::uint32_t>(from);
      case GgufKind::i32:
        return load_unaligned<std::int32_t>(from);
      case GgufKind::i64:
        return load_unaligned<std::int64_t>(from);
      case GgufKind::u64: {
        const auto number = load_unaligned<std::uint64_t>(from);
        if (number >> 63 == 0) return static_cast<std::int64_t>(number);
        return Error{Errc::bad_file, "a metadata value is too large", entry.key, number, "at most 2^63 - 1"};
      }
      default:
        return wrong_kind(entry, "an integer");
    }
  }

  static Result<GgufKind> read_kind(io_detail::ByteCursor& cursor) {
    const ErrorText where = cursor.where();
    const auto kind = cursor.number<std::uint32_t>();
    if (!kind) return kind.error();
    if (*kind > static_cast<std::uint32_t>(GgufKind::f64)) {
      return Error{Errc::bad_file, "unknown type of a metadata value", where, *kind, "0 to 12"};
    }
    return static_cast<GgufKind>(*kind);
  }

  // The bytes of `count` values of one kind, walked through so that later readers need no checks.
  static Result<std::span<const std::byte>> read_payload(io_detail::ByteCursor& cursor, GgufKind kind,
                                                         std::size_t count, const GgufLimits& limits) {
    const std::size_t least = kind == GgufKind::text ? 8 : io_detail::gguf_kind_bytes(kind);
    if (count > limits.array_elements || count > cursor.left() / least) {
      return Error{Errc::bad_file, "an array is longer than the file", cursor.where(), count,
                   ErrorText("at most ") << limits.array_elements};
    }
    if (kind != GgufKind::text) return cursor.take(count * least);
    io_detail::ByteCursor walk = cursor;
    for (std::size_t i = 0; i < count; ++i) {
      const Result<std::string_view> text = walk.text(limits.text_bytes);
      if (!text) return text.error();
    }
    return cursor.take(walk.position() - cursor.position());
  }

  static Status read_value(io_detail::ByteCursor& cursor, GgufValue& value, const GgufLimits& limits) {
    const Result<GgufKind> kind = read_kind(cursor);
    if (!kind) return kind.error();
    value.kind = *kind;
    value.count = 1;
    if (*kind == GgufKind::text) {
      const Result<std::string_view> text = cursor.text(limits.text_bytes);
      if (!text) return text.error();
      value.bytes = std::as_bytes(std::span(text->data(), text->size()));
      return {};
    }
    if (*kind == GgufKind::array) {
      const Result<GgufKind> element = read_kind(cursor);
      if (!element) return element.error();
      const auto count = cursor.number<std::uint64_t>();
      if (!count) return count.error();
      if (*element == GgufKind::array) {
        return Error{Errc::unsupported, "an array of arrays", cursor.where(), "array", "numbers, booleans or texts"};
      }
      value.element = *element;
      value.count = *count;
    }
    const auto bytes = read_payload(cursor, *kind == GgufKind::array ? value.element : *kind, value.count, limits);
    if (!bytes) return bytes.error();
    value.bytes = *bytes;
    const bool boolean = *kind == GgufKind::boolean || (*kind == GgufKind::array && value.element == GgufKind::boolean);
    if (boolean && std::any_of(bytes->begin(), bytes->end(), [](std::byte b) { return b > std::byte{1}; })) {
      return Error{Errc::bad_file, "a boolean that is neither 0 nor 1", cursor.where(), "another byte", "0 or 1"};
    }
    return {};
  }

  Status read_keys(io_detail::ByteCursor& cursor, std::size_t count, const GgufLimits& limits) {
    values_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const ErrorText where = cursor.where();
      const Result<std::string_view> key = cursor.text(limits.key_bytes);
      if (!key) return in_context(key.error(), "metadata");
      if (key->empty()) return Error{Errc::bad_file, "an empty metadata key", where, "an empty text", "a key"};
      GgufValue value;
      value.key = *key;
      if (const Status read = read_value(cursor, value, limits); !read) return in_context(read.error(), *key);
      values_.push_back(value);
    }
    std::sort(values_.begin(), values_.end(), [](const GgufValue& a, const GgufValue& b) { return a.key < b.key; });
    for (std::size_t i = 1; i < values_.size(); ++i) {
      if (values_[i].key == values_[i - 1].key)
        return Error{Errc::bad_file, "the same metadata key twice", values_[i].key, "2 values", "1"};
    }
    return {};
  }

  std::vector<GgufValue> values_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
