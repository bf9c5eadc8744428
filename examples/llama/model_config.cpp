// SPDX-License-Identifier: Apache-2.0
#include "model_config.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Json;
using cbq::Result;
using cbq::Status;

namespace {

// Larger than any model, small enough that products of two fit in 64 bits many times over.
constexpr std::uint64_t largest_size = std::uint64_t{1} << 24;
constexpr std::uint64_t most_layers = 4096;

// The member `key`, or nothing where it is absent or null.
const Json* optional_member(const Json& json, const std::string& key) {
  const Json* value = cbq::json_find(json, key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Result<std::size_t> size_member(const Json& json, const std::string& key) {
  const Result<std::uint64_t> value = cbq::json_unsigned(json, key);
  if (!value) return value.error();
  if (*value == 0 || *value > largest_size) {
    return Error{Errc::bad_file, "a size of the model is out of range", key, *value,
                 ErrorText("1 to ") << largest_size};
  }
  return std::size_t{*value};
}

Result<std::size_t> size_member_or(const Json& json, const std::string& key, std::size_t otherwise) {
  if (optional_member(json, key) == nullptr) return otherwise;
  return size_member(json, key);
}

Result<double> number_member_or(const Json& json, const std::string& key, double otherwise) {
  if (optional_member(json, key) == nullptr) return otherwise;
  return cbq::json_number(json, key);
}

Result<bool> boolean_member_or(const Json& json, const std::string& key, bool otherwise) {
  if (optional_member(json, key) == nullptr) return otherwise;
  return cbq::json_boolean(json, key);
}

// Fills `target` from `result`, or hands its error on.
template <class T>
Status assign(T& target, Result<T> result) {
  if (!result) return result.error();
  target = *std::move(result);
  return {};
}

Result<std::vector<std::int64_t>> token_ids(const Json& json, const std::string& key) {
  std::vector<std::int64_t> ids;
  const Json* value = optional_member(json, key);
  if (value == nullptr) return ids;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_integer()) {
      return Error{Errc::bad_file, "a token id is no integer", key, id.type_name(), "an integer or a list of them"};
    }
    ids.push_back(id.get<std::int64_t>());
  }
  return ids;
}

// The factors of "longrope", if they are the same for short and long texts and nothing else is scaled.
Status read_pair_factors(const Json& scaling, ModelConfig& config) {
  const Json* attention = optional_member(scaling, "attention_factor");
  const Json* factors = optional_member(scaling, "long_factor");
  const Json* short_factors = optional_member(scaling, "short_factor");
  if (attention == nullptr || *attention != 1 || factors == nullptr || short_factors == nullptr ||
      *factors != *short_factors) {
    return Error{Errc::unsupported, "a scaling of the rotary positions that depends on the text is not supported",
                 "rope_type", "longrope", "long_factor equal to short_factor, attention_factor 1"};
  }
  const std::size_t pairs = config.head_width / 2;
  if (!factors->is_array() || factors->size() != pairs) {
    return Error{Errc::bad_file, "rotary factors must be a list of one for each pair", "long_factor", factors->size(),
                 pairs};
  }
  for (const Json& factor : *factors) {
    const float value = factor.is_number() ? factor.get<float>() : 0.0f;
    if (!(value > 0) || !std::isfinite(value)) {
      return Error{Errc::bad_file, "rotary factors must be positive numbers",
                   ErrorText("long_factor[") << config.rotary.pair_factors.size() << "]", factor.dump(), "above 0"};
    }
    config.rotary.pair_factors.push_back(value);
  }
  config.rotary.scaling = cbq::RotaryScaling::per_pair;
  return {};
}

// Transformers 5 keeps all rotary settings in `rope_parameters`; before, the base stood alone and the scaling in
// `rope_scaling`.
Status read_rotary(const Json& json, ModelConfig& config) {
  const Json* parameters = optional_member(json, "rope_parameters");
  const Json& base_owner = parameters != nullptr && parameters->contains("rope_theta") ? *parameters : json;
  if (const Status ok = assign(config.rotary.base, number_member_or(base_owner, "rope_theta", 10000)); !ok) return ok;
  const Json* scaling = parameters != nullptr ? parameters : optional_member(json, "rope_scaling");
  if (scaling == nullptr) return {};
  const bool new_key = optional_member(*scaling, "rope_type") != nullptr;
  const Result<std::string_view> kind = cbq::json_string(*scaling, new_key ? "rope_type" : "type");
  if (!kind) return cbq::in_context(kind.error(), parameters != nullptr ? "rope_parameters" : "rope_scaling");
  cbq::RotaryConfig& rotary = config.rotary;
  if (*kind == "default") return {};
  if (*kind == "longrope") return read_pair_factors(*scaling, config);
  if (*kind != "linear" && *kind != "llama3") {
    return Error{Errc::unsupported, "unknown scaling of the rotary positions", "rope_type", *kind,
                 "default, linear, llama3 or longrope"};
  }
  rotary.scaling = *kind == "linear" ? cbq::RotaryScaling::linear : cbq::RotaryScaling::llama3;
  if (const Status ok = assign(rotary.factor, cbq::json_number(*scaling, "factor")); !ok) return ok;
  if (rotary.scaling == cbq::RotaryScaling::linear) return {};
  if (const Status ok = assign(rotary.low_frequency_factor, cbq::json_number(*scaling, "low_freq_factor")); !ok)
    return ok;
  if (const Status ok = assign(rotary.high_frequency_factor, cbq::json_number(*scaling, "high_freq_factor")); !ok)
    return ok;
  return assign(rotary.original_positions, cbq::json_number(*scaling, "original_max_position_embeddings"));
}

Status expect_text(const Json& json, const std::string& key, std::string_view wanted) {
  if (optional_member(json, key) == nullptr) return {};
  const Result<std::string_view> got = cbq::json_string(json, key);
  if (!got) return got.error();
  if (*got != wanted) return Error{Errc::unsupported, "a variant of the model is not supported", key, *got, wanted};
  return {};
}

Status read_llama(const Json& json, ModelConfig& config) {
  if (const Status ok = assign(config.layers, size_member(json, "num_hidden_layers")); !ok) return ok;
  if (const Status ok = assign(config.hidden, size_member(json, "hidden_size")); !ok) return ok;
  if (const Status ok = assign(config.intermediate, size_member(json, "intermediate_size")); !ok) return ok;
  if (const Status ok = assign(config.heads, size_member(json, "num_attention_heads")); !ok) return ok;
  if (const Status ok = assign(config.kv_heads, size_member_or(json, "num_key_value_heads", config.heads)); !ok)
    return ok;
  if (const Status ok = assign(config.head_width, size_member_or(json, "head_dim", config.hidden / config.heads)); !ok)
    return ok;
  if (const Status ok = assign(config.norm_epsilon, number_member_or(json, "rms_norm_eps", 1e-6)); !ok) return ok;
  if (const Status ok = assign(config.tied, boolean_member_or(json, "tie_word_embeddings", false)); !ok) return ok;
  if (const Status ok = assign(config.attention_bias, boolean_member_or(json, "attention_bias", false)); !ok) return ok;
  if (const Status ok = assign(config.mlp_bias, boolean_member_or(json, "mlp_bias", false)); !ok) return ok;
  if (const Status ok = expect_text(json, "hidden_act", "silu"); !ok) return ok;
  return read_rotary(json, config);
}

Status read_opt(const Json& json, ModelConfig& config) {
  if (const Status ok = assign(config.layers, size_member(json, "num_hidden_layers")); !ok) return ok;
  if (const Status ok = assign(config.hidden, size_member(json, "hidden_size")); !ok) return ok;
  if (const Status ok = assign(config.intermediate, size_member(json, "ffn_dim")); !ok) return ok;
  if (const Status ok = assign(config.heads, size_member(json, "num_attention_heads")); !ok) return ok;
  config.kv_heads = config.heads;
  config.head_width = config.hidden / config.heads;
  if (const Status ok = assign(config.tied, boolean_member_or(json, "tie_word_embeddings", true)); !ok) return ok;
  const Result<bool> biases = boolean_member_or(json, "enable_bias", true);
  if (!biases) return biases.error();
  config.attention_bias = config.mlp_bias = *biases;
  const Result<bool> norm_first = boolean_member_or(json, "do_layer_norm_before", true);
  if (!norm_first) return norm_first.error();
  const Result<bool> affine = boolean_member_or(json, "layer_norm_elementwise_affine", true);
  if (!affine) return affine.error();
  const Result<bool> no_final_norm = boolean_member_or(json, "_remove_final_layer_norm", false);
  if (!no_final_norm) return no_final_norm.error();
  if (!*norm_first || !*affine || *no_final_norm) {
    return Error{Errc::unsupported, "a variant of OPT is not supported", "do_layer_norm_before", "another order",
                 "affine norms before each part and at the end"};
  }
  const Result<std::size_t> projected = size_member_or(json, "word_embed_proj_dim", config.hidden);
  if (!projected) return projected.error();
  if (*projected != config.hidden) {
    return Error{Errc::unsupported, "projected embeddings are not supported", "word_embed_proj_dim", *projected,
                 config.hidden};
  }
  const Json* activation = optional_member(json, "activation_function");
  const std::string name = activation != nullptr && activation->is_string() ? activation->get<std::string>() : "relu";
  if (name != "relu" && name != "gelu") {
    return Error{Errc::unsupported, "unknown activation function", "activation_function", name, "relu or gelu"};
  }
  config.activation = name == "relu" ? cbq::Activation::relu : cbq::Activation::gelu_erf;
  return {};
}

// BLOOM's older files say n_embed and num_attention_heads, or n_layer and n_head.
Status assign_either(std::size_t& target, const Json& json, const std::string& key, const std::string& older) {
  return assign(target, size_member(json, optional_member(json, key) != nullptr ? key : older));
}

Status read_bloom(const Json& json, ModelConfig& config) {
  if (const Status ok = assign_either(config.layers, json, "n_layer", "num_hidden_layers"); !ok) return ok;
  if (const Status ok = assign_either(config.hidden, json, "hidden_size", "n_embed"); !ok) return ok;
  if (const Status ok = assign_either(config.heads, json, "n_head", "num_attention_heads"); !ok) return ok;
  if (config.hidden % config.heads != 0) {
    return Error{Errc::bad_file, "the heads must divide the width of the model", "n_head", config.heads,
                 ErrorText("a divisor of ") << config.hidden};
  }
  config.intermediate = 4 * config.hidden;
  config.kv_heads = config.heads;
  config.head_width = config.hidden / config.heads;
  config.attention_bias = config.mlp_bias = true;
  config.activation = cbq::Activation::gelu_tanh;
  // ALiBi sets no limit; this is what the model was trained on.
  if (const Status ok = assign(config.context, size_member_or(json, "seq_length", 2048)); !ok) return ok;
  if (const Status ok = assign(config.norm_epsilon, number_member_or(json, "layer_norm_epsilon", 1e-5)); !ok) return ok;
  if (const Status ok = assign(config.tied, boolean_member_or(json, "tie_word_embeddings", true)); !ok) return ok;
  const Result<bool> late = boolean_member_or(json, "apply_residual_connection_post_layernorm", false);
  if (!late) return late.error();
  if (!*late) return {};
  return Error{Errc::unsupported, "a variant of BLOOM is not supported", "apply_residual_connection_post_layernorm",
               "true", "false"};
}

Status check_config(const ModelConfig& config) {
  if (config.layers > most_layers) {
    return Error{Errc::bad_file, "too many layers", "num_hidden_layers", config.layers, most_layers};
  }
  if (config.heads == 0 || config.kv_heads == 0 || config.heads % config.kv_heads != 0) {
    return Error{Errc::bad_file, "the attention heads cannot be shared out", "num_key_value_heads", config.kv_heads,
                 ErrorText("a divisor of ") << config.heads};
  }
  if (config.head_width == 0 || config.head_width % 2 != 0) {
    return Error{Errc::bad_file, "the width of a head must be even", "head_dim", config.head_width};
  }
  if (!std::isfinite(config.norm_epsilon) || !(config.norm_epsilon > 0)) {
    return Error{Errc::bad_file, "norm epsilon must be a positive number", "config", Json(config.norm_epsilon).dump(),
                 "above 0"};
  }
  if (const Status ok = cbq::check_rotary(config.rotary, config.head_width); !ok) {
    Error error = ok.error();
    error.code = Errc::bad_file;
    return error;
  }
  return {};
}

}  // namespace

const char* architecture_name(Architecture architecture) {
  constexpr const char* names[] = {"llama", "opt", "bloom"};
  return names[static_cast<std::size_t>(architecture)];
}

Result<ModelConfig> read_config(const Json& json) {
  const Result<std::string_view> type = cbq::json_string(json, "model_type");
  if (!type) return type.error();
  ModelConfig config;
  if (*type == "llama") {
    config.architecture = Architecture::llama;
  } else if (*type == "opt") {
    config.architecture = Architecture::opt;
  } else if (*type == "bloom") {
    config.architecture = Architecture::bloom;
  } else {
    return Error{Errc::unsupported, "unknown architecture", "model_type", *type, "llama, opt or bloom"};
  }
  if (const Status ok = assign(config.vocabulary, size_member(json, "vocab_size")); !ok) return ok.error();
  if (const Status ok = assign(config.context, size_member_or(json, "max_position_embeddings", 2048)); !ok)
    return ok.error();
  const Result<std::vector<std::int64_t>> bos = token_ids(json, "bos_token_id");
  if (!bos) return bos.error();
  if (!bos->empty()) config.bos = bos->front();
  if (const Status ok = assign(config.eos, token_ids(json, "eos_token_id")); !ok) return ok.error();
  const Status read = config.architecture == Architecture::llama ? read_llama(json, config)
                      : config.architecture == Architecture::opt ? read_opt(json, config)
                                                                 : read_bloom(json, config);
  if (!read) return read.error();
  if (const Status ok = check_config(config); !ok) return ok.error();
  return config;
}

namespace {

Result<std::size_t> size_value(const cbq::GgufMetadata& metadata, std::string_view key) {
  const Result<std::uint64_t> value = metadata.unsigned_value(key);
  if (!value) return value.error();
  if (*value == 0 || *value > largest_size) {
    return Error{Errc::bad_file, "a size of the model is out of range", key, *value,
                 ErrorText("1 to ") << largest_size};
  }
  return std::size_t{*value};
}

Result<std::size_t> size_value_or(const cbq::GgufMetadata& metadata, std::string_view key, std::size_t otherwise) {
  if (metadata.value(key) == nullptr) return otherwise;
  return size_value(metadata, key);
}

Result<double> number_value_or(const cbq::GgufMetadata& metadata, std::string_view key, double otherwise) {
  if (metadata.value(key) == nullptr) return otherwise;
  return metadata.number_value(key);
}

Status read_rotary(const cbq::GgufMetadata& metadata, ModelConfig& config) {
  if (const Status ok = assign(config.rotary.base, number_value_or(metadata, "llama.rope.freq_base", 10000)); !ok)
    return ok;
  const Result<std::size_t> dimensions = size_value_or(metadata, "llama.rope.dimension_count", config.head_width);
  if (!dimensions) return dimensions.error();
  if (*dimensions != config.head_width) {
    return Error{Errc::unsupported, "partial rotary positions are not supported", "llama.rope.dimension_count",
                 *dimensions, config.head_width};
  }
  if (metadata.value("llama.rope.scaling.type") == nullptr) return {};
  const Result<std::string_view> kind = metadata.text_value("llama.rope.scaling.type");
  if (!kind) return kind.error();
  if (*kind == "none") return {};
  if (*kind != "linear") {
    return Error{Errc::unsupported, "unknown scaling of the rotary positions", "llama.rope.scaling.type", *kind,
                 "none or linear"};
  }
  config.rotary.scaling = cbq::RotaryScaling::linear;
  return assign(config.rotary.factor, metadata.number_value("llama.rope.scaling.factor"));
}

// The rule that Llama 3.1 to 3.3 share, if it gives these factors. Converters compute them from float frequencies,
// which moves them by some 1e-6.
std::optional<cbq::RotaryConfig> llama3_rule(double base, const std::vector<float>& factors) {
  constexpr double tolerance = 1e-5;
  const cbq::RotaryConfig rule = {.base = base,
                                  .scaling = cbq::RotaryScaling::llama3,
                                  .factor = static_cast<double>(factors.back()),
                                  .low_frequency_factor = 1,
                                  .high_frequency_factor = 4,
                                  .original_positions = 8192};
  for (std::size_t i = 0; i < factors.size(); ++i) {
    const double wanted = cbq::rotary_factor(rule, 2 * factors.size(), i);
    if (!(std::abs(static_cast<double>(factors[i]) - wanted) < tolerance * wanted)) return std::nullopt;
  }
  return rule;
}

// llama.cpp asks of each projection whether it has a bias. A configuration has one answer for all of attention and one
// for all of the MLP.
Status read_biases(const cbq::Gguf& file, ModelConfig& config) {
  struct Group {
    std::vector<std::string_view> parts;
    bool& present;
  };
  const Group groups[] = {{{"attn_q", "attn_k", "attn_v", "attn_output"}, config.attention_bias},
                          {{"ffn_gate", "ffn_up", "ffn_down"}, config.mlp_bias}};
  constexpr std::string_view start = "blk.", end = ".bias";
  for (const cbq::GgufTensor& tensor : file.tensors()) {
    if (!tensor.name.starts_with(start) || !tensor.name.ends_with(end)) continue;
    const std::size_t dot = tensor.name.find('.', start.size());
    const std::size_t last = tensor.name.size() - end.size();
    const std::string_view part = dot < last ? tensor.name.substr(dot + 1, last - dot - 1) : std::string_view();
    bool known = false;
    for (const Group& group : groups) {
      if (std::ranges::find(group.parts, part) != group.parts.end()) known = group.present = true;
    }
    if (!known) {
      return Error{Errc::unsupported, "a bias that models of this kind do not have", tensor.name, "",
                   "biases of the projections"};
    }
  }
  for (const Group& group : groups) {
    for (std::size_t layer = 0; group.present && layer < config.layers; ++layer) {
      for (const std::string_view part : group.parts) {
        const std::string name = std::string(start).append(std::to_string(layer)).append(".").append(part).append(end);
        if (file.find(name) == nullptr) {
          return Error{Errc::unsupported, "some projections have biases and others none", name, "no such tensor",
                       "biases of all or of none"};
        }
      }
    }
  }
  return {};
}

Status read_rotary_factors(const cbq::GgufTensor& tensor, ModelConfig& config) {
  if (tensor.type != cbq::GgufType::f32) {
    const auto layout = cbq::gguf_layout(static_cast<std::uint32_t>(tensor.type));
    return Error{Errc::unsupported, "rotary factors must be F32", tensor.name, layout ? layout->name : "unknown",
                 "F32"};
  }
  if (config.rotary.scaling != cbq::RotaryScaling::none) {
    return Error{Errc::unsupported, "rotary positions are scaled twice", tensor.name, "llama.rope.scaling.type linear",
                 "none"};
  }
  const cbq::TensorShape wanted = {.rank = 1, .sizes = {config.head_width / 2}};
  if (!cbq::same_shape(tensor.shape, wanted)) {
    return Error{Errc::bad_shape, "a tensor has the wrong shape", tensor.name, cbq::shape_text(tensor.shape),
                 cbq::shape_text(wanted)};
  }
  std::vector<float> factors(config.head_width / 2);
  if (const Status read = cbq::copy_to_float(tensor, std::span<float>(factors)); !read) return read;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    if (factors[i] > 0) continue;
    return Error{Errc::bad_file, "rotary factors must be positive", ErrorText(tensor.name) << '[' << i << ']',
                 Json(factors[i]).dump(), "above 0"};
  }
  if (std::ranges::all_of(factors, [](float factor) { return factor == 1.0f; })) return {};
  if (const auto rule = llama3_rule(config.rotary.base, factors)) {
    config.rotary = *rule;
    return {};
  }
  config.rotary.scaling = cbq::RotaryScaling::per_pair;
  config.rotary.pair_factors = std::move(factors);
  return {};
}

}  // namespace

Result<ModelConfig> read_config(const cbq::Gguf& file) {
  const cbq::GgufMetadata& metadata = file.metadata();
  const Result<std::string_view> type = metadata.text_value("general.architecture");
  if (!type) return type.error();
  if (*type != "llama") {
    return Error{Errc::unsupported, "unknown architecture", "general.architecture", *type, "llama"};
  }
  ModelConfig config;
  if (const Status ok = assign(config.layers, size_value(metadata, "llama.block_count")); !ok) return ok.error();
  if (const Status ok = assign(config.hidden, size_value(metadata, "llama.embedding_length")); !ok) return ok.error();
  if (const Status ok = assign(config.intermediate, size_value(metadata, "llama.feed_forward_length")); !ok)
    return ok.error();
  if (const Status ok = assign(config.heads, size_value(metadata, "llama.attention.head_count")); !ok)
    return ok.error();
  if (const Status ok = assign(config.kv_heads, size_value_or(metadata, "llama.attention.head_count_kv", config.heads));
      !ok)
    return ok.error();
  if (const Status ok = assign(config.head_width,
                               size_value_or(metadata, "llama.attention.key_length", config.hidden / config.heads));
      !ok)
    return ok.error();
  if (const Status ok = assign(config.context, size_value_or(metadata, "llama.context_length", 2048)); !ok)
    return ok.error();
  if (const Status ok = assign(config.norm_epsilon, metadata.number_value("llama.attention.layer_norm_rms_epsilon"));
      !ok)
    return ok.error();
  if (metadata.value("llama.expert_count") != nullptr) {
    return Error{Errc::unsupported, "mixtures of experts are not supported", "llama.expert_count"};
  }
  if (const Status ok = read_rotary(metadata, config); !ok) return ok.error();
  const cbq::GgufValue* tokens = metadata.value("tokenizer.ggml.tokens");
  if (tokens == nullptr) return Error{Errc::bad_file, "a metadata key is missing", "tokenizer.ggml.tokens"};
  config.vocabulary = tokens->count;
  if (config.vocabulary == 0 || config.vocabulary > largest_size) {
    return Error{Errc::bad_file, "a size of the model is out of range", "tokenizer.ggml.tokens", config.vocabulary};
  }
  if (const auto bos = metadata.unsigned_value("tokenizer.ggml.bos_token_id"); bos && *bos < config.vocabulary) {
    config.bos = static_cast<std::int64_t>(*bos);
  }
  if (const auto eos = metadata.unsigned_value("tokenizer.ggml.eos_token_id"); eos && *eos < config.vocabulary) {
    config.eos.push_back(static_cast<std::int64_t>(*eos));
  }
  config.tied = file.find("output.weight") == nullptr;
  if (const Status ok = check_config(config); !ok) return ok.error();
  if (const Status ok = read_biases(file, config); !ok) return ok.error();
  if (const cbq::GgufTensor* factors = file.find(rotary_factors_name)) {
    if (const Status ok = read_rotary_factors(*factors, config); !ok) return ok.error();
  }
  return config;
}

namespace {

Json rotary_json(const ModelConfig& config) {
  const cbq::RotaryConfig& rotary = config.rotary;
  constexpr const char* types[] = {"default", "linear", "llama3", "longrope"};
  Json json = {{"rope_theta", rotary.base}, {"rope_type", types[static_cast<std::size_t>(rotary.scaling)]}};
  if (rotary.scaling == cbq::RotaryScaling::none) return json;
  if (rotary.scaling == cbq::RotaryScaling::per_pair) {
    json["short_factor"] = json["long_factor"] = rotary.pair_factors;
    json["attention_factor"] = 1.0;
    json["original_max_position_embeddings"] = config.context;
    return json;
  }
  json["factor"] = rotary.factor;
  if (rotary.scaling == cbq::RotaryScaling::linear) return json;
  json["low_freq_factor"] = rotary.low_frequency_factor;
  json["high_freq_factor"] = rotary.high_frequency_factor;
  json["original_max_position_embeddings"] = rotary.original_positions;
  // Transformers asks for an integer.
  const double positions = rotary.original_positions;
  if (positions == std::floor(positions) && positions <= static_cast<double>(largest_size)) {
    json["original_max_position_embeddings"] = static_cast<std::uint64_t>(positions);
  }
  return json;
}

}  // namespace

cbq::Json to_json(const ModelConfig& config) {
  constexpr const char* classes[] = {"LlamaForCausalLM", "OPTForCausalLM", "BloomForCausalLM"};
  Json json = {{"architectures", {classes[static_cast<std::size_t>(config.architecture)]}},
               {"model_type", architecture_name(config.architecture)},
               {"vocab_size", config.vocabulary},
               {"hidden_size", config.hidden},
               {"num_hidden_layers", config.layers},
               {"num_attention_heads", config.heads},
               {"max_position_embeddings", config.context},
               {"tie_word_embeddings", config.tied},
               {"dtype", "float16"}};
  if (config.bos) json["bos_token_id"] = *config.bos;
  if (config.eos.size() == 1) json["eos_token_id"] = config.eos.front();
  if (config.eos.size() > 1) json["eos_token_id"] = config.eos;
  if (config.architecture == Architecture::bloom) {
    json["seq_length"] = config.context;
    json["layer_norm_epsilon"] = config.norm_epsilon;
    return json;
  }
  if (config.architecture == Architecture::opt) {
    json["ffn_dim"] = config.intermediate;
    json["word_embed_proj_dim"] = config.hidden;
    json["do_layer_norm_before"] = true;
    json["enable_bias"] = config.attention_bias;
    json["activation_function"] = config.activation == cbq::Activation::relu ? "relu" : "gelu";
    return json;
  }
  json["intermediate_size"] = config.intermediate;
  json["num_key_value_heads"] = config.kv_heads;
  json["head_dim"] = config.head_width;
  json["hidden_act"] = "silu";
  json["rms_norm_eps"] = config.norm_epsilon;
  json["attention_bias"] = config.attention_bias;
  json["mlp_bias"] = config.mlp_bias;
  json["rope_parameters"] = rotary_json(config);
  return json;
}

}  // namespace cbq_llama
