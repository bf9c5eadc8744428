// SPDX-License-Identifier: Apache-2.0
#pragma once

// Between the text and the words that byte-pair merging sees: normalizers, pre-tokenizers and added tokens, with the
// meaning that they have in a Hugging Face tokenizer.json. Each is a plain value; a tokenizer holds a list of each
// kind.

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <cbq/core/result.hpp>

#include "unicode.hpp"

namespace cbq_llama {

// Normalizers: text to text.

/// Puts `text` before any text that is not empty.
struct Prepend {
  std::string text;
};
/// Puts `replacement` where `pattern` matches.
struct Replace {
  Regex pattern;
  std::string replacement;
};
using Normalizer = std::variant<Prepend, Replace>;

[[nodiscard]] cbq::Result<std::string> normalize(std::string_view text, const std::vector<Normalizer>& normalizers);

// Pre-tokenizers: pieces to smaller pieces.

/// What becomes of the text that a Split's pattern matches.
enum class SplitBehavior { isolated, removed, contiguous, merged_with_previous, merged_with_next };

/// Cuts at the matches of a pattern; `inverted` swaps what counts as matched.
struct Split {
  Regex pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool inverted = false;
};
/// Puts a space before each piece that does not start with one.
struct PrefixSpace {};
/// Puts `mark` for each space and before the text, and starts a piece at each mark.
struct Metaspace {
  enum class Prefix { always, first, never };
  Regex space;       // matches one space
  Regex mark_match;  // matches one mark
  std::string mark;
  Prefix prefix = Prefix::always;
  bool splits = true;
};
using PreTokenizer = std::variant<Split, PrefixSpace, Metaspace>;

/// Where a part of the text stands: Metaspace's prefix may belong only at the start.
enum class TextPosition { start, later };

/// Cuts `text` into words. The words point into `text` or into strings appended to `storage`, so both must outlive
/// them.
[[nodiscard]] cbq::Result<std::vector<std::string_view>> split_words(std::string_view text, TextPosition position,
                                                                     const std::vector<PreTokenizer>& pre_tokenizers,
                                                                     std::deque<std::string>& storage);

/// A token that is found in the text as it stands, before any merging.
struct AddedToken {
  std::string text;      // as searched
  std::string spelling;  // as the vocabulary spells it, where that differs
  std::int32_t id = 0;
  bool special = false;      // steers the model; found only on request
  bool normalized = false;   // searched in the normalized text rather than in the raw text
  bool strips_left = false;  // takes the white space before it along
  bool strips_right = false;
};

/// Finds added tokens: leftmost first, longest first.
class AddedTokenFinder {
 public:
  AddedTokenFinder() = default;
  /// Tokens without text are never found.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  struct Match {
    Span span;
    std::int32_t id = 0;
  };
  enum class Wanted { all, not_special };
  [[nodiscard]] std::vector<Match> find(std::string_view text, Wanted wanted) const;
  [[nodiscard]] bool empty() const { return tokens_.empty(); }

 private:
  [[nodiscard]] const AddedToken* longest_at(std::string_view text, std::size_t at, Wanted wanted) const;

  std::vector<AddedToken> tokens_;                             // longest first
  std::array<std::vector<std::uint32_t>, 256> by_first_byte_;  // indices into tokens_, longest first
};

}  // namespace cbq_llama
