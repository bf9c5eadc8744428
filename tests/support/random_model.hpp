// SPDX-License-Identifier: Apache-2.0
#pragma once

// Small random LLaMA, OPT and BLOOM models: their weights, the same blocks over any linear operator, and in plain
// double.

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include <cbq/nn/causal_model.hpp>
#include <cbq/nn/llama_block.hpp>
#include <cbq/nn/opt_block.hpp>

#include "oracle/nn.hpp"
#include "support/nn.hpp"

namespace support {

/// A weight matrix and a bias (may be empty).
struct Weights {
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  std::vector<float> values = {};
  std::vector<float> bias = {};

  Weights(std::size_t n, std::size_t k, unsigned seed, bool with_bias)
      : outputs(n),
        inputs(k),
        values(normal(n * k, seed, 1.0f / std::sqrt(static_cast<float>(k)))),
        bias(with_bias ? normal(n, seed + 1, 0.1f) : std::vector<float>{}) {}

  [[nodiscard]] oracle::Matrix operator()(const oracle::Matrix& x) const {
    return oracle::linear(x, oracle::Matrix(outputs, inputs, values), doubles(bias));
  }
};

inline std::vector<float> norm_weight(std::size_t width, unsigned seed) {
  std::vector<float> weight = normal(width, seed, 0.2f);
  for (float& w : weight) w += 1.0f;
  return weight;
}

/// Everything of one layer; which matrices are used depends on the architecture.
struct Layer {
  Layer(std::size_t hidden, std::size_t inner, const cbq::AttentionShape& shape, unsigned seed, bool biases)
      : query(shape.heads * shape.width, hidden, seed + 10, biases),
        key(shape.kv_heads * shape.width, hidden, seed + 20, biases),
        value(shape.kv_heads * shape.width, hidden, seed + 30, biases),
        output(hidden, shape.heads * shape.width, seed + 40, biases),
        gate(inner, hidden, seed + 50, biases),
        up(inner, hidden, seed + 60, biases),
        down(hidden, inner, seed + 70, biases),
        first_norm(norm_weight(hidden, seed + 80)),
        second_norm(norm_weight(hidden, seed + 81)),
        first_bias(normal(hidden, seed + 82, 0.1f)),
        second_bias(normal(hidden, seed + 83, 0.1f)) {}

  Weights query, key, value, output, gate, up, down;
  std::vector<float> first_norm, second_norm, first_bias, second_bias;
};

struct RandomLlama {
  cbq::LlamaConfig config;
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  Weights head;

  /// heads * width need not be the hidden size.
  explicit RandomLlama(bool biases = false)
      : config{.shape = {.vocabulary = 61, .hidden = 48, .layers = 2, .max_positions = 80},
               .intermediate = 72,
               .attention = {.heads = 4, .kv_heads = 2, .width = 18},
               .norm_epsilon = 1e-5f,
               .rotary = {.base = 500.0}},
        final_norm(norm_weight(48, 7)),
        head(61, 48, 8, false) {
    for (unsigned i = 0; i < 2; ++i) layers.emplace_back(48, 72, config.attention, 100 * (i + 1), biases);
  }

  /// One layer over the operators that `make(const Weights&)` builds.
  template <class Make>
  [[nodiscard]] auto block(const Layer& l, const Make& make) const {
    using Linear = decltype(make(l.query));
    cbq::LlamaBlockParts<Linear> parts{*cbq::RmsNorm::create(l.first_norm, config.norm_epsilon),
                                       {make(l.query), make(l.key), make(l.value), make(l.output)},
                                       *cbq::RmsNorm::create(l.second_norm, config.norm_epsilon),
                                       {make(l.gate), make(l.up), make(l.down)}};
    auto made = cbq::LlamaBlock<Linear>::create(config, std::move(parts));
    REQUIRE(made);
    return *std::move(made);
  }

  /// The model, embedding tied to the head.
  template <class Make>
  [[nodiscard]] auto model(const Make& make) const {
    using Block = cbq::LlamaBlock<decltype(make(head))>;
    std::vector<Block> blocks;
    for (const Layer& l : layers) blocks.push_back(block(l, make));
    auto made =
        cbq::CausalModel<Block>::create(config, {std::nullopt, *cbq::RotaryPositions::create(config), std::move(blocks),
                                                 *cbq::RmsNorm::create(final_norm, config.norm_epsilon), make(head)});
    REQUIRE(made);
    return *std::move(made);
  }

  /// Hidden states after layer `l` for positions 0 .. h.rows, or for those of them in `stay`, where it is not empty.
  [[nodiscard]] oracle::Matrix reference(const Layer& l, const oracle::Matrix& h,
                                         const std::vector<std::uint32_t>& stay = {}) const {
    const std::size_t width = config.attention.width;
    const double epsilon = static_cast<double>(config.norm_epsilon);
    const auto frequencies = oracle::rotary_frequencies(config.rotary.base, width);
    const auto n = oracle::rms_norm(h, doubles(l.first_norm), epsilon);
    const auto rounded = [&](const oracle::Matrix& x) {
      return oracle::quantized_heads(oracle::gather(x, stay), width, config.head_grid.bits);
    };
    const auto mixed = oracle::attention(rounded(oracle::rotary(l.query(n), frequencies, 0)),
                                         rounded(oracle::rotary(l.key(n), frequencies, 0)), rounded(l.value(n)), width,
                                         1 / std::sqrt(static_cast<double>(width)));
    const auto middle = oracle::add(oracle::gather(h, stay), l.output(mixed));
    const auto m = oracle::rms_norm(middle, doubles(l.second_norm), epsilon);
    auto inner = l.gate(m);
    const auto up = l.up(m);
    for (std::size_t i = 0; i < inner.values.size(); ++i)
      inner.values[i] = oracle::silu(inner.values[i]) * up.values[i];
    return oracle::add(middle, l.down(inner));
  }

  [[nodiscard]] oracle::Matrix reference_logits(const std::vector<std::uint32_t>& tokens) const {
    oracle::Matrix h(tokens.size(), 48);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      for (std::size_t i = 0; i < 48; ++i) h(t, i) = static_cast<double>(head.values[tokens[t] * 48 + i]);
    }
    for (const Layer& l : layers) h = reference(l, h);
    return head(oracle::rms_norm(h, doubles(final_norm), static_cast<double>(config.norm_epsilon)));
  }
};

struct RandomOpt {
  cbq::OptConfig config;
  std::vector<Layer> layers;
  std::vector<float> positions;
  std::vector<float> slopes = {};

  RandomOpt()
      : config{.shape = {.vocabulary = 33, .hidden = 40, .layers = 2, .max_positions = 50},
               .intermediate = 64,
               .heads = 5,
               .activation = cbq::Activation::relu,
               .norm_epsilon = 1e-5f},
        positions(normal(52 * 40, 9)) {
    for (unsigned i = 0; i < 2; ++i) layers.emplace_back(40, 64, cbq::attention_shape(config), 100 * (i + 1), true);
  }

  template <cbq::PositionEmbedding P = cbq::LearnedPositions, class Make>
  [[nodiscard]] auto block(const Layer& l, const Make& make) const {
    using Linear = decltype(make(l.query));
    cbq::OptBlockParts<Linear> parts{*cbq::LayerNorm::create(l.first_norm, l.first_bias, config.norm_epsilon),
                                     {make(l.query), make(l.key), make(l.value), make(l.output)},
                                     *cbq::LayerNorm::create(l.second_norm, l.second_bias, config.norm_epsilon),
                                     {make(l.up), make(l.down)}};
    auto made = cbq::OptBlock<Linear, P>::create(config, std::move(parts));
    REQUIRE(made);
    return *std::move(made);
  }

  [[nodiscard]] oracle::Matrix reference(const Layer& l, const oracle::Matrix& h) const {
    const double epsilon = static_cast<double>(config.norm_epsilon);
    const auto n = oracle::layer_norm(h, doubles(l.first_norm), doubles(l.first_bias), epsilon);
    const auto mixed = oracle::attention(l.query(n), l.key(n), l.value(n), 8, 1 / std::sqrt(8.0), doubles(slopes));
    const auto middle = oracle::add(h, l.output(mixed));
    auto inner = l.up(oracle::layer_norm(middle, doubles(l.second_norm), doubles(l.second_bias), epsilon));
    for (double& v : inner.values) {
      v = config.activation == cbq::Activation::relu        ? std::fmax(v, 0.0)
          : config.activation == cbq::Activation::gelu_tanh ? oracle::gelu_tanh(v)
                                                            : oracle::gelu_erf(v);
    }
    return oracle::add(middle, l.down(inner));
  }
};

/// OPT's layers with GELU and the slopes of five heads: four and one more.
struct RandomBloom : RandomOpt {
  RandomBloom() {
    config.activation = cbq::Activation::gelu_tanh;
    slopes = {1 / 4.0f, 1 / 16.0f, 1 / 64.0f, 1 / 256.0f, 1 / 2.0f};
  }
};

}  // namespace support
