// SPDX-License-Identifier: Apache-2.0
#pragma once

// A LLaMA of any size with random weights, as a Hugging Face folder with the tokenizer of the embedded model.

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include <cbq/io/safetensors_writer.hpp>

#include "engine_fixture.hpp"
#include "model_layout.hpp"

namespace engine_fixture {

struct GeneratedModel {
  std::size_t layers = 6;
  std::size_t hidden = 64;
  std::size_t intermediate = 96;
  std::size_t head_width = 16;
  std::size_t vocabulary = 1024;  ///< 257: the bytes alone, and the end of a text
  bool attention_bias = false;
  bool mlp_bias = false;
};

inline std::vector<cbq_llama::FloatTensor> generated_tensors(const cbq_llama::ModelConfig& config) {
  std::vector<cbq_llama::FloatTensor> tensors = cbq_llama::norm_tensors(config);
  std::vector<cbq_llama::MatrixModule> modules = cbq_llama::all_block_modules(config);
  modules.push_back(cbq_llama::embedding_module(config));
  for (const auto& module : modules) {
    tensors.push_back({module.name + ".weight", module.outputs, module.inputs});
    if (module.has_bias) tensors.push_back({module.name + ".bias", 1, module.outputs});
  }
  return tensors;
}

/// The embedded model's tokenizer with the tokens and merges whose ids are below `vocabulary`.
inline void write_tokenizer(const std::string& path, std::size_t vocabulary) {
  cbq::Json json = unwrap(cbq::read_json_file(pocket_llama() + "/tokenizer.json"));
  cbq::Json& model = json["model"];
  cbq::Json tokens = cbq::Json::object();
  for (const auto& [token, id] : model["vocab"].items()) {
    if (id.get<std::size_t>() < vocabulary) tokens[token] = id;
  }
  cbq::Json merges = cbq::Json::array();
  for (const cbq::Json& merge : model["merges"]) {
    if (tokens.contains(merge[0].get<std::string>() + merge[1].get<std::string>())) merges.push_back(merge);
  }
  model["vocab"] = std::move(tokens);
  model["merges"] = std::move(merges);
  support::write_text(path, cbq::json_text(json));
}

inline void write_model(const std::string& folder, const GeneratedModel& model = {}) {
  std::filesystem::create_directories(folder);
  write_tokenizer(folder + "/tokenizer.json", model.vocabulary);
  cbq::Json json = unwrap(cbq::read_json_file(pocket_llama() + "/config.json"));
  json["hidden_size"] = model.hidden;
  json["intermediate_size"] = model.intermediate;
  json["head_dim"] = model.head_width;
  json["num_hidden_layers"] = model.layers;
  json["vocab_size"] = model.vocabulary;
  json["attention_bias"] = model.attention_bias;
  json["mlp_bias"] = model.mlp_bias;
  support::write_text(folder + "/config.json", cbq::json_text(json));
  const std::vector<cbq_llama::FloatTensor> tensors = generated_tensors(unwrap(cbq_llama::read_config(json)));
  std::vector<cbq::TensorPlan> plan;
  for (const auto& tensor : tensors) {
    cbq::TensorPlan entry{.name = tensor.name, .dtype = cbq::Dtype::f32, .shape = {}};
    entry.shape = tensor.rows == 1 ? cbq::TensorShape{.rank = 1, .sizes = {tensor.columns}}
                                   : cbq::TensorShape{.rank = 2, .sizes = {tensor.rows, tensor.columns}};
    plan.push_back(entry);
  }
  auto writer = unwrap(cbq::SafetensorsWriter::create(folder + "/model.safetensors", plan));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.15f);
  for (const auto& tensor : tensors) {
    std::vector<float> values(tensor.rows * tensor.columns);
    for (float& value : values) value = tensor.rows == 1 ? 1.0f + normal(random) : normal(random);
    REQUIRE(writer.write(tensor.name, std::span<const float>(values)));
  }
  REQUIRE(writer.commit());
}

}  // namespace engine_fixture
