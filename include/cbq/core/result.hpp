// SPDX-License-Identifier: Apache-2.0
#pragma once

// Result<T>: a value or an Error, returned by value by every cbq function whose success depends on data, files or
// shapes. std::expected is C++23; this one is trivially copyable when T is, needs no exceptions and no RTTI, allocates
// nothing, and costs <new> instead of <memory>. An Error says what rule was broken, where, what was got and what was
// wanted.

#include <concepts>
#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include <cbq/config.hpp>

namespace cbq {

enum class Errc : unsigned char {
  bad_argument,   ///< a value outside its documented range
  bad_shape,      ///< sizes that do not fit each other
  bad_file,       ///< a file whose content breaks its format
  io,             ///< the operating system refused: open, read, write, sync, rename
  unsupported,    ///< well-formed, but cbq has no implementation for it
  not_finite,     ///< NaN or infinity where a number is needed
  out_of_memory,  ///< an allocation sized by input failed
  interrupted,    ///< a stop was requested
};

inline namespace CBQ_ABI {

/// Short text inside an Error: at most `capacity` bytes, cut with "..." when longer. Trivially copyable, never
/// allocates.
struct ErrorText {
  static constexpr std::size_t capacity = 111;
  char characters[capacity + 1] = {};
  unsigned char size = 0;

  constexpr ErrorText() = default;
  constexpr ErrorText(const char* text) {  // NOLINT(google-explicit-constructor): reads as text at the call
    *this << text;
  }
  template <std::integral I>
  constexpr ErrorText(I number) {  // NOLINT(google-explicit-constructor)
    *this << number;
  }
  /// Any contiguous string: std::string, std::string_view.
  template <class S>
    requires requires(const S& s) {
      { s.data() } -> std::convertible_to<const char*>;
      { s.size() } -> std::convertible_to<std::size_t>;
    }
  constexpr ErrorText(const S& text) {  // NOLINT(google-explicit-constructor)
    append(text.data(), text.size());
  }

  constexpr ErrorText& operator<<(const char* text) {
    while (*text != '\0') append(*text++);
    return *this;
  }
  template <std::integral I>
  constexpr ErrorText& operator<<(I number) {
    if constexpr (std::same_as<I, char>) {
      append(number);
    } else {
      char digits[24] = {};
      std::size_t count = 0;
      const bool negative = number < 0;
      auto rest = static_cast<unsigned long long>(number);
      if (negative) rest = 0 - rest;
      do {
        digits[count++] = static_cast<char>('0' + rest % 10);
        rest /= 10;
      } while (rest != 0);
      if (negative) append('-');
      while (count != 0) append(digits[--count]);
    }
    return *this;
  }
  template <class S>
    requires requires(const S& s) {
      { s.data() } -> std::convertible_to<const char*>;
      { s.size() } -> std::convertible_to<std::size_t>;
    }
  constexpr ErrorText& operator<<(const S& text) {
    append(text.data(), text.size());
    return *this;
  }

  [[nodiscard]] constexpr const char* c_str() const { return characters; }
  [[nodiscard]] constexpr bool empty() const { return size == 0; }

 private:
  constexpr void append(const char* text, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) append(text[i]);
  }
  constexpr void append(char c) {
    if (size < capacity) {
      characters[size++] = c;
    } else {
      for (std::size_t i = 1; i <= 3; ++i) characters[capacity - i] = '.';
    }
  }
};

/// Why a call failed. `what` is a string literal that states the broken rule; the others may be empty.
struct Error {
  Errc code = Errc::bad_argument;
  const char* what = "";
  ErrorText where = {};   ///< tensor, layer, file, byte offset
  ErrorText got = {};     ///< what was found
  ErrorText wanted = {};  ///< what would have been accepted
};

/// "where: what (got X, wanted Y)" as text appended to any string with `operator+=(const char*)`.
template <class String>
void append_message(String& out, const Error& error) {
  if (!error.where.empty()) {
    out += error.where.c_str();
    out += ": ";
  }
  out += error.what;
  if (!error.got.empty() || !error.wanted.empty()) {
    out += " (";
    if (!error.got.empty()) {
      out += "got ";
      out += error.got.c_str();
    }
    if (!error.wanted.empty()) {
      out += error.got.empty() ? "wanted " : ", wanted ";
      out += error.wanted.c_str();
    }
    out += ")";
  }
}

#if defined(__cpp_exceptions)
/// What `Result::value()` throws when there is no value.
struct BadResult {
  Error error;
};
#endif

/// A value of T or an Error. `if (!r) return r.error();` then `*r` or `std::move(*r)`.
template <class T>
class [[nodiscard]] Result {
 public:
  static_assert(!std::is_reference_v<T> && !std::same_as<std::remove_cv_t<T>, Error>,
                "[cbq] Result: T must be a value type other than Error");

  constexpr Result(T value) noexcept(std::is_nothrow_move_constructible_v<T>)  // NOLINT(google-explicit-constructor)
      : value_(std::move(value)), has_value_(true) {}
  constexpr Result(Error error) noexcept : error_(error), has_value_(false) {}  // NOLINT(google-explicit-constructor)

  Result(const Result&)
    requires std::is_trivially_copy_constructible_v<T>
  = default;
  constexpr Result(const Result& other)
    requires(std::is_copy_constructible_v<T> && !std::is_trivially_copy_constructible_v<T>)
      : has_value_(other.has_value_) {
    construct(other);
  }
  Result(Result&&)
    requires std::is_trivially_move_constructible_v<T>
  = default;
  constexpr Result(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>)
    requires(!std::is_trivially_move_constructible_v<T>)
      : has_value_(other.has_value_) {
    construct(std::move(other));
  }
  Result& operator=(const Result&) = delete;
  Result& operator=(Result&&) = delete;
  ~Result()
    requires std::is_trivially_destructible_v<T>
  = default;
  constexpr ~Result() {
    if (has_value_) value_.~T();
  }

  [[nodiscard]] constexpr bool has_value() const noexcept { return has_value_; }
  constexpr explicit operator bool() const noexcept { return has_value_; }
  [[nodiscard]] constexpr T& operator*() & noexcept { return value_; }
  [[nodiscard]] constexpr const T& operator*() const& noexcept { return value_; }
  [[nodiscard]] constexpr T&& operator*() && noexcept { return std::move(value_); }
  constexpr T* operator->() noexcept { return __builtin_addressof(value_); }
  constexpr const T* operator->() const noexcept { return __builtin_addressof(value_); }
  [[nodiscard]] constexpr const Error& error() const noexcept { return error_; }

#if defined(__cpp_exceptions)
  [[nodiscard]] constexpr T& value() & {
    if (!has_value_) throw BadResult{error_};
    return value_;
  }
  [[nodiscard]] constexpr T&& value() && {
    if (!has_value_) throw BadResult{error_};
    return std::move(value_);
  }
#endif

 private:
  // Placement new rather than std::construct_at, which needs <memory>.
  template <class Other>
  constexpr void construct(Other&& other) {
    if (has_value_) {
      ::new (static_cast<void*>(__builtin_addressof(value_))) T(*std::forward<Other>(other));
    } else {
      ::new (static_cast<void*>(__builtin_addressof(error_))) Error(other.error_);
    }
  }

  union {
    T value_;
    Error error_;
  };
  bool has_value_;
};

/// Success without a value, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  constexpr Result() noexcept = default;
  constexpr Result(Error error) noexcept : error_(error), has_value_(false) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] constexpr bool has_value() const noexcept { return has_value_; }
  constexpr explicit operator bool() const noexcept { return has_value_; }
  [[nodiscard]] constexpr const Error& error() const noexcept { return error_; }
#if defined(__cpp_exceptions)
  constexpr void value() const {
    if (!has_value_) throw BadResult{error_};
  }
#endif

 private:
  Error error_ = {};
  bool has_value_ = true;
};

using Status = Result<void>;

}  // namespace CBQ_ABI
}  // namespace cbq
