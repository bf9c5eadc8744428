// SPDX-License-Identifier: Apache-2.0
#include <cbq/transform/decoder_rotation.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cmath>
#include <string>
#include <vector>

#include <cbq/outlier/activation_scaling.hpp>
#include <cbq/transform/channel_scaling.hpp>

#include "support/kernels.hpp"
#include "support/random_decoder.hpp"

using cbq::DecoderWeights;
using cbq::Errc;
using cbq::LinearWeights;
using cbq::NormKind;
using cbq::RotationParts;

namespace {

// A random LLaMA with its embedding untied, as views.
struct Decoder {
  support::RandomLlama llama;
  std::vector<float> embedding;
  std::vector<cbq::DecoderLayerWeights<float>> layers;

  explicit Decoder(bool biases = false) : llama(biases), embedding(llama.head.values) {
    for (support::Layer& l : llama.layers) layers.push_back(support::weights_of(l));
  }
  DecoderWeights<float> weights() {
    return {.embedding = support::view(embedding, 48),
            .positions = {},
            .layers = layers,
            .final_norm = {llama.final_norm, {}},
            .head = support::view_of(llama.head),
            .value_heads = {4, 2, 18}};
  }
};

}  // namespace

TEST_CASE("an offline rotation leaves a LLaMA's function unchanged and its norms without gains") {
  for (const bool biases : {false, true}) {
    for (const RotationParts parts : {RotationParts::residual, RotationParts::residual_and_values}) {
      Decoder decoder(biases);
      const auto wanted = decoder.llama.reference_logits(support::tokens);
      const auto value = decoder.llama.layers[0].value.values;
      const auto norm = decoder.llama.layers[1].first_norm;
      REQUIRE(cbq::rotate_decoder(decoder.weights(), {.parts = parts, .seed = 9}));
      CHECK(oracle::distance(support::logits(decoder.llama, decoder.embedding), wanted) < 2e-5);
      CHECK(decoder.llama.layers[0].value.values != value);
      CHECK(decoder.llama.layers[1].first_norm != norm);
      CHECK(decoder.llama.layers[1].first_norm == std::vector<float>(48, 1.0f));
    }
  }
}

TEST_CASE("the weights of down_proj undo the transform of its input") {
  Decoder rotated, plain;
  REQUIRE(cbq::rotate_decoder(plain.weights(), {.parts = RotationParts::residual_and_values, .seed = 3}));
  REQUIRE(cbq::rotate_decoder(rotated.weights(), {.parts = RotationParts::residual_values_and_down, .seed = 3}));
  std::vector<float>& down = rotated.llama.layers[0].down.values;
  CHECK(down != plain.llama.layers[0].down.values);
  const oracle::Matrix x(5, 72, support::normal(5 * 72, 1));
  std::vector<float> transformed(x.values.begin(), x.values.end());
  REQUIRE(cbq::hadamard_rows(support::view(transformed, 72), cbq::hadamard_size(72)));
  const oracle::Matrix y = oracle::linear(oracle::Matrix(5, 72, transformed), oracle::Matrix(48, 72, down));
  CHECK(oracle::distance(std::vector<float>(y.values.begin(), y.values.end()), plain.llama.layers[0].down(x)) < 1e-5);
}

TEST_CASE("channel scaling and rotation compose") {
  Decoder decoder;
  const auto wanted = decoder.llama.reference_logits(support::tokens);
  for (const auto& l : decoder.layers) {
    std::vector<float> sizes(48, 1.0f), factors(48);
    sizes[11] = 100;
    REQUIRE(cbq::find_scaling_factors<float>(sizes, factors));
    const LinearWeights<float> gate_up[] = {l.gate, l.up};
    REQUIRE(cbq::scale_channels(l.mlp_norm, gate_up, factors));
  }
  REQUIRE(cbq::rotate_decoder(decoder.weights(), {}));
  CHECK(oracle::distance(support::logits(decoder.llama, decoder.embedding), wanted) < 2e-5);
}

TEST_CASE("a rotation spreads an outlier channel of the stream") {
  Decoder decoder;
  for (std::size_t t = 0; t < 61; ++t) decoder.embedding[t * 48 + 17] *= 100;
  const auto kurtosis = [&] {
    double squares = 0, largest = 0;
    for (const float v : decoder.embedding) {
      squares += static_cast<double>(v) * static_cast<double>(v) / static_cast<double>(decoder.embedding.size());
      largest = std::fmax(largest, std::fabs(static_cast<double>(v)));
    }
    return largest / std::sqrt(squares);
  };
  const double before = kurtosis();
  REQUIRE(cbq::rotate_decoder(decoder.weights(), {.seed = 1}));
  CHECK(kurtosis() < 0.6 * before);
}

TEST_CASE("a stream of layer norms is rotated by what keeps its mean") {
  const bool biased_head = GENERATE(true, false);
  support::RandomOpt opt;
  std::vector<cbq::DecoderLayerWeights<float>> layers;
  for (support::Layer& l : opt.layers) {
    layers.push_back(support::weights_of(l));
    layers.back().attention_norm.bias = l.first_bias;
    layers.back().mlp_norm.bias = l.second_bias;
    layers.back().gate = {};
  }
  std::vector<float> embedding = support::normal(9 * 40, 3), final_norm = support::norm_weight(40, 7),
                     final_bias = support::normal(40, 5);
  support::Weights head(9, 40, 8, biased_head);
  // What the model computes from the embeddings of nine tokens.
  const auto run = [&] {
    oracle::Matrix h(9, 40, embedding);
    for (const support::Layer& l : opt.layers) h = opt.reference(l, h);
    return head(oracle::layer_norm(h, support::doubles(final_norm), support::doubles(final_bias), 1e-5));
  };
  const oracle::Matrix wanted = run();
  const DecoderWeights<float> weights = {.embedding = support::view(embedding, 40),
                                         .positions = {},
                                         .layers = layers,
                                         .final_norm = {final_norm, final_bias},
                                         .head = support::view_of(head),
                                         .value_heads = {5, 5, 8}};
  REQUIRE(cbq::rotate_decoder(weights, {.norms = NormKind::layer, .seed = 4}));
  CHECK(final_norm == std::vector<float>(40, 1.0f));
  CHECK((final_bias == std::vector<float>(40, 0.0f)) == biased_head);  // a head without a bias leaves it to the norm
  const oracle::Matrix rotated = run();
  CHECK(oracle::distance(std::vector<float>(rotated.values.begin(), rotated.values.end()), wanted) < 2e-5);
}

TEST_CASE("rotation does not depend on the executor") {
  Decoder one, many;
  const cbq::DecoderRotationOptions options = {.parts = RotationParts::residual_values_and_down, .seed = 7};
  REQUIRE(cbq::rotate_decoder(one.weights(), options));
  REQUIRE(cbq::rotate_decoder(many.weights(), options, support::ThreadExecutor{}));
  CHECK(one.embedding == many.embedding);
  CHECK(one.llama.layers[1].output.values == many.llama.layers[1].output.values);
  CHECK(one.llama.layers[1].down.values == many.llama.layers[1].down.values);
}

TEST_CASE("what cannot be rotated is named and left as it was") {
  Decoder decoder;
  const auto before = decoder.llama.layers[0].query.values;
  DecoderWeights<float> tied = decoder.weights();
  tied.embedding = support::view(decoder.llama.head.values, 48);
  CHECK(cbq::rotate_decoder(tied, {}).error().code == Errc::bad_argument);
  decoder.layers[1].down.weights.columns = 71;
  const auto failed = cbq::rotate_decoder(decoder.weights(), {});
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::bad_shape);
  CHECK(std::string(failed.error().where.c_str()) == "layer 1, down projection");
  decoder.layers[1].down.weights.columns = 72;
  std::vector<float> bias(48, 0.1f);
  decoder.layers[1].mlp_norm.bias = bias;
  CHECK(cbq::rotate_decoder(decoder.weights(), {}).error().code == Errc::unsupported);
  CHECK(decoder.llama.layers[0].query.values == before);
  const auto norm = cbq::NormWeights<float>{decoder.llama.layers[0].first_norm, bias};
  CHECK(cbq::fold_norm(norm, {&decoder.layers[0].query, 1}).error().code == Errc::unsupported);
  decoder.llama.layers[0].first_norm[5] = 0;
  CHECK(cbq::fold_gain(norm, {&decoder.layers[0].query, 1}).error().code == Errc::unsupported);
}
