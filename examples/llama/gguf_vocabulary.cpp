// SPDX-License-Identifier: Apache-2.0
#include "gguf_vocabulary.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "calibration_text.hpp"
#include "tokenizer_parts.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::Status;

namespace {

template <class T>
cbq::Json optional_json(const std::optional<T>& value) {
  return value ? cbq::Json(*value) : cbq::Json(nullptr);
}

}  // namespace

cbq::Json to_json(const GgufVocabulary& vocabulary) {
  return cbq::Json{{"model", vocabulary.model},
                   {"pre", vocabulary.pre},
                   {"tokens", vocabulary.tokens},
                   {"token_type", vocabulary.token_types},
                   {"scores", vocabulary.scores},
                   {"merges", vocabulary.merges},
                   {"bos_token_id", optional_json(vocabulary.bos)},
                   {"eos_token_id", optional_json(vocabulary.eos)},
                   {"unknown_token_id", optional_json(vocabulary.unknown)},
                   {"add_bos_token", optional_json(vocabulary.add_bos)},
                   {"add_eos_token", optional_json(vocabulary.add_eos)},
                   {"add_space_prefix", optional_json(vocabulary.add_space_prefix)},
                   {"chat_template", vocabulary.chat_template}};
}

namespace {

// Ids of texts and kinds of tokens; what no token stands for is unused.
Status fill_tokens(const TokenizerParts& parts, std::size_t size, GgufVocabulary& vocabulary) {
  constexpr std::int32_t normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6;
  vocabulary.tokens.resize(size);
  vocabulary.token_types.assign(size, unused);
  const auto set = [&](const std::string& text, std::int64_t id, std::int32_t type) -> Status {
    if (id < 0 || static_cast<std::uint64_t>(id) >= size) {
      return Error{Errc::bad_file, "a token beyond the model's vocabulary", text, id, ErrorText("below ") << size};
    }
    vocabulary.tokens[static_cast<std::size_t>(id)] = text;
    vocabulary.token_types[static_cast<std::size_t>(id)] = type;
    return {};
  };
  const bool has_bytes = parts.alphabet == Alphabet::characters && parts.byte_fallback;
  for (const auto& [text, id] : parts.tokens) {
    const std::int32_t type = has_bytes && byte_of_token(text)   ? byte
                              : parts.unknown == id && has_bytes ? unknown
                                                                 : normal;
    if (const Status ok = set(text, id, type); !ok) return ok;
  }
  for (const AddedToken& token : parts.added_tokens) {
    if (token.strips_left || token.strips_right) {
      return Error{Errc::unsupported, "GGUF has no tokens that take white space along", token.text};
    }
    const bool is_unknown = has_bytes && parts.unknown == token.id;
    if (const Status ok = set(token.text, token.id, is_unknown ? unknown : token.special ? control : user_defined); !ok)
      return ok;
  }
  for (std::size_t i = 0; i < size; ++i) {
    if (vocabulary.token_types[i] == unused) vocabulary.tokens[i] = "[PAD" + std::to_string(i) + "]";
  }
  return {};
}

Status describe_bytes(const TokenizerParts& parts, GgufVocabulary& vocabulary) {
  vocabulary.model = "gpt2";
  vocabulary.pre = pre_tokenizer_name(parts);
  if (vocabulary.pre.empty() || !parts.normalizers.empty()) {
    return Error{Errc::unsupported, "GGUF has no name for this normalizer and pre-tokenizer", "tokenizer.json"};
  }
  for (const auto& [left, right] : parts.merges) vocabulary.merges.push_back(left + " " + right);
  return {};
}

// Merging by scores gives what merging by ranks gives where each token's merges are neighbours in rank, as they are in
// vocabularies that came from SentencePiece.
Status describe_characters(const TokenizerParts& parts, GgufVocabulary& vocabulary) {
  if (!parts.byte_fallback || parts.space_mark != "\xE2\x96\x81") {
    return Error{Errc::unsupported, "GGUF wants byte fallback and spaces as U+2581 of such a vocabulary",
                 "tokenizer.json"};
  }
  vocabulary.model = "llama";
  vocabulary.pre = "default";
  vocabulary.unknown = parts.unknown;
  vocabulary.add_space_prefix = parts.strips_first_space;
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) ids.emplace(vocabulary.tokens[i], i);
  vocabulary.scores.assign(vocabulary.tokens.size(), -static_cast<float>(parts.merges.size()));
  for (std::size_t rank = parts.merges.size(); rank-- > 0;) {
    const auto found = ids.find(parts.merges[rank].first + parts.merges[rank].second);
    if (found != ids.end()) vocabulary.scores[found->second] = -static_cast<float>(rank);
  }
  return {};
}

Status describe_frame(const TokenizerParts& parts, GgufVocabulary& vocabulary) {
  const auto is_only = [](const std::vector<std::int64_t>& list, const std::optional<std::int64_t>& id) {
    return list.size() == 1 && id == list.front();
  };
  // The template names BOS where config.json does not.
  if (!vocabulary.bos && parts.prefix.size() == 1) vocabulary.bos = parts.prefix.front();
  if (!vocabulary.eos && parts.suffix.size() == 1) vocabulary.eos = parts.suffix.front();
  vocabulary.add_bos = is_only(parts.prefix, vocabulary.bos);
  vocabulary.add_eos = is_only(parts.suffix, vocabulary.eos);
  if (*vocabulary.add_bos == !parts.prefix.empty() && *vocabulary.add_eos == !parts.suffix.empty()) return {};
  return Error{Errc::unsupported, "GGUF puts only BOS before and EOS after a text", "tokenizer.json: post_processor"};
}

// Both tokenizers have to cut the same texts alike: one with every token in it, and ordinary prose.
Status check_same(const Tokenizer& json, const Tokenizer& gguf) {
  std::vector<std::int32_t> ids;
  for (std::size_t id = 0; id < json.vocabulary_size(); ++id) ids.push_back(static_cast<std::int32_t>(id));
  const Result<std::string> all = json.decode(ids, ShowSpecial::no);
  if (!all) return all.error();
  for (const std::string_view text :
       {std::string_view(*all), embedded_calibration_text(), std::string_view(" a  b\n\n1234 ")}) {
    const auto wanted = json.encode(text);
    if (!wanted) return wanted.error();
    const auto got = gguf.encode(text);
    if (!got) return got.error();
    if (*got != *wanted) {
      return Error{Errc::unsupported, "as a GGUF vocabulary this tokenizer would split text differently",
                   "tokenizer.json"};
    }
  }
  return {};
}

}  // namespace

Result<GgufVocabulary> vocabulary_of_json(std::string_view tokenizer_json, const SpecialIds& ids, std::size_t size) {
  return reporting_bad_alloc([&]() -> Result<GgufVocabulary> {
    const Result<TokenizerParts> parts = read_tokenizer_json(tokenizer_json, ids);
    if (!parts) return parts.error();
    GgufVocabulary vocabulary;
    vocabulary.bos = ids.bos;
    vocabulary.eos = ids.eos;
    if (const Status ok = fill_tokens(*parts, size, vocabulary); !ok) return ok.error();
    if (const Status ok = describe_frame(*parts, vocabulary); !ok) return ok.error();
    const Status described = parts->alphabet == Alphabet::bytes ? describe_bytes(*parts, vocabulary)
                                                                : describe_characters(*parts, vocabulary);
    if (!described) return described.error();
    const Result<Tokenizer> json = Tokenizer::from_json(tokenizer_json, ids);
    if (!json) return json.error();
    const Result<Tokenizer> gguf = Tokenizer::from_gguf(vocabulary);
    if (!gguf) return gguf.error();
    if (const Status same = check_same(*json, *gguf); !same) return same.error();
    return vocabulary;
  });
}

void add_keys(const GgufVocabulary& vocabulary, cbq::GgufKeys& keys) {
  const auto id = [&keys](const char* key, const std::optional<std::int64_t>& value) {
    if (value) keys.add(key, static_cast<std::uint32_t>(*value));
  };
  const auto flag = [&keys](const char* key, const std::optional<bool>& value) {
    if (value) keys.add(key, *value);
  };
  keys.add("tokenizer.ggml.model", vocabulary.model);
  if (!vocabulary.pre.empty()) keys.add("tokenizer.ggml.pre", vocabulary.pre);
  keys.add("tokenizer.ggml.tokens", std::span<const std::string>(vocabulary.tokens));
  if (!vocabulary.scores.empty()) keys.add("tokenizer.ggml.scores", std::span<const float>(vocabulary.scores));
  if (!vocabulary.token_types.empty()) {
    keys.add("tokenizer.ggml.token_type", std::span<const std::int32_t>(vocabulary.token_types));
  }
  if (!vocabulary.merges.empty()) keys.add("tokenizer.ggml.merges", std::span<const std::string>(vocabulary.merges));
  id("tokenizer.ggml.bos_token_id", vocabulary.bos);
  id("tokenizer.ggml.eos_token_id", vocabulary.eos);
  id("tokenizer.ggml.unknown_token_id", vocabulary.unknown);
  flag("tokenizer.ggml.add_bos_token", vocabulary.add_bos);
  flag("tokenizer.ggml.add_eos_token", vocabulary.add_eos);
  flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix);
  if (!vocabulary.chat_template.empty()) keys.add("tokenizer.chat_template", vocabulary.chat_template);
}

}  // namespace cbq_llama
