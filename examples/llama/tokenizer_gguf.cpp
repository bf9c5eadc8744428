// SPDX-License-Identifier: Apache-2.0

// Tokenizers from GGUF metadata. The file names its pre-tokenizer instead of spelling it out: the expressions behind
// the names are those of the models' own tokenizer.json files.

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "tokenizer.hpp"
#include "tokenizer_parts.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::string_view space_mark = "\xE2\x96\x81";  // U+2581

// Values of tokenizer.ggml.token_type that mean something here.
constexpr std::int32_t type_normal = 1;
constexpr std::int32_t type_unknown = 2;
constexpr std::int32_t type_control = 3;
constexpr std::int32_t type_user_defined = 4;
constexpr std::int32_t type_byte = 6;

constexpr const char* gpt2_words = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* llama3_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* qwen2_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* one_digit = R"(\p{N})";

struct NamedPreTokenizer {
  std::string_view name;
  std::array<const char*, 4> expressions;  // each cuts the pieces of the one before; unused ones are null
  bool whole_words_first = false;
  bool adds_bos = false;
};

constexpr std::array<NamedPreTokenizer, 23> pre_tokenizers_by_name = {{
    // What llama.cpp does with files too old to name theirs.
    {"", {R"([\p{P}\$\+<=>\^~\|]+)", gpt2_words, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
    {"default", {R"([\p{P}\$\+<=>\^~\|]+)", gpt2_words, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
    {"gpt-2", {gpt2_words}},
    {"phi-2", {gpt2_words}},
    {"mpt", {gpt2_words}},
    {"olmo", {gpt2_words}},
    {"jais", {gpt2_words}},
    {"smollm", {one_digit, gpt2_words}},
    {"starcoder", {one_digit, gpt2_words}},
    {"refact", {one_digit, gpt2_words}},
    {"command-r", {one_digit, gpt2_words}},
    {"codeshell", {one_digit, gpt2_words}},
    {"exaone", {one_digit, gpt2_words}},
    {"minerva-7b", {one_digit, gpt2_words}},
    {"llama-bpe", {llama3_words}, true, true},
    {"llama3", {llama3_words}, true, true},
    {"llama-v3", {llama3_words}, true, true},
    {"falcon3", {llama3_words}, true, true},
    {"dbrx", {llama3_words}},
    {"smaug-bpe", {llama3_words}},
    {"qwen2", {qwen2_words}},
    {"deepseek-r1-qwen", {qwen2_words}},
    {"stablelm2", {qwen2_words}},
}};

[[nodiscard]] Status check_sizes(const GgufVocabulary& vocabulary) {
  const std::size_t count = vocabulary.tokens.size();
  if (count > static_cast<std::size_t>(TokenizerParts::id_limit)) {
    return Error{Errc::bad_file, "the vocabulary is too large", "tokenizer.ggml.tokens", count,
                 TokenizerParts::id_limit};
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != count) {
    return Error{Errc::bad_file, "the number of token types is not the number of tokens", "tokenizer.ggml.token_type",
                 vocabulary.token_types.size(), count};
  }
  return {};
}

/// Tokens with their ids, and those among them that are searched in the text as they stand.
[[nodiscard]] Status add_tokens(const GgufVocabulary& vocabulary, TokenizerParts& parts) {
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string& text = vocabulary.tokens[i];
    parts.tokens.emplace_back(text, static_cast<std::int64_t>(i));
    const std::int32_t type = vocabulary.token_types.empty() ? type_normal : vocabulary.token_types[i];
    if (type < 0 || type > type_byte) {
      return Error{Errc::bad_file, "a token has an unknown type", text, type, "0 to 6"};
    }
    if (type == type_unknown || type == type_control || type == type_user_defined) {
      AddedToken token;
      token.text = text;
      token.id = static_cast<std::int32_t>(i);
      token.special = type != type_user_defined;
      parts.added_tokens.push_back(std::move(token));
    }
  }
  return {};
}

[[nodiscard]] Status describe_byte_level(const GgufVocabulary& vocabulary, TokenizerParts& parts) {
  const auto* named = std::find_if(pre_tokenizers_by_name.begin(), pre_tokenizers_by_name.end(),
                                   [&](const NamedPreTokenizer& entry) { return entry.name == vocabulary.pre; });
  if (named == pre_tokenizers_by_name.end()) {
    return Error{Errc::unsupported, "the pre-tokenizer is not known", "tokenizer.ggml.pre", vocabulary.pre,
                 "gpt-2, smollm, llama-bpe, qwen2, default or a few others"};
  }
  for (const char* expression : named->expressions) {
    if (expression == nullptr) break;
    auto pattern = Regex::compile(expression);
    if (!pattern) return pattern.error();
    parts.pre_tokenizers.emplace_back(Split{*std::move(pattern), SplitBehavior::isolated, false});
  }
  parts.alphabet = Alphabet::bytes;
  parts.whole_words_first = named->whole_words_first;
  parts.bos = vocabulary.bos;
  parts.eos = vocabulary.eos;
  // No unknown token: byte-level BPE has no use for one, and files that name one name any control token.
  if (vocabulary.add_bos.value_or(named->adds_bos) && parts.bos) parts.prefix = {*parts.bos};
  for (std::size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    auto merge = parse_merge(vocabulary.merges[rank], rank);
    if (!merge) return merge.error();
    parts.merges.push_back(*std::move(merge));
  }
  return {};
}

/// Merging produces normal tokens only: user-defined ones are cut out of the text before, unused ones never occur.
[[nodiscard]] Status add_scores(const GgufVocabulary& vocabulary, TokenizerParts& parts) {
  const std::size_t count = vocabulary.tokens.size();
  if (vocabulary.scores.size() != count) {
    return Error{Errc::bad_file, "the number of scores is not the number of tokens", "tokenizer.ggml.scores",
                 vocabulary.scores.size(), count};
  }
  for (std::size_t i = 0; i < count; ++i) {
    const bool is_byte = byte_of_token(vocabulary.tokens[i]).has_value();
    const std::int32_t type = vocabulary.token_types.empty() ? (is_byte ? type_byte : type_normal)  //
                                                             : vocabulary.token_types[i];
    if (type == type_byte && !is_byte) {
      return Error{Errc::bad_file, "a byte token is not of the form <0xNN>", "tokenizer.ggml.tokens",
                   vocabulary.tokens[i], "two hexadecimal digits"};
    }
    parts.scores.push_back(type == type_normal ? std::optional(vocabulary.scores[i]) : std::nullopt);
  }
  return {};
}

[[nodiscard]] Status describe_sentence_piece(const GgufVocabulary& vocabulary, TokenizerParts& parts) {
  parts.alphabet = Alphabet::characters;
  parts.byte_fallback = true;
  parts.fuses_unknown = true;
  parts.space_mark = space_mark;
  parts.bos = vocabulary.bos.value_or(1);
  parts.eos = vocabulary.eos.value_or(2);
  parts.unknown = vocabulary.unknown.value_or(0);
  if (vocabulary.add_bos.value_or(true)) parts.prefix = {*parts.bos};
  auto space = Regex::literal(" ");
  if (!space) return space.error();
  if (vocabulary.add_space_prefix.value_or(true)) {
    parts.normalizers.emplace_back(Prepend{" "});
    parts.strips_first_space = true;
  }
  parts.normalizers.emplace_back(Replace{*std::move(space), std::string(space_mark)});
  for (AddedToken& token : parts.added_tokens) {
    if (token.special) continue;
    // Raw text is searched, which has spaces where the vocabulary has marks.
    token.spelling = token.text;
    token.text.clear();
    for (std::size_t at = 0; at < token.spelling.size();) {
      const bool is_mark = std::string_view(token.spelling).substr(at).starts_with(space_mark);
      token.text += is_mark ? ' ' : token.spelling[at];
      at += is_mark ? space_mark.size() : 1;
    }
  }
  return add_scores(vocabulary, parts);
}

}  // namespace

std::string pre_tokenizer_name(const TokenizerParts& parts) {
  for (const NamedPreTokenizer& entry : pre_tokenizers_by_name) {
    if (entry.name.empty() || entry.whole_words_first != parts.whole_words_first) continue;
    std::size_t count = 0;
    while (count < entry.expressions.size() && entry.expressions[count] != nullptr) ++count;
    bool same = count == parts.pre_tokenizers.size();
    for (std::size_t i = 0; same && i < count; ++i) {
      const Split* split = std::get_if<Split>(&parts.pre_tokenizers[i]);
      same = split != nullptr && split->behavior == SplitBehavior::isolated && !split->inverted &&
             split->pattern.expression() == entry.expressions[i];
    }
    if (same) return std::string(entry.name);
  }
  return {};
}

Result<Tokenizer> Tokenizer::from_gguf(const GgufVocabulary& vocabulary) {
  return reporting_bad_alloc([&]() -> Result<Tokenizer> {
    TokenizerParts parts;
    if (const Status status = check_sizes(vocabulary); !status) return status.error();
    if (const Status status = add_tokens(vocabulary, parts); !status) return status.error();
    const bool byte_level = vocabulary.model == "gpt2";
    if (!byte_level && vocabulary.model != "llama") {
      return Error{Errc::unsupported, "the tokenizer model is not supported", "tokenizer.ggml.model", vocabulary.model,
                   "gpt2 or llama"};
    }
    const Status status =
        byte_level ? describe_byte_level(vocabulary, parts) : describe_sentence_piece(vocabulary, parts);
    if (!status) return status.error();
    if (vocabulary.add_eos.value_or(false) && parts.eos) parts.suffix = {*parts.eos};
    return assemble(std::move(parts));
  });
}

}  // namespace cbq_llama
