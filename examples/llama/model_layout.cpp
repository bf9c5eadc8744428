// SPDX-License-Identifier: Apache-2.0
#include "model_layout.hpp"

#include <array>
#include <string_view>

namespace cbq_llama {

namespace {

// OPT's positions start at 2, a habit inherited from a padding token.
constexpr std::size_t opt_position_offset = 2;

void add_norm(std::vector<FloatTensor>& tensors, const ModelConfig& config, const std::string& name) {
  tensors.push_back({name + ".weight", 1, config.hidden});
  if (config.architecture != Architecture::llama) tensors.push_back({name + ".bias", 1, config.hidden});
}

// What modules of the three architectures are called, in the order of Architecture.
constexpr std::array layer_names = {"model.layers.", "model.decoder.layers.", "transformer.h."};
constexpr std::array attention_names = {".self_attn.", ".self_attn.", ".self_attention."};
constexpr std::array output_names = {"o_proj", "out_proj", "dense"};
constexpr std::array embedding_names = {"model.embed_tokens", "model.decoder.embed_tokens",
                                        "transformer.word_embeddings"};
constexpr std::array first_norm_names = {".input_layernorm", ".self_attn_layer_norm", ".input_layernorm"};
constexpr std::array second_norm_names = {".post_attention_layernorm", ".final_layer_norm",
                                          ".post_attention_layernorm"};
constexpr std::array final_norm_names = {"model.norm", "model.decoder.final_layer_norm", "transformer.ln_f"};

const char* pick(const std::array<const char*, 3>& names, const ModelConfig& config) {
  return names[static_cast<std::size_t>(config.architecture)];
}

}  // namespace

std::string block_name(const ModelConfig& config, std::size_t layer) {
  return pick(layer_names, config) + std::to_string(layer);
}

std::vector<MatrixModule> block_modules(const ModelConfig& config, std::size_t layer) {
  const std::string block = block_name(config, layer);
  const std::string attention = block + pick(attention_names, config);
  const std::size_t query = config.heads * config.head_width;
  const std::size_t key = config.kv_heads * config.head_width;
  std::vector<MatrixModule> modules = {
      {attention + "q_proj", query, config.hidden, config.attention_bias},
      {attention + "k_proj", key, config.hidden, config.attention_bias},
      {attention + "v_proj", key, config.hidden, config.attention_bias},
      {attention + pick(output_names, config), config.hidden, query, config.attention_bias},
  };
  if (config.architecture == Architecture::llama) {
    modules.push_back({block + ".mlp.gate_proj", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({block + ".mlp.up_proj", config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back({block + ".mlp.down_proj", config.hidden, config.intermediate, config.mlp_bias});
  } else {
    const bool opt = config.architecture == Architecture::opt;
    modules.push_back(
        {block + (opt ? ".fc1" : ".mlp.dense_h_to_4h"), config.intermediate, config.hidden, config.mlp_bias});
    modules.push_back(
        {block + (opt ? ".fc2" : ".mlp.dense_4h_to_h"), config.hidden, config.intermediate, config.mlp_bias});
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
  return {pick(embedding_names, config), config.vocabulary, config.hidden, false};
}

MatrixModule head_module(const ModelConfig& config) {
  return {"lm_head", config.vocabulary, config.hidden, false};
}

std::vector<FloatTensor> norm_tensors(const ModelConfig& config) {
  std::vector<FloatTensor> tensors;
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = block_name(config, layer);
    add_norm(tensors, config, block + pick(first_norm_names, config));
    add_norm(tensors, config, block + pick(second_norm_names, config));
  }
  add_norm(tensors, config, pick(final_norm_names, config));
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
  if (config.architecture != Architecture::opt) return {};
  return {"model.decoder.embed_positions.weight", config.context + opt_position_offset, config.hidden};
}

std::string embedding_norm_name(const ModelConfig& config) {
  return config.architecture == Architecture::bloom ? "transformer.word_embeddings_layernorm" : "";
}

std::vector<FloatTensor> embedding_tensors(const ModelConfig& config) {
  std::vector<FloatTensor> tensors;
  if (FloatTensor positions = position_tensor(config); !positions.name.empty()) tensors.push_back(positions);
  if (const std::string norm = embedding_norm_name(config); !norm.empty()) add_norm(tensors, config, norm);
  return tensors;
}

}  // namespace cbq_llama
