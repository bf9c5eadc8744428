// SPDX-License-Identifier: Apache-2.0
#pragma once

// parse_json: untrusted JSON text to an nlohmann::json tree, or an Error with the byte where it went wrong.
//
// Stricter than the library's own parse: limits on bytes, values and depth hold before anything is allocated for them,
// the same key twice in one object is an error, and so is a NUL byte (which the library takes for the end of the text).
// Nothing throws and nothing recurses. Integers stay integers: one too large for 64 bits becomes a float value, which
// the getters below refuse.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/core/result.hpp>
#include <cbq/io/mapped_file.hpp>

namespace cbq {

/// What parse_json refuses to hold; the defaults fit every model configuration and tokenizer seen so far.
struct JsonLimits {
  std::size_t bytes = 100'000'000;
  std::size_t values = std::size_t{1} << 22;
  std::size_t depth = 32;
  std::size_t text_bytes = std::size_t{1} << 24;  ///< of a key or a text
};

inline namespace CBQ_ABI {

using Json = nlohmann::json;

namespace io_detail {

// Walks over text and leaves in `position` how far the parser has come, which the library does not tell its events.
class CountedCharacter {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  CountedCharacter(const char* at, std::size_t* position) noexcept : at_(at), position_(position) {}
  reference operator*() const noexcept { return *at_; }
  CountedCharacter& operator++() noexcept {
    ++at_;
    ++*position_;
    return *this;
  }
  CountedCharacter operator++(int) noexcept {
    const CountedCharacter before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(const CountedCharacter& a, const CountedCharacter& b) noexcept { return a.at_ == b.at_; }

 private:
  const char* at_;
  std::size_t* position_;
};

// Empties a tree from its leaves. The library's own destructor takes memory for everything that is not empty, and ends
// the program where there is none. As deep as the tree, which parse_json() limits.
inline void release_json(Json& json) noexcept {
  if (!json.is_structured()) return;
  for (Json& child : json) release_json(child);
  json.clear();
}

// Does so at the end of its scope; declared after the tree.
class JsonRelease {
 public:
  explicit JsonRelease(Json& json) noexcept : json_(json) {}
  JsonRelease(const JsonRelease&) = delete;
  JsonRelease& operator=(const JsonRelease&) = delete;
  ~JsonRelease() { release_json(json_); }

 private:
  Json& json_;
};

// Receives the library's parse events and builds the tree.
class JsonBuilder {
 public:
  JsonBuilder(Json& root, const JsonLimits& limits, const std::size_t& position)
      : root_(root), limits_(limits), position_(position) {}

  bool null() { return add(Json(nullptr)); }
  bool boolean(bool value) { return add(Json(value)); }
  bool number_integer(std::int64_t value) { return add(Json(value)); }
  bool number_unsigned(std::uint64_t value) { return add(Json(value)); }
  bool number_float(double value, const std::string&) { return add(Json(value)); }
  bool string(std::string& value) { return check_length(value) && add(Json(std::move(value))); }
  bool binary(Json::binary_t&) { return fail("binary values are no JSON", "binary", "text"); }
  bool start_object(std::size_t) { return open(Json(Json::value_t::object)); }
  bool start_array(std::size_t) { return open(Json(Json::value_t::array)); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    if (!check_length(name)) return false;
    Json& object = *open_.back();
    if (object.contains(name)) return fail("the same key twice in one object", name, "each key once");
    slot_ = &object[name];
    return true;
  }

  template <class Exception>
  bool parse_error(std::size_t position, const std::string& token, const Exception&) {
    error_ = Error{Errc::bad_file, "not valid JSON", ErrorText("byte ") << position,
                   token.empty() ? std::string_view("the end") : std::string_view(token), "JSON"};
    return false;
  }

  [[nodiscard]] const Error& error() const noexcept { return error_; }

 private:
  bool fail(const char* what, std::string_view got, ErrorText wanted) {
    error_ = Error{Errc::bad_file, what, ErrorText("byte ") << position_, got, wanted};
    return false;
  }

  bool check_length(const std::string& text) {
    if (text.size() <= limits_.text_bytes) return true;
    return fail("a JSON text is too long", (ErrorText(text.size()) << " bytes").c_str(),
                ErrorText("at most ") << limits_.text_bytes);
  }

  Json* place(Json&& value) {
    if (++values_ > limits_.values) {
      (void)fail("too many JSON values", ErrorText(values_).c_str(), ErrorText("at most ") << limits_.values);
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    *slot_ = std::move(value);
    return slot_;
  }

  bool add(Json&& value) { return place(std::move(value)) != nullptr; }

  bool open(Json&& container) {
    if (open_.size() >= limits_.depth) {
      return fail("JSON nested too deeply", ErrorText(open_.size() + 1).c_str(),
                  ErrorText("at most ") << limits_.depth);
    }
    Json* placed = place(std::move(container));
    // An open array does not grow while a container inside it is open, so the pointers stay valid.
    if (placed != nullptr) open_.push_back(placed);
    return placed != nullptr;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json& root_;
  JsonLimits limits_;
  const std::size_t& position_;
  std::vector<Json*> open_;
  Json* slot_ = nullptr;
  std::size_t values_ = 0;
  Error error_;
};

}  // namespace io_detail

/// The tree of `text`; Errc::bad_file with the byte offset of the fault, Errc::out_of_memory.
[[nodiscard]] inline Result<Json> parse_json(std::string_view text, const JsonLimits& limits = {}) {
  if (text.size() > limits.bytes) {
    return Error{Errc::bad_file, "JSON text too long", "byte 0", ErrorText(text.size()) << " bytes",
                 ErrorText("at most ") << limits.bytes};
  }
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return Error{Errc::bad_file, "a NUL byte in JSON text", ErrorText("byte ") << nul, "0", "text"};
  }
  return bad_alloc_as_error("JSON text", [&]() -> Result<Json> {
    Json root;
    const io_detail::JsonRelease release(root);
    std::size_t position = 0;
    io_detail::JsonBuilder builder(root, limits, position);
    const io_detail::CountedCharacter begin(text.data(), &position), end(text.data() + text.size(), &position);
    if (!Json::sax_parse(begin, end, &builder)) return builder.error();
    return root;
  });
}

/// Reads and parses a JSON file. Errc::io or Errc::bad_file.
[[nodiscard]] inline Result<Json> read_json_file(const std::string& path, const JsonLimits& limits = {}) {
  const Result<FileBytes> file = FileBytes::open(path, FileMode::read, limits.bytes);
  if (!file) return file.error();
  const std::span<const std::byte> bytes = file->bytes();
  Result<Json> json = parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, limits);
  if (!json) return in_context(json.error(), path);
  return json;
}

/// JSON text with two blanks of indentation and a final line feed; invalid UTF-8 is replaced rather than thrown about.
[[nodiscard]] inline std::string json_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// Whether `json` is the text `text`. The library's operator== takes memory for this, and ends the program without.
[[nodiscard]] inline bool json_is(const Json& json, std::string_view text) noexcept {
  const std::string* own = json.get_ptr<const std::string*>();
  return own != nullptr && *own == text;
}

/// The member `key` of an object, or nullptr when `json` is no object or has no such member.
[[nodiscard]] inline const Json* json_find(const Json& json, const std::string& key) {
  if (!json.is_object()) return nullptr;
  const auto found = json.find(key);
  return found == json.end() ? nullptr : &*found;
}

/// The member `key` as a non-negative integer. Errc::bad_file when it is missing or anything else (a float, too large).
[[nodiscard]] inline Result<std::uint64_t> json_unsigned(const Json& json, const std::string& key) {
  const Json* value = json_find(json, key);
  if (value == nullptr) return Error{Errc::bad_file, "a JSON key is missing", key};
  if (value->is_number_unsigned()) return *value->get_ptr<const Json::number_unsigned_t*>();
  // Trees that a program built hold small numbers as signed ones.
  const auto* number = value->get_ptr<const Json::number_integer_t*>();
  if (number != nullptr && *number >= 0) return static_cast<std::uint64_t>(*number);
  return Error{Errc::bad_file, "a JSON value has the wrong type", key,
               number != nullptr ? "negative" : value->type_name(), "a non-negative integer"};
}

/// The member `key` as a number.
[[nodiscard]] inline Result<double> json_number(const Json& json, const std::string& key) {
  const Json* value = json_find(json, key);
  if (value == nullptr) return Error{Errc::bad_file, "a JSON key is missing", key};
  if (value->is_number_unsigned()) return static_cast<double>(*value->get_ptr<const Json::number_unsigned_t*>());
  if (value->is_number_integer()) return static_cast<double>(*value->get_ptr<const Json::number_integer_t*>());
  if (value->is_number_float()) return *value->get_ptr<const Json::number_float_t*>();
  return Error{Errc::bad_file, "a JSON value has the wrong type", key, value->type_name(), "a number"};
}

/// The member `key` as text; the view lives as long as `json`.
[[nodiscard]] inline Result<std::string_view> json_string(const Json& json, const std::string& key) {
  const Json* value = json_find(json, key);
  if (value == nullptr) return Error{Errc::bad_file, "a JSON key is missing", key};
  if (!value->is_string())
    return Error{Errc::bad_file, "a JSON value has the wrong type", key, value->type_name(), "text"};
  return std::string_view(*value->get_ptr<const std::string*>());
}

/// The member `key` as true or false.
[[nodiscard]] inline Result<bool> json_boolean(const Json& json, const std::string& key) {
  const Json* value = json_find(json, key);
  if (value == nullptr) return Error{Errc::bad_file, "a JSON key is missing", key};
  if (!value->is_boolean()) {
    return Error{Errc::bad_file, "a JSON value has the wrong type", key, value->type_name(), "true or false"};
  }
  return *value->get_ptr<const bool*>();
}

}  // namespace CBQ_ABI
}  // namespace cbq
