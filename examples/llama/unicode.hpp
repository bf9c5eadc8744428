// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a tokenizer needs of Unicode: well-formedness of UTF-8, the GPT-2 byte alphabet, and regular expressions with
// Unicode classes. Properties (\p{L}, \p{N}, ...) come from PCRE2, so patterns of tokenizer files are used as they are.
//
// Text that is not UTF-8 is no error anywhere here: an ill-formed byte is a character of its own that no pattern
// matches.

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <cbq/core/result.hpp>

namespace cbq_llama {

/// Bytes of the well-formed UTF-8 sequence that starts at `at`: 1 to 4, or 0 where the byte starts none (overlong
/// forms, surrogates and values above U+10FFFF are ill-formed). `at` < text.size().
[[nodiscard]] std::size_t utf8_length(std::string_view text, std::size_t at) noexcept;

/// Bytes of the character at `at`: as utf8_length, and 1 for an ill-formed byte. `at` < text.size().
[[nodiscard]] std::size_t character_length(std::string_view text, std::size_t at) noexcept;

/// Length of `text` without a sequence at its end that more bytes could still make well-formed (at most 3 bytes).
[[nodiscard]] std::size_t without_unfinished_character(std::string_view text) noexcept;

/// The character of the GPT-2 alphabet that stands for a byte, in UTF-8: printable Latin-1 stands for itself, the other
/// 68 bytes for U+0100 and up in their order (so a space is U+0120).
[[nodiscard]] std::string byte_to_alphabet(unsigned char byte);

/// The bytes that a string over the GPT-2 alphabet stands for, or nothing when a character is not of that alphabet.
[[nodiscard]] std::optional<std::string> alphabet_to_bytes(std::string_view text);

/// Half-open range of bytes in a text.
struct Span {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// A compiled regular expression over UTF-8, in PCRE2's syntax with Unicode classes; \s is Unicode's White_Space as in
/// the engines that tokenizer files are written for, and classes unite those within them. Copies share the compiled
/// form; safe to use from several threads.
class Regex {
 public:
  /// Errors: bad_file with PCRE2's message when the pattern does not compile; unsupported for a negated class within
  /// another.
  [[nodiscard]] static cbq::Result<Regex> compile(std::string_view pattern);
  /// A pattern that matches exactly this text.
  [[nodiscard]] static cbq::Result<Regex> literal(std::string_view text);

  /// All matches from left to right, none empty, none overlapping. Errors: bad_argument when PCRE2's limit on
  /// backtracking is reached (a pattern that is exponential on this text).
  [[nodiscard]] cbq::Result<std::vector<Span>> matches(std::string_view text) const;
  /// Whether a match, perhaps an empty one, begins where `text` does. Errors: bad_argument as above, and for a text
  /// that is not UTF-8.
  [[nodiscard]] cbq::Result<bool> matches_start(std::string_view text) const;

  /// The pattern as it was given; that of a literal is escaped.
  [[nodiscard]] const std::string& expression() const { return *expression_; }

 private:
  struct Compiled;
  Regex(std::shared_ptr<const Compiled> compiled, std::string_view expression)
      : compiled_(std::move(compiled)), expression_(std::make_shared<const std::string>(expression)) {}

  std::shared_ptr<const Compiled> compiled_;
  std::shared_ptr<const std::string> expression_;
};

}  // namespace cbq_llama
