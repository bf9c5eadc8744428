// SPDX-License-Identifier: Apache-2.0

// Tokenizers from a Hugging Face tokenizer.json. Every member that could change the ids is either understood or
// refused; only truncation, padding, dropout and offsets, which cannot, are passed over.

#include <string_view>
#include <utility>

#include <cbq/io/json.hpp>

#include "tokenizer.hpp"
#include "tokenizer_parts.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::Status;

namespace {

using Json = cbq::Json;

// ---------------------------------------------------------------------------------------------------------------------
// Members with their types

/// The member, or nullptr when it is absent or null.
[[nodiscard]] const Json* member(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

[[nodiscard]] Error wrong_type(const char* where, const Json& got, const char* wanted) {
  return Error{Errc::bad_file, "a member of tokenizer.json has the wrong type", where, got.type_name(), wanted};
}

[[nodiscard]] Error missing(const char* where, const char* name) {
  return Error{Errc::bad_file, "a member of tokenizer.json is missing", where, {}, name};
}

[[nodiscard]] Result<std::string> string_member(const Json& object, const char* name, const char* where) {
  const Json* value = member(object, name);
  if (value == nullptr) return missing(where, name);
  if (!value->is_string()) return wrong_type(name, *value, "string");
  return value->get<std::string>();
}

[[nodiscard]] Result<bool> bool_member(const Json& object, const char* name, bool otherwise) {
  const Json* value = member(object, name);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) return wrong_type(name, *value, "boolean");
  return value->get<bool>();
}

[[nodiscard]] Result<std::int64_t> id_of(const Json& value, std::string_view where) {
  if (!value.is_number_integer()) {
    return Error{Errc::bad_file, "a token id is not an integer", where, value.type_name(), "integer"};
  }
  if (value.is_number_unsigned() &&
      value.get<std::uint64_t>() >= static_cast<std::uint64_t>(TokenizerParts::id_limit)) {
    return Error{Errc::bad_file, "a token id is out of range", where, value.get<std::uint64_t>(),
                 ErrorText("0 to below ") << TokenizerParts::id_limit};
  }
  return value.get<std::int64_t>();
}

[[nodiscard]] Error unsupported_type(const char* where, std::string_view got, const char* wanted) {
  return Error{Errc::unsupported, "this kind of tokenizer is not supported", where, got, wanted};
}

/// Calls `visit(step, type)` for the object itself, or for each entry of its `list` when its type is "Sequence".
template <class Visit>
[[nodiscard]] Status for_each_step(const Json& object, const char* list, const char* where, Visit visit) {
  const auto type = string_member(object, "type", where);
  if (!type) return type.error();
  if (*type != "Sequence") return visit(object, *type);
  const Json* steps = member(object, list);
  if (steps == nullptr) return missing(where, list);
  if (!steps->is_array()) return wrong_type(list, *steps, "array");
  for (const Json& step : *steps) {
    const auto inner = string_member(step, "type", where);
    if (!inner) return inner.error();
    if (const Status status = visit(step, *inner); !status) return status;
  }
  return {};
}

/// {"String": text} or {"Regex": expression}.
[[nodiscard]] Result<Regex> pattern_member(const Json& object, const char* where) {
  const Json* pattern = member(object, "pattern");
  if (pattern == nullptr) return missing(where, "pattern");
  if (const Json* text = member(*pattern, "String"); text != nullptr && text->is_string()) {
    return Regex::literal(text->get_ref<const std::string&>());
  }
  if (const Json* expression = member(*pattern, "Regex"); expression != nullptr && expression->is_string()) {
    return Regex::compile(expression->get_ref<const std::string&>());
  }
  return wrong_type("pattern", *pattern, "{\"String\": text} or {\"Regex\": expression}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Parts of the file

[[nodiscard]] Status read_vocabulary(const Json& model, TokenizerParts& parts) {
  const Json* vocabulary = member(model, "vocab");
  if (vocabulary == nullptr) return missing("model", "vocab");
  if (!vocabulary->is_object()) return wrong_type("model.vocab", *vocabulary, "object");
  parts.tokens.reserve(vocabulary->size());
  for (const auto& [text, value] : vocabulary->items()) {
    const auto id = id_of(value, text);
    if (!id) return id.error();
    parts.tokens.emplace_back(text, *id);
  }
  return {};
}

[[nodiscard]] Status read_merges(const Json& model, TokenizerParts& parts) {
  const Json* merges = member(model, "merges");
  if (merges == nullptr) return missing("model", "merges");
  if (!merges->is_array()) return wrong_type("model.merges", *merges, "array");
  parts.merges.reserve(merges->size());
  for (std::size_t rank = 0; rank < merges->size(); ++rank) {
    const Json& merge = (*merges)[rank];
    if (merge.is_string()) {
      auto parsed = parse_merge(merge.get_ref<const std::string&>(), rank);
      if (!parsed) return parsed.error();
      parts.merges.push_back(*std::move(parsed));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      parts.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      return Error{Errc::bad_file, "a merge is neither \"left right\" nor [left, right]",
                   ErrorText("model.merges[") << rank << "]"};
    }
  }
  return {};
}

/// The model's own id of a token, which its unknown token must have.
[[nodiscard]] std::optional<std::int64_t> id_in_vocabulary(const Json& model, const std::string& token) {
  const Json* vocabulary = member(model, "vocab");
  const Json* id = vocabulary == nullptr ? nullptr : member(*vocabulary, token.c_str());
  if (id == nullptr || !id->is_number_integer()) return std::nullopt;
  return id->get<std::int64_t>();
}

[[nodiscard]] Status read_model(const Json& file, TokenizerParts& parts) {
  const Json* model = member(file, "model");
  if (model == nullptr) return missing("tokenizer.json", "model");
  if (!model->is_object()) return wrong_type("model", *model, "object");
  // Files before 2021 do not name the type; only BPE has merges.
  if (member(*model, "type") != nullptr) {
    const auto type = string_member(*model, "type", "model");
    if (!type) return type.error();
    if (*type != "BPE") return unsupported_type("model.type", *type, "BPE");
  }
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json* affix = member(*model, name);
    if (affix != nullptr && !cbq::json_is(*affix, ""))
      return unsupported_type(name, "a non-empty text", "empty or null");
  }
  const auto byte_fallback = bool_member(*model, "byte_fallback", false);
  if (!byte_fallback) return byte_fallback.error();
  const auto fuses = bool_member(*model, "fuse_unk", false);
  if (!fuses) return fuses.error();
  const auto whole = bool_member(*model, "ignore_merges", false);
  if (!whole) return whole.error();
  parts.byte_fallback = *byte_fallback;
  parts.fuses_unknown = *fuses;
  parts.whole_words_first = *whole;
  if (const Status status = read_vocabulary(*model, parts); !status) return status;
  if (const Status status = read_merges(*model, parts); !status) return status;
  if (member(*model, "unk_token") != nullptr) {
    const auto token = string_member(*model, "unk_token", "model");
    if (!token) return token.error();
    parts.unknown = id_in_vocabulary(*model, *token);
    if (!parts.unknown) {
      return Error{Errc::bad_file, "the unknown token is not in the vocabulary", "model.unk_token", *token};
    }
  }
  return {};
}

[[nodiscard]] Result<AddedToken> read_added_token(const Json& entry) {
  const auto text = string_member(entry, "content", "added_tokens");
  if (!text) return text.error();
  const Json* value = member(entry, "id");
  if (value == nullptr) return missing("added_tokens", "id");
  const auto id = id_of(*value, *text);
  if (!id) return id.error();
  if (*id < 0) return Error{Errc::bad_file, "a token id is out of range", *text, *id, "0 or more"};
  AddedToken token;
  token.text = *text;
  token.id = static_cast<std::int32_t>(*id);
  const std::pair<const char*, bool*> flags[] = {{"special", &token.special},
                                                 {"normalized", &token.normalized},
                                                 {"lstrip", &token.strips_left},
                                                 {"rstrip", &token.strips_right}};
  for (const auto& [name, flag] : flags) {
    const auto set = bool_member(entry, name, false);
    if (!set) return set.error();
    *flag = *set;
  }
  const auto single_word = bool_member(entry, "single_word", false);
  if (!single_word) return single_word.error();
  if (*single_word) return unsupported_type("added_tokens", "single_word", "single_word: false");
  return token;
}

[[nodiscard]] Status read_added_tokens(const Json& file, TokenizerParts& parts) {
  const Json* list = member(file, "added_tokens");
  if (list == nullptr) return {};
  if (!list->is_array()) return wrong_type("added_tokens", *list, "array");
  for (const Json& entry : *list) {
    auto token = read_added_token(entry);
    if (!token) return token.error();
    if (!token->text.empty()) parts.added_tokens.push_back(*std::move(token));
  }
  return {};
}

[[nodiscard]] Status read_normalizer(const Json& file, TokenizerParts& parts) {
  const Json* normalizer = member(file, "normalizer");
  if (normalizer == nullptr) return {};
  return for_each_step(*normalizer, "normalizers", "normalizer",
                       [&](const Json& step, const std::string& type) -> Status {
                         if (type == "NFC") return {};  // see tokenizer.hpp
                         if (type == "Prepend") {
                           auto text = string_member(step, "prepend", "normalizer");
                           if (!text) return text.error();
                           parts.normalizers.emplace_back(Prepend{*std::move(text)});
                           return {};
                         }
                         if (type == "Replace") {
                           auto pattern = pattern_member(step, "normalizer");
                           if (!pattern) return pattern.error();
                           auto text = string_member(step, "content", "normalizer");
                           if (!text) return text.error();
                           parts.normalizers.emplace_back(Replace{*std::move(pattern), *std::move(text)});
                           return {};
                         }
                         return unsupported_type("normalizer", type, "NFC, Prepend, Replace, or a Sequence of them");
                       });
}

[[nodiscard]] Status add_split(const char* expression, SplitBehavior behavior, TokenizerParts& parts) {
  auto pattern = Regex::compile(expression);
  if (!pattern) return pattern.error();
  parts.pre_tokenizers.emplace_back(Split{*std::move(pattern), behavior, false});
  return {};
}

[[nodiscard]] Status read_byte_level(const Json& step, TokenizerParts& parts) {
  const auto prefix_space = bool_member(step, "add_prefix_space", true);
  if (!prefix_space) return prefix_space.error();
  const auto uses_regex = bool_member(step, "use_regex", true);
  if (!uses_regex) return uses_regex.error();
  if (*prefix_space) parts.pre_tokenizers.emplace_back(PrefixSpace{});
  if (!*uses_regex) return {};
  return add_split(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                   SplitBehavior::isolated, parts);
}

[[nodiscard]] Status read_split(const Json& step, TokenizerParts& parts) {
  auto pattern = pattern_member(step, "pre_tokenizer");
  if (!pattern) return pattern.error();
  const auto inverted = bool_member(step, "invert", false);
  if (!inverted) return inverted.error();
  const auto name = string_member(step, "behavior", "pre_tokenizer");
  if (!name) return name.error();
  static constexpr std::pair<std::string_view, SplitBehavior> behaviors[] = {
      {"Isolated", SplitBehavior::isolated},
      {"Removed", SplitBehavior::removed},
      {"Contiguous", SplitBehavior::contiguous},
      {"MergedWithPrevious", SplitBehavior::merged_with_previous},
      {"MergedWithNext", SplitBehavior::merged_with_next}};
  for (const auto& [known, behavior] : behaviors) {
    if (*name != known) continue;
    parts.pre_tokenizers.emplace_back(Split{*std::move(pattern), behavior, *inverted});
    return {};
  }
  return unsupported_type("pre_tokenizer.behavior", *name,
                          "Isolated, Removed, Contiguous, MergedWithPrevious or MergedWithNext");
}

[[nodiscard]] Result<Metaspace::Prefix> metaspace_prefix(const Json& step) {
  if (member(step, "prepend_scheme") == nullptr) {
    const auto adds = bool_member(step, "add_prefix_space", true);
    if (!adds) return adds.error();
    return *adds ? Metaspace::Prefix::always : Metaspace::Prefix::never;
  }
  const auto scheme = string_member(step, "prepend_scheme", "Metaspace");
  if (!scheme) return scheme.error();
  if (*scheme == "always") return Metaspace::Prefix::always;
  if (*scheme == "first") return Metaspace::Prefix::first;
  if (*scheme == "never") return Metaspace::Prefix::never;
  return unsupported_type("Metaspace.prepend_scheme", *scheme, "always, first or never");
}

[[nodiscard]] Status read_metaspace(const Json& step, TokenizerParts& parts) {
  auto mark = string_member(step, "replacement", "Metaspace");
  if (!mark) return mark.error();
  const auto prefix = metaspace_prefix(step);
  if (!prefix) return prefix.error();
  const auto splits = bool_member(step, "split", true);
  if (!splits) return splits.error();
  auto space = Regex::literal(" ");
  if (!space) return space.error();
  auto mark_match = Regex::literal(*mark);
  if (!mark_match) return mark_match.error();
  parts.pre_tokenizers.emplace_back(
      Metaspace{*std::move(space), *std::move(mark_match), *std::move(mark), *prefix, *splits});
  return {};
}

[[nodiscard]] Status read_pre_tokenizer(const Json& file, TokenizerParts& parts) {
  parts.alphabet = Alphabet::characters;
  const Json* pre_tokenizer = member(file, "pre_tokenizer");
  if (pre_tokenizer == nullptr) return {};
  return for_each_step(
      *pre_tokenizer, "pretokenizers", "pre_tokenizer", [&](const Json& step, const std::string& type) -> Status {
        if (parts.alphabet == Alphabet::bytes) {
          return Error{Errc::unsupported, "only the last pre-tokenizer may be ByteLevel", "pre_tokenizer", type};
        }
        if (type == "ByteLevel") {
          parts.alphabet = Alphabet::bytes;
          return read_byte_level(step, parts);
        }
        if (type == "Split") return read_split(step, parts);
        if (type == "Metaspace") return read_metaspace(step, parts);
        if (type == "Digits") {
          const auto individual = bool_member(step, "individual_digits", false);
          if (!individual) return individual.error();
          return add_split(R"(\p{N})", *individual ? SplitBehavior::isolated : SplitBehavior::contiguous, parts);
        }
        return unsupported_type("pre_tokenizer", type, "ByteLevel, Split, Digits, Metaspace, or a Sequence of them");
      });
}

/// What a TemplateProcessing puts before and after a single text.
[[nodiscard]] Status read_template(const Json& step, TokenizerParts& parts) {
  const Json* pieces = member(step, "single");
  if (pieces == nullptr) return missing("post_processor", "single");
  if (!pieces->is_array()) return wrong_type("post_processor.single", *pieces, "array");
  const Json* tokens = member(step, "special_tokens");
  bool after = false;
  for (const Json& piece : *pieces) {
    if (member(piece, "Sequence") != nullptr) {
      after = true;
      continue;
    }
    const Json* special = member(piece, "SpecialToken");
    if (special == nullptr) return wrong_type("post_processor.single", piece, "Sequence or SpecialToken");
    const auto name = string_member(*special, "id", "post_processor.single");
    if (!name) return name.error();
    const Json* token = tokens == nullptr ? nullptr : member(*tokens, name->c_str());
    const Json* ids = token == nullptr ? nullptr : member(*token, "ids");
    if (ids == nullptr || !ids->is_array()) {
      return Error{Errc::bad_file, "a template names a special token that has no ids", "post_processor.special_tokens",
                   *name};
    }
    for (const Json& value : *ids) {
      const auto id = id_of(value, *name);
      if (!id) return id.error();
      (after ? parts.suffix : parts.prefix).push_back(*id);
    }
  }
  return {};
}

[[nodiscard]] Status read_post_processor(const Json& file, TokenizerParts& parts) {
  const Json* processor = member(file, "post_processor");
  if (processor == nullptr) return {};
  return for_each_step(*processor, "processors", "post_processor",
                       [&](const Json& step, const std::string& type) -> Status {
                         if (type == "ByteLevel") return {};  // trims offsets only
                         if (type == "TemplateProcessing") return read_template(step, parts);
                         return unsupported_type("post_processor", type, "TemplateProcessing, ByteLevel");
                       });
}

/// Strip: only the one space that was put before the text.
[[nodiscard]] Status read_strip(const Json& step, TokenizerParts& parts) {
  const auto content = string_member(step, "content", "decoder");
  if (!content) return content.error();
  const Json* start = member(step, "start");
  const Json* stop = member(step, "stop");
  const bool one_space =
      cbq::json_is(*content, " ") && start != nullptr && *start == 1 && (stop == nullptr || *stop == 0);
  if (!one_space) return unsupported_type("decoder.Strip", *content, "one space at the start");
  parts.strips_first_space = true;
  return {};
}

/// Replace: only a mark by a space.
[[nodiscard]] Status read_mark(const Json& step, TokenizerParts& parts) {
  const Json* pattern = member(step, "pattern");
  const Json* text = pattern == nullptr ? nullptr : member(*pattern, "String");
  const Json* content = member(step, "content");
  if (text == nullptr || !text->is_string() || content == nullptr || !cbq::json_is(*content, " ")) {
    return unsupported_type("decoder", "Replace", "a text replaced by one space");
  }
  parts.space_mark = text->get<std::string>();
  return {};
}

[[nodiscard]] Status read_decoder(const Json& file, TokenizerParts& parts) {
  const Json* decoder = member(file, "decoder");
  if (decoder == nullptr) return {};
  return for_each_step(*decoder, "decoders", "decoder", [&](const Json& step, const std::string& type) -> Status {
    // What ByteLevel, ByteFallback and Fuse do follows from the alphabet and the model.
    if (type == "ByteLevel" || type == "ByteFallback" || type == "Fuse") return {};
    if (type == "Replace") return read_mark(step, parts);
    if (type == "Strip") return read_strip(step, parts);
    if (type == "Metaspace") {
      auto mark = string_member(step, "replacement", "Metaspace");
      if (!mark) return mark.error();
      const auto prefix = metaspace_prefix(step);
      if (!prefix) return prefix.error();
      parts.space_mark = *std::move(mark);
      parts.strips_first_space = *prefix != Metaspace::Prefix::never;
      return {};
    }
    return unsupported_type("decoder", type, "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace");
  });
}

/// Twice what vocabularies of 256k tokens with as many pairs of merges need.
constexpr cbq::JsonLimits file_limits = {
    .bytes = std::size_t{1} << 28, .values = std::size_t{1} << 23, .depth = 16, .text_bytes = std::size_t{1} << 20};

[[nodiscard]] Result<Json> parse(std::string_view text) {
  Result<Json> file = cbq::parse_json(text, file_limits);
  if (!file) return file;
  if (!file->is_object()) return wrong_type("tokenizer.json", *file, "object");
  return file;
}

}  // namespace

Result<TokenizerParts> read_tokenizer_json(std::string_view json, SpecialIds ids) {
  return reporting_bad_alloc([&]() -> Result<TokenizerParts> {
    const auto file = parse(json);
    if (!file) return file.error();
    TokenizerParts parts;
    using Reader = Status (*)(const Json&, TokenizerParts&);
    for (const Reader read : {Reader{read_model}, Reader{read_added_tokens}, Reader{read_normalizer},
                              Reader{read_pre_tokenizer}, Reader{read_post_processor}, Reader{read_decoder}}) {
      if (const Status status = read(*file, parts); !status) return status.error();
    }
    parts.bos = ids.bos;
    parts.eos = ids.eos;
    return parts;
  });
}

Result<Tokenizer> Tokenizer::from_json(std::string_view json, SpecialIds ids) {
  return reporting_bad_alloc([&]() -> Result<Tokenizer> {
    auto parts = read_tokenizer_json(json, ids);
    if (!parts) return parts.error();
    return assemble(*std::move(parts));
  });
}

}  // namespace cbq_llama
