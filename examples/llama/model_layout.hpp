// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tensors a model of a given configuration is made of, by their Hugging Face names, and the shapes they must have.

#include <cstddef>
#include <string>
#include <vector>

#include "model_config.hpp"

namespace cbq_llama {

/// A weight matrix [outputs x inputs], stored as `name`.weight, with the bias `name`.bias where it has one.
struct MatrixModule {
  std::string name;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  bool has_bias = false;
};

/// A tensor that never is quantized: rows x columns, or one row for a vector.
struct FloatTensor {
  std::string name;
  std::size_t rows = 1;
  std::size_t columns = 0;
};

/// The linear layers of a block in the order Q, K, V, output, then gate, up, down (LLaMA) or two (OPT, BLOOM). Of
/// BLOOM's fused projection each part goes by a name of its own: q_proj, k_proj and v_proj; see ModelSource.
[[nodiscard]] std::vector<MatrixModule> block_modules(const ModelConfig& config, std::size_t layer);

/// The first module of those that read the same input: q for k and v, gate for up.
[[nodiscard]] constexpr std::size_t first_reader(std::size_t module, Architecture architecture) {
  if (module < 3) return 0;
  return architecture == Architecture::llama && module == 5 ? 4 : module;
}

/// The linear layers of all blocks.
[[nodiscard]] std::vector<MatrixModule> all_block_modules(const ModelConfig& config);

/// The token embedding; tied models use it as head too.
[[nodiscard]] MatrixModule embedding_module(const ModelConfig& config);

/// The output head of models that are not tied.
[[nodiscard]] MatrixModule head_module(const ModelConfig& config);

/// "model.layers.3", "model.decoder.layers.3" or "transformer.h.3".
[[nodiscard]] std::string block_name(const ModelConfig& config, std::size_t layer);

/// Weights of the norms (and biases, but for LLaMA) of a block, in the order they are applied, then those of the final
/// norm; and learned positions.
[[nodiscard]] std::vector<FloatTensor> norm_tensors(const ModelConfig& config);

/// Module names of the norms, two per block, then the final one.
[[nodiscard]] std::vector<std::string> norm_names(const ModelConfig& config);

/// Learned positions of OPT; an empty name where there are none.
[[nodiscard]] FloatTensor position_tensor(const ModelConfig& config);

/// The module name of the norm of BLOOM's embeddings; empty where there is none.
[[nodiscard]] std::string embedding_norm_name(const ModelConfig& config);

/// What embeddings are made of beside their table: learned positions, or weight and bias of a norm.
[[nodiscard]] std::vector<FloatTensor> embedding_tensors(const ModelConfig& config);

}  // namespace cbq_llama
