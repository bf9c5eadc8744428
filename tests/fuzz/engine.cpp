// SPDX-License-Identifier: Apache-2.0

// What the example engine reads beside weights: config.json, GGUF metadata, tokenizers.

#include <string>
#include <vector>

#include <cbq/io/gguf.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/quantization_config.hpp>

#include "model_config.hpp"
#include "targets.hpp"
#include "tokenizer.hpp"
#include "vocabulary_reader.hpp"

namespace fuzz {

namespace {

void check_config(const cbq_llama::ModelConfig& config) {
  require(config.layers > 0 && config.layers <= 4096 && config.hidden > 0 && config.vocabulary > 0);
  require(config.kv_heads > 0 && config.heads % config.kv_heads == 0 && config.head_width % 2 == 0);
  // What was read can be written and read again.
  require(bool(cbq_llama::read_config(cbq_llama::to_json(config))));
}

// Text to ids and back, whole and id by id.
void use(const cbq_llama::Tokenizer& tokenizer, std::string_view text) {
  using cbq_llama::EncodeOptions;
  for (const auto special : {EncodeOptions::Special::as_text, EncodeOptions::Special::as_tokens}) {
    const auto ids = tokenizer.encode(text, {.special = special});
    if (!accepted(ids)) continue;
    cbq_llama::StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const std::int32_t id : *ids) {
      require(id >= 0 && static_cast<std::size_t>(id) < tokenizer.vocabulary_size());
      const auto piece = stream.push(id);
      require(bool(piece));
      streamed += *piece;
    }
    streamed += stream.finish();
    const auto decoded = tokenizer.decode(*ids);
    require(decoded && *decoded == streamed);
  }
}

}  // namespace

void model_config(Bytes bytes) {
  const auto json = cbq::parse_json(text_of(bytes));
  if (!accepted(json)) return;
  const auto config = cbq_llama::read_config(*json);
  if (accepted(config)) check_config(*config);
  // Modules of the seeds; a checkpoint in floating point has none.
  const std::vector<std::string_view> modules = {"model.embed_tokens", "model.layers.0.mlp.up_proj"};
  for (const std::size_t count : {std::size_t{0}, modules.size()}) {
    const auto record = cbq::parse_quantization(*json, std::span(modules).first(count));
    if (!accepted(record) || record->modules.empty()) continue;
    cbq::Json again = cbq::Json::object();
    if (accepted(cbq::add_quantization(again, *record))) (void)accepted(cbq::parse_quantization(again, modules));
  }
}

void gguf_model(Bytes bytes) {
  const auto file = cbq::Gguf::parse(bytes);
  if (!accepted(file)) return;
  const auto config = cbq_llama::read_config(*file);
  if (accepted(config)) check_config(*config);
  const auto vocabulary = cbq_llama::read_vocabulary(file->metadata());
  if (!accepted(vocabulary)) return;
  const auto tokenizer = cbq_llama::Tokenizer::from_gguf(*vocabulary);
  if (accepted(tokenizer)) use(*tokenizer, "It's a t\xc3\xa4st,  1234 <s>\n\xff");
}

void tokenizer(Bytes bytes) {
  const TextAndBytes parts = split(bytes);
  const auto tokenizer = cbq_llama::Tokenizer::from_json(parts.text);
  if (accepted(tokenizer)) use(*tokenizer, text_of(parts.bytes).substr(0, 256));
}

}  // namespace fuzz
