// SPDX-License-Identifier: Apache-2.0

#include "unicode.hpp"

#include <array>
#include <cstdint>
#include <new>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#if PCRE2_MAJOR < 10 || (PCRE2_MAJOR == 10 && PCRE2_MINOR < 40)
#error "[cbq] cbq-llama needs PCRE2 10.40 or newer: older ones lack the property White_Space"
#endif

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;

namespace {

[[nodiscard]] constexpr unsigned byte_at(std::string_view text, std::size_t at) noexcept {
  return static_cast<unsigned char>(text[at]);
}

/// Bytes that a lead byte announces, 0 for a byte that leads nothing.
[[nodiscard]] constexpr std::size_t announced_length(unsigned lead) noexcept {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return 2;
  if (lead >= 0xE0 && lead <= 0xEF) return 3;
  if (lead >= 0xF0 && lead <= 0xF4) return 4;
  return 0;
}

/// Whether `next` may follow `lead` (Unicode 15, table 3-7: this excludes overlong forms, surrogates and > U+10FFFF).
[[nodiscard]] constexpr bool is_second_byte(unsigned lead, unsigned next) noexcept {
  const unsigned low = lead == 0xE0 ? 0xA0U : lead == 0xF0 ? 0x90U : 0x80U;
  const unsigned high = lead == 0xED ? 0x9FU : lead == 0xF4 ? 0x8FU : 0xBFU;
  return next >= low && next <= high;
}

/// How many bytes at `at` agree with a well-formed sequence of the announced length.
[[nodiscard]] std::size_t well_formed_bytes(std::string_view text, std::size_t at, std::size_t announced) noexcept {
  std::size_t size = 1;
  while (size < announced && at + size < text.size()) {
    const unsigned next = byte_at(text, at + size);
    const bool fits = size == 1 ? is_second_byte(byte_at(text, at), next) : (next & 0xC0U) == 0x80U;
    if (!fits) break;
    ++size;
  }
  return size;
}

constexpr std::uint16_t no_byte = 0xFFFF;
constexpr std::size_t alphabet_size = 256 + 68;

struct ByteAlphabet {
  std::array<std::uint16_t, 256> character = {};       // code point for each byte
  std::array<std::uint16_t, alphabet_size> byte = {};  // byte for each code point, or no_byte
};

[[nodiscard]] constexpr ByteAlphabet make_byte_alphabet() {
  ByteAlphabet alphabet;
  alphabet.byte.fill(no_byte);
  std::uint16_t other = 256;
  for (std::uint16_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
    const std::uint16_t character = printable ? byte : other++;
    alphabet.character[byte] = character;
    alphabet.byte[character] = byte;
  }
  return alphabet;
}

constexpr ByteAlphabet byte_alphabet = make_byte_alphabet();

/// A pattern on its way into PCRE2's syntax. \s of PCRE2 also matches U+180E, which Unicode no longer counts as white
/// space; and its classes do not nest: [a[bc]], a union in the syntax of tokenizer files, becomes [abc].
class Translation {
 public:
  explicit Translation(std::string_view pattern) : pattern_(pattern) {}

  [[nodiscard]] Result<std::string> run() {
    for (; at_ < pattern_.size(); ++at_) {
      const char c = pattern_[at_];
      if (c == '\\' && at_ + 1 < pattern_.size()) {
        escape();
      } else if (c == '[' && depth_ == 0) {
        open();
      } else if (c == '[' && starts(":")) {
        out_ += c;  // [:alpha:]
        const std::size_t end = pattern_.find(":]", at_ + 2);
        while (end != std::string_view::npos && at_ <= end) out_ += pattern_[++at_];
      } else if (c == '[') {
        if (starts("^")) {
          return Error{Errc::unsupported, "a regular expression negates a class within a class", pattern_};
        }
        if (pattern_[at_ - 1] == '-') {
          return Error{Errc::unsupported, "a regular expression has a class at the end of a range", pattern_};
        }
        ++depth_;
      } else if (c == '&' && depth_ != 0 && starts("&")) {
        return Error{Errc::unsupported, "a regular expression intersects classes", pattern_};
      } else if (c == ']' && depth_ > 1) {
        --depth_;
      } else {
        if (c == ']') depth_ = 0;
        out_ += c;
      }
    }
    return std::move(out_);
  }

 private:
  [[nodiscard]] bool starts(std::string_view with) const { return pattern_.substr(at_ + 1).starts_with(with); }

  void escape() {
    const char escaped = pattern_[++at_];
    if (escaped == 's') {
      out_ += "\\p{White_Space}";
    } else if (escaped == 'S') {
      out_ += "\\P{White_Space}";
    } else {
      out_ += '\\';
      out_ += escaped;
    }
  }

  /// A bracket that comes first in a class stands for itself.
  void open() {
    depth_ = 1;
    out_ += '[';
    for (const std::string_view first : {"^", "]"}) {
      if (!starts(first)) continue;
      out_ += first;
      ++at_;
    }
  }

  std::string_view pattern_;
  std::string out_;
  std::size_t at_ = 0;
  std::size_t depth_ = 0;
};

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using MatchData = std::unique_ptr<pcre2_match_data, FreeMatchData>;

[[nodiscard]] PCRE2_SPTR pcre2_pointer(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());  // NOLINT: char to unsigned char
}

}  // namespace

std::size_t utf8_length(std::string_view text, std::size_t at) noexcept {
  const std::size_t announced = announced_length(byte_at(text, at));
  if (announced == 0) return 0;
  return well_formed_bytes(text, at, announced) == announced ? announced : 0;
}

std::size_t character_length(std::string_view text, std::size_t at) noexcept {
  const std::size_t length = utf8_length(text, at);
  return length == 0 ? 1 : length;
}

std::size_t without_unfinished_character(std::string_view text) noexcept {
  for (std::size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const std::size_t at = text.size() - back;
    const std::size_t announced = announced_length(byte_at(text, at));
    if (announced > back && well_formed_bytes(text, at, announced) == back) return at;
  }
  return text.size();
}

std::string byte_to_alphabet(unsigned char byte) {
  const unsigned character = byte_alphabet.character[byte];
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0U | (character >> 6U)), static_cast<char>(0x80U | (character & 0x3FU))};
}

std::optional<std::string> alphabet_to_bytes(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length(text, i);
    if (length != 1 && length != 2) return std::nullopt;  // the alphabet ends below U+0800
    const unsigned character =
        length == 1 ? byte_at(text, i) : ((byte_at(text, i) & 0x1FU) << 6U) | (byte_at(text, i + 1) & 0x3FU);
    if (character >= alphabet_size || byte_alphabet.byte[character] == no_byte) return std::nullopt;
    bytes += static_cast<char>(byte_alphabet.byte[character]);
    i += length;
  }
  return bytes;
}

namespace {

[[nodiscard]] Error match_error(int result) {
  std::array<PCRE2_UCHAR, 120> message = {};
  pcre2_get_error_message(result, message.data(), message.size());
  return Error{Errc::bad_argument,
               "a regular expression failed on the text",
               {},
               reinterpret_cast<const char*>(message.data())};  // NOLINT: unsigned char to char
}

}  // namespace

struct Regex::Compiled {
  /// Matches inside a part of the text that is well-formed UTF-8.
  [[nodiscard]] cbq::Status find_all(std::string_view part, std::size_t offset, pcre2_match_data* data,
                                     std::vector<Span>& found) const;

  std::unique_ptr<pcre2_code, FreeCode> code;
};

Result<Regex> Regex::compile(std::string_view pattern) {
  const Result<std::string> translated = Translation(pattern).run();
  if (!translated) return translated.error();
  const auto owner = std::make_shared<Compiled>();
  int code = 0;
  PCRE2_SIZE offset = 0;
  // ^ and $ stand at lines in the syntax that tokenizer files use; \C could cut a UTF-8 sequence.
  constexpr std::uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  owner->code.reset(pcre2_compile(pcre2_pointer(*translated), translated->size(), options, &code, &offset, nullptr));
  if (owner->code == nullptr) {
    if (code == PCRE2_ERROR_HEAP_FAILED) {
      return Error{Errc::out_of_memory, "no memory for a regular expression", pattern};
    }
    std::array<PCRE2_UCHAR, 120> message = {};
    pcre2_get_error_message(code, message.data(), message.size());
    return Error{Errc::bad_file, "a regular expression does not compile", pattern,
                 reinterpret_cast<const char*>(message.data())};  // NOLINT: unsigned char to char
  }
  // Only a matter of speed: without a JIT for this machine PCRE2 interprets.
  static_cast<void>(pcre2_jit_compile(owner->code.get(), PCRE2_JIT_COMPLETE));
  return Regex(owner, pattern);
}

Result<Regex> Regex::literal(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const bool special = static_cast<unsigned char>(c) < 0x80 && !(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') &&
                         !(c >= 'a' && c <= 'z') && c != '\0';
    if (special) pattern += '\\';
    pattern += c;
  }
  return compile(pattern);
}

cbq::Status Regex::Compiled::find_all(std::string_view part, std::size_t offset, pcre2_match_data* data,
                                      std::vector<Span>& found) const {
  std::size_t from = 0;
  while (from < part.size()) {
    std::uint32_t options = PCRE2_NO_UTF_CHECK;  // checked by the caller; PCRE2 would check the whole rest each time
    int result = pcre2_match(code.get(), pcre2_pointer(part), part.size(), from, options, data, nullptr);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
      options |= PCRE2_NO_JIT;
      result = pcre2_match(code.get(), pcre2_pointer(part), part.size(), from, options, data, nullptr);
    }
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) return match_error(result);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
    if (ends[1] > ends[0]) found.push_back({offset + ends[0], offset + ends[1]});
    from = ends[1] > from ? ends[1] : from + character_length(part, from);
  }
  return {};
}

Result<bool> Regex::matches_start(std::string_view text) const {
  const MatchData data(pcre2_match_data_create_from_pattern(compiled_->code.get(), nullptr));
  if (!data) return Error{Errc::out_of_memory, "no memory for a regular expression's match"};
  const int result =
      pcre2_match(compiled_->code.get(), pcre2_pointer(text), text.size(), 0, PCRE2_ANCHORED, data.get(), nullptr);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) return match_error(result);
  return true;
}

Result<std::vector<Span>> Regex::matches(std::string_view text) const {
  const MatchData data(pcre2_match_data_create_from_pattern(compiled_->code.get(), nullptr));
  if (!data) return Error{Errc::out_of_memory, "no memory for a regular expression's match"};
  std::vector<Span> found;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin;
    for (std::size_t length = 0; end < text.size() && (length = utf8_length(text, end)) != 0;) end += length;
    if (end > begin) {
      const cbq::Status done = compiled_->find_all(text.substr(begin, end - begin), begin, data.get(), found);
      if (!done) return done.error();
    }
    begin = end + 1;  // the byte at `end` is ill-formed, or the text is over
  }
  return found;
}

}  // namespace cbq_llama
