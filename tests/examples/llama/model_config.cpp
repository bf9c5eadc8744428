// SPDX-License-Identifier: Apache-2.0
#include "model_config.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <string>

#include "support/files.hpp"

using namespace cbq_llama;
using cbq::Errc;
using cbq::Json;

namespace {

Json llama() {
  return {{"model_type", "llama"},          {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 128},       {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"max_position_embeddings", 256}, {"rms_norm_eps", 1e-6},   {"hidden_act", "silu"}};
}

Json opt() {
  return {{"model_type", "opt"},
          {"vocab_size", 100},
          {"hidden_size", 64},
          {"ffn_dim", 256},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"max_position_embeddings", 256},
          {"do_layer_norm_before", true},
          {"word_embed_proj_dim", 64}};
}

Json bloom() {
  return {{"model_type", "bloom"}, {"vocab_size", 100}, {"hidden_size", 48},         {"n_layer", 2},
          {"n_head", 6},           {"seq_length", 256}, {"layer_norm_epsilon", 1e-6}};
}

ModelConfig read(const Json& json) {
  auto config = read_config(json);
  if (!config) FAIL(support::message(config.error()));
  return *config;
}

Errc code(const Json& json) {
  const auto config = read_config(json);
  REQUIRE_FALSE(config);
  CAPTURE(support::message(config.error()));
  return config.error().code;
}

}  // namespace

TEST_CASE("absent keys have Hugging Face's defaults") {
  const ModelConfig config = read(llama());
  CHECK(config.kv_heads == 4);
  CHECK(config.head_width == 16);
  CHECK(config.rotary.base == 10000);
  CHECK(config.rotary.scaling == cbq::RotaryScaling::none);
  CHECK_FALSE(config.tied);
  CHECK_FALSE(config.attention_bias);
  CHECK_FALSE(config.bos.has_value());
  CHECK(config.eos.empty());
  const ModelConfig other = read(opt());
  CHECK(other.tied);
  CHECK(other.attention_bias);
  CHECK(other.mlp_bias);
  CHECK(other.activation == cbq::Activation::relu);
}

TEST_CASE("BLOOM's sizes have two names each, and what follows from them has none") {
  Json json = bloom();
  const ModelConfig config = read(json);
  CHECK(config.architecture == Architecture::bloom);
  CHECK(config.intermediate == 192);
  CHECK(config.kv_heads == 6);
  CHECK(config.head_width == 8);
  CHECK(config.context == 256);
  CHECK(config.norm_epsilon == 1e-6);
  CHECK(config.activation == cbq::Activation::gelu_tanh);
  CHECK((config.tied && config.attention_bias && config.mlp_bias));
  const ModelConfig again = read(to_json(config));
  CHECK(again.architecture == Architecture::bloom);
  CHECK(again.context == 256);
  CHECK(again.norm_epsilon == 1e-6);
  for (const auto& [name, other] :
       {std::pair{"hidden_size", "n_embed"}, {"n_layer", "num_hidden_layers"}, {"n_head", "num_attention_heads"}}) {
    json[other] = json[name];
    json.erase(name);
  }
  json.erase("seq_length");
  CHECK(read(json).hidden == 48);
  CHECK(read(json).layers == 2);
  CHECK(read(json).heads == 6);
  CHECK(read(json).context == 2048);
  json["apply_residual_connection_post_layernorm"] = true;
  CHECK(code(json) == Errc::unsupported);
  json = bloom();
  json["n_head"] = 0;
  CHECK(code(json) == Errc::bad_file);
  json["n_head"] = 5;  // no divisor of 48
  CHECK(code(json) == Errc::bad_file);
}

TEST_CASE("rotary settings are found where each release of Transformers puts them") {
  Json json = llama();
  json["rope_theta"] = 500000.0;
  CHECK(read(json).rotary.base == 500000);
  json["rope_scaling"] = nullptr;
  CHECK(read(json).rotary.scaling == cbq::RotaryScaling::none);
  json["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  CHECK(read(json).rotary.scaling == cbq::RotaryScaling::linear);
  CHECK(read(json).rotary.factor == 4);
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  json["rope_scaling"] = llama3;
  CHECK(read(json).rotary.scaling == cbq::RotaryScaling::llama3);
  CHECK(read(json).rotary.original_positions == 8192);
  CHECK(read(json).rotary.base == 500000);
  json["rope_parameters"] = llama3;
  json["rope_parameters"]["rope_theta"] = 250000;
  json["rope_parameters"]["factor"] = 32;
  CHECK(read(json).rotary.base == 250000);
  CHECK(read(json).rotary.factor == 32);
  json["rope_parameters"]["rope_type"] = "yarn";
  CHECK(code(json) == Errc::unsupported);
  json["rope_parameters"] = {{"rope_type", "llama3"}};
  CHECK(code(json) == Errc::bad_file);
}

TEST_CASE("longrope is read where it is one list of factors") {
  Json json = llama();  // heads of 16
  const Json factors = {1, 1, 1.5, 2, 2.5, 3, 4, 1e-3};
  const Json longrope = {{"rope_type", "longrope"}, {"rope_theta", 500.0},
                         {"short_factor", factors}, {"long_factor", factors},
                         {"attention_factor", 1.0}, {"original_max_position_embeddings", 256}};
  json["rope_parameters"] = longrope;
  const ModelConfig config = read(json);
  CHECK(config.rotary.scaling == cbq::RotaryScaling::per_pair);
  CHECK(config.rotary.base == 500);
  CHECK(config.rotary.pair_factors == std::vector<float>{1, 1, 1.5f, 2, 2.5f, 3, 4, 1e-3f});
  const ModelConfig again = read(to_json(config));
  CHECK(again.rotary.scaling == cbq::RotaryScaling::per_pair);
  CHECK(again.rotary.pair_factors == config.rotary.pair_factors);
  const Json written = to_json(config).at("rope_parameters");
  CHECK(written.at("short_factor") == written.at("long_factor"));
  CHECK(written.at("attention_factor") == 1);
  CHECK(written.at("original_max_position_embeddings") == 256);
  const auto changed = [&](const char* key, const Json& value) {
    json["rope_parameters"] = longrope;
    json["rope_parameters"][key] = value;
    return code(json);
  };
  CHECK(changed("attention_factor", 1.2) == Errc::unsupported);
  CHECK(changed("attention_factor", nullptr) == Errc::unsupported);  // Transformers then has a rule for it
  CHECK(changed("short_factor", {1, 1, 1, 1, 1, 1, 1, 1}) == Errc::unsupported);
  CHECK(changed("long_factor", nullptr) == Errc::unsupported);
  const auto both = [&](const Json& value) {
    json["rope_parameters"] = longrope;
    json["rope_parameters"]["short_factor"] = json["rope_parameters"]["long_factor"] = value;
    return code(json);
  };
  CHECK(both({1, 1}) == Errc::bad_file);
  CHECK(both(Json::array()) == Errc::bad_file);
  CHECK(both(2) == Errc::bad_file);
  for (const Json& bad : {Json(0), Json(-1), Json("1"), Json(nullptr), Json(1e300), Json(1e-300)}) {
    CAPTURE(bad.dump());
    CHECK(both({1, 1, bad, 1, 1, 1, 1, 1}) == Errc::bad_file);
  }
}

TEST_CASE("rotary numbers that make no frequencies are refused") {
  Json json = llama();
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  for (const auto& [key, value] : {std::pair{"factor", 0.0},
                                   {"factor", -8.0},
                                   {"low_freq_factor", 4.0},
                                   {"original_max_position_embeddings", 0.0}}) {
    CAPTURE(key, value);
    json["rope_scaling"] = llama3;
    json["rope_scaling"][key] = value;
    CHECK(code(json) == Errc::bad_file);
  }
}

TEST_CASE("token ids are numbers or lists of them") {
  Json json = llama();
  json["bos_token_id"] = 1;
  json["eos_token_id"] = {2, 3};
  CHECK(read(json).bos == 1);
  CHECK(read(json).eos == std::vector<std::int64_t>{2, 3});
  json["eos_token_id"] = "2";
  CHECK(code(json) == Errc::bad_file);
}

TEST_CASE("what the engine cannot run is refused") {
  Json json = llama();
  json["model_type"] = "mamba";
  CHECK(code(json) == Errc::unsupported);
  json = llama();
  json["hidden_act"] = "gelu";
  CHECK(code(json) == Errc::unsupported);
  json = opt();
  json["do_layer_norm_before"] = false;
  CHECK(code(json) == Errc::unsupported);
  json = opt();
  json["word_embed_proj_dim"] = 32;
  CHECK(code(json) == Errc::unsupported);
  json = opt();
  json["activation_function"] = "swish";
  CHECK(code(json) == Errc::unsupported);
}

TEST_CASE("sizes that make no model are refused") {
  const auto* key =
      GENERATE("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads");
  CAPTURE(key);
  Json json = llama();
  json.erase(key);
  CHECK(code(json) == Errc::bad_file);
  for (const Json& wrong : {Json(0), Json(-4), Json(1.5), Json("4"), Json(std::uint64_t{1} << 60)}) {
    CAPTURE(wrong.dump());
    json[key] = wrong;
    CHECK(code(json) == Errc::bad_file);
  }
}

TEST_CASE("heads must share out") {
  Json json = llama();
  json["num_key_value_heads"] = 3;
  CHECK(code(json) == Errc::bad_file);
  json["num_key_value_heads"] = 2;
  json["head_dim"] = 15;
  CHECK(code(json) == Errc::bad_file);
  json["head_dim"] = 32;  // heads need not divide the hidden size
  CHECK(read(json).head_width == 32);
}

TEST_CASE("a configuration written is the configuration read") {
  Json json = GENERATE(llama(), opt());
  json["bos_token_id"] = 5;
  json["eos_token_id"] = {6, 7};
  if (json["model_type"] == "llama") {
    json["rope_parameters"] = {{"rope_type", "llama3"},   {"rope_theta", 5000.0},
                               {"factor", 8.0},           {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 128}};
    json["num_key_value_heads"] = 2;
    json["tie_word_embeddings"] = true;
  }
  const ModelConfig config = read(json);
  const ModelConfig again = read(to_json(config));
  CHECK(again.architecture == config.architecture);
  CHECK(again.hidden == config.hidden);
  CHECK(again.intermediate == config.intermediate);
  CHECK(again.kv_heads == config.kv_heads);
  CHECK(again.head_width == config.head_width);
  CHECK(again.context == config.context);
  CHECK(again.tied == config.tied);
  CHECK(again.attention_bias == config.attention_bias);
  CHECK(again.bos == config.bos);
  CHECK(again.eos == config.eos);
  CHECK(again.rotary.scaling == config.rotary.scaling);
  CHECK(again.rotary.base == config.rotary.base);
  CHECK(again.rotary.original_positions == config.rotary.original_positions);
  CHECK(again.activation == config.activation);
}
