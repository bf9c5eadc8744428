// SPDX-License-Identifier: Apache-2.0

#include "tokenizer_splits.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace cbq_llama {

using cbq::Result;

namespace {

using Words = std::vector<std::string_view>;

// Steps of honest files make a text a few times longer; a list of them could double it again and again.
[[nodiscard]] std::size_t longest_result(std::string_view text) {
  return 16 * text.size() + (std::size_t{1} << 20);
}

[[nodiscard]] cbq::Error too_long(std::size_t limit) {
  return cbq::Error{cbq::Errc::bad_argument, "the tokenizer's steps make the text too long", "text", "more",
                    cbq::ErrorText("at most ") << limit << " bytes"};
}

[[nodiscard]] Result<std::string> replace_matches(std::string_view text, const Regex& pattern,
                                                  std::string_view replacement, std::size_t limit) {
  const auto matches = pattern.matches(text);
  if (!matches) return matches.error();
  std::string out;
  std::size_t copied = 0;
  for (const Span& match : *matches) {
    if (out.size() > limit) return too_long(limit);
    out += text.substr(copied, match.begin - copied);
    out += replacement;
    copied = match.end;
  }
  out += text.substr(copied);
  return out;
}

struct Part {
  Span span;
  bool matched = false;
};

/// Matches and what lies between them, in order.
[[nodiscard]] Result<std::vector<Part>> cut_at_matches(std::string_view text, const Split& split) {
  const auto matches = split.pattern.matches(text);
  if (!matches) return matches.error();
  std::vector<Part> parts;
  parts.reserve(matches->size() + 1);
  std::size_t cut = 0;
  for (const Span& match : *matches) {
    if (match.begin > cut) parts.push_back({{cut, match.begin}, split.inverted});
    parts.push_back({match, !split.inverted});
    cut = match.end;
  }
  if (cut < text.size()) parts.push_back({{cut, text.size()}, split.inverted});
  return parts;
}

/// Joins neighbours as the behaviour says; what is removed is left out.
[[nodiscard]] std::vector<Part> join_parts(const std::vector<Part>& parts, SplitBehavior behavior) {
  std::vector<Part> joined;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const bool follows = i > 0;
    bool joins = false;
    switch (behavior) {
      case SplitBehavior::isolated:
        break;
      case SplitBehavior::removed:
        if (parts[i].matched) continue;
        break;
      case SplitBehavior::contiguous:
        joins = follows && parts[i].matched == parts[i - 1].matched;
        break;
      case SplitBehavior::merged_with_previous:
        joins = follows && parts[i].matched && !parts[i - 1].matched;
        break;
      case SplitBehavior::merged_with_next:
        joins = follows && !parts[i].matched && parts[i - 1].matched;
        break;
    }
    if (joins) {
      joined.back().span.end = parts[i].span.end;
    } else {
      joined.push_back(parts[i]);
    }
  }
  return joined;
}

[[nodiscard]] cbq::Status apply_split(const Split& split, const Words& words, Words& out) {
  for (const std::string_view word : words) {
    const auto parts = cut_at_matches(word, split);
    if (!parts) return parts.error();
    for (const Part& part : join_parts(*parts, split.behavior)) {
      out.push_back(word.substr(part.span.begin, part.span.end - part.span.begin));
    }
  }
  return {};
}

void apply_prefix_space(const Words& words, Words& out, std::deque<std::string>& storage) {
  for (const std::string_view word : words) {
    if (word.starts_with(' ')) {
      out.push_back(word);
    } else {
      out.emplace_back(storage.emplace_back(std::string(" ").append(word)));
    }
  }
}

struct MetaspaceRun {
  const Metaspace& metaspace;
  TextPosition position;
  std::deque<std::string>& storage;
  std::size_t limit;
};

[[nodiscard]] cbq::Status apply_metaspace(const MetaspaceRun& run, const Words& words, Words& out) {
  const Metaspace& metaspace = run.metaspace;
  Words marked;
  for (std::size_t i = 0; i < words.size(); ++i) {
    auto replaced = replace_matches(words[i], metaspace.space, metaspace.mark, run.limit);
    if (!replaced) return replaced.error();
    const bool prefixes =
        metaspace.prefix == Metaspace::Prefix::always ||
        (metaspace.prefix == Metaspace::Prefix::first && run.position == TextPosition::start && i == 0);
    if (prefixes && !replaced->starts_with(metaspace.mark)) replaced->insert(0, metaspace.mark);
    marked.emplace_back(run.storage.emplace_back(*std::move(replaced)));
  }
  if (!metaspace.splits) {
    out = std::move(marked);
    return {};
  }
  return apply_split(Split{metaspace.mark_match, SplitBehavior::merged_with_next, false}, marked, out);
}

/// White_Space of Unicode 15.
[[nodiscard]] bool is_white_space(std::string_view character) {
  static constexpr std::array<std::string_view, 25> spaces = {
      "\t",           "\n",           "\v",           "\f",           "\r",           " ",
      "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81", "\xE2\x80\x82",
      "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88",
      "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F",
      "\xE3\x80\x80"};
  return std::find(spaces.begin(), spaces.end(), character) != spaces.end();
}

[[nodiscard]] std::size_t skip_spaces(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    const std::size_t length = character_length(text, at);
    if (!is_white_space(text.substr(at, length))) break;
    at += length;
  }
  return at;
}

/// Start of the white space that ends at `at`, not before `floor`.
[[nodiscard]] std::size_t skip_spaces_back(std::string_view text, std::size_t at, std::size_t floor) {
  for (bool found = true; found;) {
    found = false;
    for (std::size_t length = 1; length <= 3 && length + floor <= at && !found; ++length) {
      found = is_white_space(text.substr(at - length, length));
      if (found) at -= length;
    }
  }
  return at;
}

}  // namespace

Result<std::string> normalize(std::string_view text, const std::vector<Normalizer>& normalizers) {
  std::string normalized(text);
  const std::size_t limit = longest_result(text);
  for (const Normalizer& normalizer : normalizers) {
    if (normalized.size() > limit) return too_long(limit);
    if (const auto* prepend = std::get_if<Prepend>(&normalizer)) {
      if (!normalized.empty()) normalized.insert(0, prepend->text);
    } else if (const auto* replace = std::get_if<Replace>(&normalizer)) {
      auto replaced = replace_matches(normalized, replace->pattern, replace->replacement, limit);
      if (!replaced) return replaced.error();
      normalized = *std::move(replaced);
    }
  }
  return normalized;
}

Result<Words> split_words(std::string_view text, TextPosition position, const std::vector<PreTokenizer>& pre_tokenizers,
                          std::deque<std::string>& storage) {
  Words words;
  if (!text.empty()) words.push_back(text);
  const std::size_t limit = longest_result(text);
  for (const PreTokenizer& step : pre_tokenizers) {
    std::size_t length = 0;
    for (const std::string_view word : words) length += word.size();
    if (length > limit) return too_long(limit);
    Words next;
    if (const auto* split = std::get_if<Split>(&step)) {
      const cbq::Status status = apply_split(*split, words, next);
      if (!status) return status.error();
    } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
      const cbq::Status status = apply_metaspace({*metaspace, position, storage, limit}, words, next);
      if (!status) return status.error();
    } else {
      apply_prefix_space(words, next, storage);
    }
    words = std::move(next);
  }
  return words;
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.text.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.text.size() > b.text.size(); });
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    by_first_byte_[static_cast<unsigned char>(tokens_[i].text.front())].push_back(static_cast<std::uint32_t>(i));
  }
}

const AddedToken* AddedTokenFinder::longest_at(std::string_view text, std::size_t at, Wanted wanted) const {
  for (const std::uint32_t index : by_first_byte_[static_cast<unsigned char>(text[at])]) {
    const AddedToken& token = tokens_[index];
    if (wanted == Wanted::not_special && token.special) continue;
    if (text.substr(at).starts_with(token.text)) return &token;
  }
  return nullptr;
}

std::vector<AddedTokenFinder::Match> AddedTokenFinder::find(std::string_view text, Wanted wanted) const {
  std::vector<Match> matches;
  if (tokens_.empty()) return matches;
  std::size_t free_from = 0;  // end of the last match
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token = longest_at(text, at, wanted);
    if (token == nullptr) {
      ++at;
      continue;
    }
    Span span{at, at + token->text.size()};
    if (token->strips_left) span.begin = skip_spaces_back(text, span.begin, free_from);
    if (token->strips_right) span.end = skip_spaces(text, span.end);
    matches.push_back({span, token->id});
    free_from = at = span.end;
  }
  return matches;
}

}  // namespace cbq_llama
