// SPDX-License-Identifier: Apache-2.0
#include "vocabulary_reader.hpp"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::GgufMetadata;
using cbq::Json;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::uint64_t no_token = std::numeric_limits<std::uint32_t>::max();  // what converters write for "none"

// Where a member of the vocabulary is read from. `read` is called only where the key is there.
struct MetadataSource {
  const GgufMetadata& metadata;

  [[nodiscard]] static std::string key(std::string_view name) {
    return std::string(name == "chat_template" ? "tokenizer." : "tokenizer.ggml.").append(name);
  }
  [[nodiscard]] bool has(const char* name) const { return metadata.value(key(name)) != nullptr; }

  [[nodiscard]] Status read(const char* name, std::string& to) const {
    const auto text = metadata.text_value(key(name));
    if (!text) return text.error();
    to = *text;
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::vector<std::string>& to) const {
    const auto texts = metadata.text_array(key(name));
    if (!texts) return texts.error();
    to.assign(texts->begin(), texts->end());
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::vector<std::int64_t>& to) const {
    auto numbers = metadata.integer_array(key(name));
    if (!numbers) return numbers.error();
    to = *std::move(numbers);
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::vector<float>& to) const {
    auto numbers = metadata.float_array(key(name));
    if (!numbers) return numbers.error();
    to = *std::move(numbers);
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::optional<std::int64_t>& to) const {
    const auto number = metadata.unsigned_value(key(name));
    if (!number) return number.error();
    if (*number > no_token) return Error{Errc::bad_file, "a token id is out of range", key(name), *number, no_token};
    if (*number != no_token) to = static_cast<std::int64_t>(*number);
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::optional<bool>& to) const {
    const auto value = metadata.boolean_value(key(name));
    if (!value) return value.error();
    to = *value;
    return {};
  }
};

struct JsonSource {
  const Json& json;

  [[nodiscard]] bool has(const char* name) const {
    const Json* value = cbq::json_find(json, name);
    return value != nullptr && !value->is_null();
  }
  [[nodiscard]] static Error wrong(const char* name, std::size_t index, const Json& got, const char* wanted) {
    return Error{Errc::bad_file, "a member of the vocabulary has the wrong type",
                 ErrorText(name) << "[" << index << "]", got.type_name(), wanted};
  }

  [[nodiscard]] Status read(const char* name, std::string& to) const {
    const auto text = cbq::json_string(json, name);
    if (!text) return text.error();
    to = *text;
    return {};
  }
  // Every entry of the list `name` by read_entry, which says whether it had the type that is wanted.
  template <class Read>
  [[nodiscard]] Status read_list(const char* name, const char* wanted, const Read& read_entry) const {
    const Json& list = *cbq::json_find(json, name);
    if (!list.is_array()) {
      return Error{Errc::bad_file, "a member of the vocabulary has the wrong type", name, list.type_name(), "a list"};
    }
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (!read_entry(list[i])) return wrong(name, i, list[i], wanted);
    }
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::vector<std::string>& to) const {
    return read_list(name, "text", [&](const Json& entry) {
      if (entry.is_string()) to.push_back(entry.get<std::string>());
      return entry.is_string();
    });
  }
  [[nodiscard]] Status read(const char* name, std::vector<std::int64_t>& to) const {
    return read_list(name, "an integer", [&](const Json& entry) {
      if (entry.is_number_integer()) to.push_back(entry.get<std::int64_t>());
      return entry.is_number_integer();
    });
  }
  [[nodiscard]] Status read(const char* name, std::vector<float>& to) const {
    return read_list(name, "a number", [&](const Json& entry) {
      if (entry.is_number()) to.push_back(entry.get<float>());
      return entry.is_number();
    });
  }
  [[nodiscard]] Status read(const char* name, std::optional<std::int64_t>& to) const {
    const auto number = cbq::json_unsigned(json, name);
    if (!number) return number.error();
    if (*number > no_token) return Error{Errc::bad_file, "a token id is out of range", name, *number, no_token};
    to = static_cast<std::int64_t>(*number);
    return {};
  }
  [[nodiscard]] Status read(const char* name, std::optional<bool>& to) const {
    const auto value = cbq::json_boolean(json, name);
    if (!value) return value.error();
    to = *value;
    return {};
  }
};

template <class Source>
Result<GgufVocabulary> read_members(const Source& source) {
  GgufVocabulary vocabulary;
  std::vector<std::int64_t> types;
  Status status;
  const auto read = [&](const char* name, auto& member) {
    if (status && source.has(name)) status = source.read(name, member);
  };
  read("model", vocabulary.model);
  read("pre", vocabulary.pre);
  read("tokens", vocabulary.tokens);
  read("token_type", types);
  read("scores", vocabulary.scores);
  read("merges", vocabulary.merges);
  read("bos_token_id", vocabulary.bos);
  read("eos_token_id", vocabulary.eos);
  read("unknown_token_id", vocabulary.unknown);
  read("add_bos_token", vocabulary.add_bos);
  read("add_eos_token", vocabulary.add_eos);
  read("add_space_prefix", vocabulary.add_space_prefix);
  read("chat_template", vocabulary.chat_template);
  if (!status) return status.error();
  vocabulary.token_types.reserve(types.size());
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] < 0 || types[i] > std::numeric_limits<std::int32_t>::max()) {
      return Error{Errc::bad_file, "a token has an unknown type", ErrorText("token_type[") << i << "]", types[i],
                   "0 to 6"};
    }
    vocabulary.token_types.push_back(static_cast<std::int32_t>(types[i]));
  }
  return vocabulary;
}

}  // namespace

Result<GgufVocabulary> read_vocabulary(const GgufMetadata& metadata) {
  return read_members(MetadataSource{metadata});
}

Result<GgufVocabulary> read_vocabulary(const Json& json) {
  if (!json.is_object()) {
    return Error{Errc::bad_file, "the vocabulary is no object", "byte 0", json.type_name(), "an object"};
  }
  return read_members(JsonSource{json});
}

}  // namespace cbq_llama
