// SPDX-License-Identifier: Apache-2.0
#pragma once

// The small random models as views that transformations rewrite, and what they compute afterwards.

#include <cstdint>
#include <utility>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include <cbq/nn/dense_linear.hpp>
#include <cbq/transform/layer_weights.hpp>

#include "support/random_model.hpp"

namespace support {

inline const std::vector<std::uint32_t> tokens = {3, 60, 7, 7, 0, 41, 12, 5, 33, 20, 1};

inline cbq::LinearWeights<float> view_of(Weights& w) {
  return {cbq::matrix_view(w.values.data(), w.outputs, w.inputs), w.bias};
}

inline cbq::NormWeights<float> layer_norm(std::vector<float>& gain, std::vector<float>& bias) {
  return {gain, bias};
}

/// As a LLaMA layer: norms without biases, gated.
inline cbq::DecoderLayerWeights<float> weights_of(Layer& l) {
  return {.attention_norm = {l.first_norm, {}},
          .query = view_of(l.query),
          .key = view_of(l.key),
          .value = view_of(l.value),
          .output = view_of(l.output),
          .mlp_norm = {l.second_norm, {}},
          .gate = view_of(l.gate),
          .up = view_of(l.up),
          .down = view_of(l.down)};
}

/// Logits of `tokens` by the library's own layers. `embedding` (empty: tied) is vocabulary x hidden.
inline std::vector<float> logits(const RandomLlama& llama, const std::vector<float>& embedding = {}) {
  using Linear = cbq::DenseLinear<float>;
  const auto make = [](const Weights& w) { return *Linear::create(input(w.values, w.inputs), w.bias); };
  const cbq::SerialExecutor serial;
  cbq::ExecutionContext<> context(serial, cbq::detect());
  std::vector<cbq::LlamaBlock<Linear>> blocks;
  for (const Layer& l : llama.layers) blocks.push_back(llama.block(l, make));
  std::optional<Linear> table;
  if (!embedding.empty()) table = *Linear::create(input(embedding, llama.config.shape.hidden));
  auto model = cbq::CausalModel<cbq::LlamaBlock<Linear>>::create(
      llama.config, {std::move(table), *cbq::RotaryPositions::create(llama.config), std::move(blocks),
                     *cbq::RmsNorm::create(llama.final_norm, llama.config.norm_epsilon), make(llama.head)});
  REQUIRE(model);
  auto cache = model->make_cache(tokens.size());
  REQUIRE(cache);
  std::vector<float> hidden(tokens.size() * llama.config.shape.hidden);
  std::vector<float> result(tokens.size() * llama.config.shape.vocabulary);
  REQUIRE(model->forward_hidden(tokens, *cache, view(hidden, llama.config.shape.hidden), context));
  REQUIRE(
      model->logits(input(hidden, llama.config.shape.hidden), view(result, llama.config.shape.vocabulary), context));
  return result;
}

}  // namespace support
