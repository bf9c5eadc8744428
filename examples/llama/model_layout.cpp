// SPDX-License-Identifier: Apache-2.0
#include "model_layout.hpp"

#include <string_view>

namespace cbq_llama {

namespace {

// OPT's positions start at 2, a habit inherited from a padding token.
constexpr std::size_t opt_position_offset = 2;

void add_norm(std::vector<FloatTensor>& tensors, const ModelConfig& config, const std::string& name) {
  tensors.push_back({name + ".weight", 1, config.hidden});
  if (config.architecture == Architecture::opt) tensors.push_back({name + ".bias", 1, config.hidden});
}

}  // namespace

std::string block_name(const ModelConfig& config, std::size_t layer) {
  const char* start = config.architecture == Architecture::llama ? "model.layers." : "model.decoder.layers.";
  return start + std::to_string(layer);
}

std::vector<MatrixModule> block_modules(const ModelConfig& config, std::size_t layer) {
  const std::string block = block_name(config, layer);
  const std::string attention = block + ".self_attn.";
  const std::size_t query = config.heads * config.head_width;
  const std::size_t key = config.kv_heads * config.head_width;
  const bool llama = config.architecture == Architecture::llama;
  std::vector<MatrixModule> modules = {
      {attention + "q_proj", query, config.hidden, config.attention_bias},
      {attention + "k_proj", key, config.hidden, config.attention_bias},
      {attention + "v_proj", key, config.hidden, config.attention_bias},
      {attention + (llama ? "o_proj" : "out_proj"), config.hidden, query, config.attention_bias},
  };
  if (llama) {
    modules.push_back({block + ".mlp.gate_proj", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({block + ".mlp.up_proj", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({block + ".mlp.down_proj", config.hidden, config.intermediate, config.mlp_bias});
  } else {
    modules.push_back({block + ".fc1", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({block + ".fc2", config.hidden, config.intermediate, config.mlp_bias});
  }
  return modules;
}

std::vector<MatrixModule> all_block_modules(const ModelConfig& config) {
  std::vector<MatrixModule> all;
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    for (MatrixModule& module : block_modules(config, layer)) all.push_back(std::move(module));
  }
  return all;
}

MatrixModule embedding_module(const ModelConfig& config) {
  const bool llama = config.architecture == Architecture::llama;
  return {llama ? "model.embed_tokens" : "model.decoder.embed_tokens", config.vocabulary, config.hidden, false};
}

MatrixModule head_module(const ModelConfig& config) {
  return {"lm_head", config.vocabulary, config.hidden, false};
}

std::vector<FloatTensor> norm_tensors(const ModelConfig& config) {
  const bool llama = config.architecture == Architecture::llama;
  std::vector<FloatTensor> tensors;
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = block_name(config, layer);
    add_norm(tensors, config, block + (llama ? ".input_layernorm" : ".self_attn_layer_norm"));
    add_norm(tensors, config, block + (llama ? ".post_attention_layernorm" : ".final_layer_norm"));
  }
  add_norm(tensors, config, llama ? "model.norm" : "model.decoder.final_layer_norm");
  return tensors;
}

std::vector<std::string> norm_names(const ModelConfig& config) {
  constexpr std::string_view ending = ".weight";
  std::vector<std::string> names;
  for (const FloatTensor& tensor : norm_tensors(config)) {
    if (tensor.name.ends_with(ending)) names.push_back(tensor.name.substr(0, tensor.name.size() - ending.size()));
  }
  return names;
}

FloatTensor position_tensor(const ModelConfig& config) {
  if (config.architecture == Architecture::llama) return {};
  return {"model.decoder.embed_positions.weight", config.context + opt_position_offset, config.hidden};
}

}  // namespace cbq_llama
