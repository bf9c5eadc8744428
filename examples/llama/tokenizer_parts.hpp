// SPDX-License-Identifier: Apache-2.0
#pragma once

// A tokenizer as its file describes it, before it is checked and made fast. tokenizer_json.cpp and tokenizer_gguf.cpp
// fill it; Tokenizer::assemble checks it: the one place that decides what a well-formed tokenizer is.

#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cbq/core/result.hpp>

#include "tokenizer.hpp"
#include "tokenizer_splits.hpp"

namespace cbq_llama {

/// What the smallest symbols of a word are.
enum class Alphabet {
  bytes,      ///< byte-level BPE: tokens are spelled in the GPT-2 alphabet
  characters  ///< SentencePiece-style: tokens are spelled in UTF-8, U+2581 for a space
};

struct TokenizerParts {
  /// Ids at or above this are refused: a table of all ids is kept, and no vocabulary comes near.
  static constexpr std::int64_t id_limit = std::int64_t{1} << 22U;
  /// Scored tokens longer than this are refused: every way to cut one is looked up.
  static constexpr std::size_t scored_token_limit = 1024;

  Alphabet alphabet = Alphabet::bytes;
  std::vector<std::pair<std::string, std::int64_t>> tokens;  // text as spelled in the file, id
  std::vector<AddedToken> added_tokens;

  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  /// Instead of merges: how good each token is, for those that merging may produce; by position in `tokens`.
  std::vector<std::optional<float>> scores;

  bool whole_words_first = false;  // a word that is a token needs no merging
  bool byte_fallback = false;      // a character without token becomes the tokens <0x00>..<0xFF> of its bytes
  bool fuses_unknown = false;      // neighbouring unknown characters become one unknown token

  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;

  std::string space_mark;           // what stands for a space inside tokens; empty if nothing does
  bool strips_first_space = false;  // decoding takes off one space at the start of a text

  std::vector<std::int64_t> prefix;
  std::vector<std::int64_t> suffix;
  std::optional<std::int64_t> bos;
  std::optional<std::int64_t> eos;
  std::optional<std::int64_t> unknown;
};

/// What a tokenizer.json says. Errors: as Tokenizer::from_json.
[[nodiscard]] cbq::Result<TokenizerParts> read_tokenizer_json(std::string_view json, SpecialIds ids);

/// The name that GGUF has for the pre-tokenizers of a byte-level tokenizer; empty: none. See tokenizer_gguf.cpp.
[[nodiscard]] std::string pre_tokenizer_name(const TokenizerParts& parts);

/// The byte that a token of the form <0xNN> stands for (two hexadecimal digits), or nothing.
[[nodiscard]] std::optional<unsigned char> byte_of_token(std::string_view token);

/// Cuts "left right" at its only space. Errors: bad_file.
[[nodiscard]] cbq::Result<std::pair<std::string, std::string>> parse_merge(std::string_view merge, std::size_t rank);

/// Runs `task`, which returns a Result, and turns a failed allocation into an Error.
template <class Task>
[[nodiscard]] auto reporting_bad_alloc(Task&& task) -> decltype(task()) {
  try {
    return task();
  } catch (const std::bad_alloc&) {
    return cbq::Error{cbq::Errc::out_of_memory, "no memory for the tokenizer's tables or text"};
  }
}

}  // namespace cbq_llama
