// SPDX-License-Identifier: Apache-2.0
#include "model_source.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/io/safetensors_writer.hpp>

#include "examples/llama/engine_fixture.hpp"
#include "model.hpp"
#include "support/gguf.hpp"

using namespace cbq_llama;
using cbq::Errc;
using cbq::GgufKind;
using cbq::Json;
using engine_fixture::unwrap;

namespace {

// The embedded model as the GGUF file that converters make of it: other names, the rows of Q and K in pairs.
class PocketGguf {
 public:
  PocketGguf() : checkpoint_(unwrap(cbq::Checkpoint::open(engine_fixture::pocket_llama()))) {
    add_keys();
    add_tensor("model.embed_tokens.weight", "token_embd.weight");
    constexpr std::pair<const char*, const char*> parts[] = {
        {"input_layernorm", "attn_norm"}, {"self_attn.q_proj", "attn_q"},      {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"},   {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
        {"mlp.gate_proj", "ffn_gate"},    {"mlp.up_proj", "ffn_up"},           {"mlp.down_proj", "ffn_down"}};
    for (int layer = 0; layer < 5; ++layer) {
      for (const auto& [from, to] : parts) {
        add_tensor("model.layers." + std::to_string(layer) + "." + from + ".weight",
                   "blk." + std::to_string(layer) + "." + to + ".weight");
      }
    }
    add_tensor("model.norm.weight", "output_norm.weight");
  }

  void write(const std::string& path) const {
    const std::vector<std::byte> bytes = builder_.bytes();
    support::write_text(path, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }

  support::GgufBuilder& builder() { return builder_; }

 private:
  void add_keys() {
    builder_.key("general.architecture", GgufKind::text).counted("llama");
    const std::pair<const char*, std::uint32_t> sizes[] = {{"block_count", 5},           {"embedding_length", 256},
                                                           {"feed_forward_length", 512}, {"context_length", 1024},
                                                           {"attention.head_count", 4},  {"attention.head_count_kv", 2},
                                                           {"rope.dimension_count", 64}, {"vocab_size", 1024}};
    for (const auto& [name, value] : sizes) builder_.key(std::string("llama.") + name, GgufKind::u32).add(value);
    builder_.key("llama.attention.layer_norm_rms_epsilon", GgufKind::f32).add(1e-5f);
    builder_.key("llama.rope.freq_base", GgufKind::f32).add(10000.0f);
    const Json tokenizer = unwrap(cbq::read_json_file(engine_fixture::pocket_llama() + "/tokenizer.json"));
    std::vector<std::string> tokens(1024);
    for (const auto& [text, id] : tokenizer.at("model").at("vocab").items()) tokens.at(id.get<std::size_t>()) = text;
    auto& list = builder_.array("tokenizer.ggml.tokens", GgufKind::text, tokens.size());
    for (const std::string& token : tokens) list.counted(token);
    auto& types = builder_.array("tokenizer.ggml.token_type", GgufKind::i32, tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) types.add(std::int32_t{i == 0 ? 3 : 1});
    const Json& merges = tokenizer.at("model").at("merges");
    auto& ranked = builder_.array("tokenizer.ggml.merges", GgufKind::text, merges.size());
    for (const Json& merge : merges) {
      ranked.counted(merge.is_string() ? merge.get<std::string>()
                                       : merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
    }
    builder_.key("tokenizer.ggml.model", GgufKind::text).counted("gpt2");
    builder_.key("tokenizer.ggml.pre", GgufKind::text).counted("gpt-2");
    builder_.key("tokenizer.ggml.bos_token_id", GgufKind::u32).add(std::uint32_t{0});
    builder_.key("tokenizer.ggml.eos_token_id", GgufKind::u32).add(std::uint32_t{0});
    builder_.key("tokenizer.ggml.add_bos_token", GgufKind::boolean).add(std::uint8_t{0});
  }

  void add_tensor(const std::string& from, const std::string& to) {
    const cbq::TensorView* tensor = checkpoint_.find(from);
    REQUIRE(tensor != nullptr);
    std::vector<std::byte> bytes(tensor->bytes.begin(), tensor->bytes.end());
    std::vector<std::uint64_t> sizes(tensor->shape.sizes, tensor->shape.sizes + tensor->shape.rank);
    if (to.find("attn_q.") != std::string::npos || to.find("attn_k.") != std::string::npos) {
      const std::size_t row = sizes[1] * 2;
      for (std::size_t r = 0; r < sizes[0]; ++r) {  // row (head, half, i) moves to (head, i, half)
        const std::size_t target = r / 64 * 64 + 2 * (r % 32) + r % 64 / 32;
        std::memcpy(bytes.data() + target * row, tensor->bytes.data() + r * row, row);
      }
    }
    std::vector<std::uint64_t> innermost_first(sizes.rbegin(), sizes.rend());
    builder_.tensor(to, innermost_first, cbq::GgufType::f16, bytes);
  }

  cbq::Checkpoint checkpoint_;
  support::GgufBuilder builder_;
};

std::vector<float> logits_of(const Model& model, const std::vector<std::int32_t>& tokens) {
  Session session = unwrap(Session::create(model, tokens.size(), {}));
  const auto logits = unwrap(session.next_logits(tokens));
  return {logits.begin(), logits.end()};
}

// A copy of the embedded model's folder, to be spoilt.
void copy_model(const support::ScratchFolder& scratch) {
  for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) {
    std::filesystem::copy_file(engine_fixture::pocket_llama() + "/" + name, scratch / name);
  }
}

// Changes config.json.
template <class Change>
void edit_config(const support::ScratchFolder& scratch, const Change& change) {
  Json json = unwrap(cbq::read_json_file(scratch / "config.json"));
  change(json);
  support::write_text(scratch / "config.json", json.dump());
}

cbq::Error load_error(const std::string& path) {
  const auto source = ModelSource::open(path);
  if (!source) return source.error();
  const auto model = Model::load(*source);
  REQUIRE_FALSE(model);
  return model.error();
}

}  // namespace

TEST_CASE("a GGUF file and a folder of the same weights are the same model") {
  const support::ScratchFolder scratch;
  PocketGguf().write(scratch / "pocket.gguf");
  const ModelSource file = unwrap(ModelSource::open(scratch / "pocket.gguf"));
  const ModelSource folder = unwrap(ModelSource::open(engine_fixture::pocket_llama()));
  CHECK(file.config().tied);
  const std::string text = "In 1984, naïve cafés sold 12 lazy foxes;\n  twice.";
  const std::vector<std::int32_t> tokens = unwrap(unwrap(folder.tokenizer()).encode(text));
  CHECK(unwrap(unwrap(file.tokenizer()).encode(text)) == tokens);
  CHECK(logits_of(unwrap(Model::load(file)), tokens) == logits_of(unwrap(Model::load(folder)), tokens));

  // And quantized: the tokenizer travels with the folder.
  QuantizationOptions options;
  options.rules = {{"*", cbq::schemes::w4a8_g32}};
  for (const auto& [source, name] : {std::pair(&file, "from-gguf"), std::pair(&folder, "from-folder")}) {
    REQUIRE(quantize(*source, scratch / name, options));
  }
  const ModelSource one = unwrap(ModelSource::open(scratch / "from-gguf"));
  const ModelSource other = unwrap(ModelSource::open(scratch / "from-folder"));
  CHECK(unwrap(unwrap(one.tokenizer()).encode(text)) == tokens);
  CHECK(logits_of(unwrap(Model::load(one)), tokens) == logits_of(unwrap(Model::load(other)), tokens));
}

TEST_CASE("another pre-tokenizer can take the place of the one that a GGUF file names") {
  const support::ScratchFolder scratch;
  PocketGguf().write(scratch / "model.gguf");
  const std::string text = "In 1995\n\n42";
  const auto ids = [&](const std::string& pre_tokenizer) {
    return unwrap(unwrap(unwrap(ModelSource::open(scratch / "model.gguf", pre_tokenizer)).tokenizer()).encode(text));
  };
  CHECK(ids("gpt-2") == ids(""));
  CHECK(ids("smollm") != ids(""));
  const ModelSource source = unwrap(ModelSource::open(scratch / "model.gguf", "smollm"));
  CHECK(unwrap(source.vocabulary_json())["pre"] == "smollm");  // what quantize writes
  const auto unknown = unwrap(ModelSource::open(scratch / "model.gguf", "somebody-elses")).tokenizer();
  REQUIRE_FALSE(unknown);
  CHECK(unknown.error().code == Errc::unsupported);
}

// The embedded model as a GGUF file with these rotary factors; its heads have 64 elements.
void write_with_factors(const std::string& path, const std::vector<float>& factors,
                        cbq::GgufType type = cbq::GgufType::f32) {
  PocketGguf gguf;
  gguf.builder().tensor("rope_freqs.weight", {factors.size()}, type, std::as_bytes(std::span(factors)));
  gguf.write(path);
}

// What converters write for the rule of Llama 3.1: frequencies in float.
std::vector<float> converted_factors(double factor, double original = 8192) {
  std::vector<float> factors;
  for (int i = 0; i < 32; ++i) {
    const float frequency = 1.0f / std::pow(10000.0f, static_cast<float>(2 * i) / 64.0f);
    const double wavelength = 2 * std::acos(-1.0) / static_cast<double>(frequency);
    const double smooth = (original / wavelength - 1) / 3;
    factors.push_back(static_cast<float>(wavelength < original / 4 ? 1
                                         : wavelength > original   ? factor
                                                                   : 1 / ((1 - smooth) / factor + smooth)));
  }
  return factors;
}

TEST_CASE("rotary factors of a GGUF file divide the frequencies") {
  const support::ScratchFolder scratch;
  const std::vector<std::int32_t> tokens = {5, 900, 17, 33, 33, 512, 8, 1, 77, 640, 3, 3};
  PocketGguf().write(scratch / "plain.gguf");
  const auto plain = logits_of(unwrap(Model::load(unwrap(ModelSource::open(scratch / "plain.gguf")))), tokens);

  SECTION("of one divide by one") {
    write_with_factors(scratch / "m.gguf", std::vector<float>(32, 1.0f));
    const ModelSource source = unwrap(ModelSource::open(scratch / "m.gguf"));
    CHECK(source.config().rotary.scaling == cbq::RotaryScaling::none);
    CHECK(logits_of(unwrap(Model::load(source)), tokens) == plain);
  }
  SECTION("of Llama 3.1 are its rule") {
    for (const double factor : {8.0, 32.0}) {
      write_with_factors(scratch / "m.gguf", converted_factors(factor));
      const ModelSource source = unwrap(ModelSource::open(scratch / "m.gguf"));
      CHECK(source.config().rotary.scaling == cbq::RotaryScaling::llama3);
      CHECK(source.config().rotary.factor == factor);
      CHECK(source.config().rotary.low_frequency_factor == 1);
      CHECK(source.config().rotary.high_frequency_factor == 4);
      CHECK(source.config().rotary.original_positions == 8192);
      const support::ScratchFolder folder;
      copy_model(folder);
      edit_config(folder, [&](Json& json) {
        json["rope_parameters"] = {{"rope_theta", 10000.0},   {"rope_type", "llama3"},
                                   {"factor", factor},        {"low_freq_factor", 1.0},
                                   {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
      });
      const auto wanted = logits_of(unwrap(Model::load(unwrap(ModelSource::open(folder.path())))), tokens);
      CHECK(logits_of(unwrap(Model::load(source)), tokens) == wanted);
      CHECK(wanted != plain);
    }
  }
  SECTION("of another rule are taken one by one") {
    auto factors = converted_factors(8, 64);
    CHECK(factors[4] != factors[12]);
    write_with_factors(scratch / "m.gguf", factors);
    const ModelSource source = unwrap(ModelSource::open(scratch / "m.gguf"));
    CHECK(source.config().rotary.scaling == cbq::RotaryScaling::per_pair);
    CHECK(source.config().rotary.pair_factors == factors);
    // All frequencies divided by 4 are the base's with positions that are 4 times as small.
    write_with_factors(scratch / "m.gguf", std::vector<float>(32, 4.0f));
    const ModelSource divided = unwrap(ModelSource::open(scratch / "m.gguf"));
    const support::ScratchFolder folder;
    copy_model(folder);
    edit_config(folder, [](Json& json) {
      json["rope_parameters"] = {{"rope_theta", 10000.0}, {"rope_type", "linear"}, {"factor", 4.0}};
    });
    const auto wanted = logits_of(unwrap(Model::load(unwrap(ModelSource::open(folder.path())))), tokens);
    CHECK(logits_of(unwrap(Model::load(divided)), tokens) == wanted);
    CHECK(wanted != plain);
  }
  SECTION("of nearly Llama 3.1 are not") {
    auto factors = converted_factors(8);
    factors[20] *= 1.001f;
    write_with_factors(scratch / "m.gguf", factors);
    CHECK(unwrap(ModelSource::open(scratch / "m.gguf")).config().rotary.scaling == cbq::RotaryScaling::per_pair);
  }
}

TEST_CASE("rotary factors that divide no frequency are refused") {
  const support::ScratchFolder scratch;
  const auto refused = [&](const std::vector<float>& factors, cbq::GgufType type = cbq::GgufType::f32) {
    write_with_factors(scratch / "m.gguf", factors, type);
    const cbq::Error error = load_error(scratch / "m.gguf");
    const std::string text = support::message(error);
    CAPTURE(text);
    CHECK(text.find("rope_freqs.weight") != std::string::npos);
    CHECK(text.find("m.gguf") != std::string::npos);
    return error;
  };
  CHECK(refused(std::vector<float>(31, 2.0f)).code == Errc::bad_shape);
  CHECK(refused(std::vector<float>(64, 2.0f)).code == Errc::bad_shape);
  for (const float bad : {0.0f, -1.0f}) {
    std::vector<float> factors(32, 2.0f);
    factors[7] = bad;
    const cbq::Error error = refused(factors);
    CHECK(error.code == Errc::bad_file);
    CHECK(support::message(error).find("rope_freqs.weight[7]") != std::string::npos);
  }
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> factors(32, 2.0f);
    factors[7] = bad;
    CHECK(refused(factors).code == Errc::not_finite);
  }
  CHECK(refused(std::vector<float>(32, 2.0f), cbq::GgufType::i32).code == Errc::unsupported);
  PocketGguf twice;
  twice.builder().key("llama.rope.scaling.type", GgufKind::text).counted("linear");
  twice.builder().key("llama.rope.scaling.factor", GgufKind::f32).add(2.0f);
  const std::vector<float> twos(32, 2.0f);
  twice.builder().tensor("rope_freqs.weight", {32}, cbq::GgufType::f32, std::as_bytes(std::span(twos)));
  twice.write(scratch / "m.gguf");
  CHECK(load_error(scratch / "m.gguf").code == Errc::unsupported);
}

TEST_CASE("a bias of no whole heads is refused") {
  const support::ScratchFolder scratch;
  PocketGguf gguf;
  for (int layer = 0; layer < 5; ++layer) {
    for (const auto& [part, size] :
         {std::pair{"attn_q", layer == 2 ? 250 : 256}, {"attn_k", 128}, {"attn_v", 128}, {"attn_output", 256}}) {
      const std::vector<float> values(static_cast<std::size_t>(size), 0.5f);
      gguf.builder().tensor("blk." + std::to_string(layer) + "." + part + ".bias", {values.size()}, cbq::GgufType::f32,
                            std::as_bytes(std::span(values)));
    }
  }
  gguf.write(scratch / "m.gguf");
  const cbq::Error error = load_error(scratch / "m.gguf");
  CHECK(error.code == Errc::bad_shape);
  CHECK(support::message(error).find("model.layers.2.self_attn.q_proj.bias") != std::string::npos);
  const ModelSource source = unwrap(ModelSource::open(scratch / "m.gguf"));
  std::vector<float> values(250);
  const cbq::Status read = source.read("model.layers.2.self_attn.q_proj.bias", std::span<float>(values));
  REQUIRE_FALSE(read);
  CHECK(read.error().code == Errc::bad_shape);
}

TEST_CASE("GGUF files that the engine would get wrong are refused") {
  const support::ScratchFolder scratch;
  const std::vector<std::byte> some(64);
  SECTION("a bias of one projection of several") {
    PocketGguf gguf;
    gguf.builder().tensor("blk.0.attn_q.bias", {32}, cbq::GgufType::f16, some);
    gguf.write(scratch / "m.gguf");
    CHECK(support::message(load_error(scratch / "m.gguf")).find("blk.0.attn_k.bias") != std::string::npos);
  }
  SECTION("a bias of a norm") {
    PocketGguf gguf;
    gguf.builder().tensor("blk.0.attn_norm.bias", {32}, cbq::GgufType::f16, some);
    gguf.write(scratch / "m.gguf");
    CHECK(support::message(load_error(scratch / "m.gguf")).find("blk.0.attn_norm.bias") != std::string::npos);
  }
  SECTION("another architecture") {
    support::GgufBuilder gguf;
    gguf.key("general.architecture", GgufKind::text).counted("mamba");
    const auto bytes = gguf.bytes();
    support::write_text(scratch / "m.gguf", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  CHECK(load_error(scratch / "m.gguf").code == Errc::unsupported);
}

TEST_CASE("models that are not there or no models") {
  const support::ScratchFolder scratch;
  CHECK(load_error(scratch / "nothing").code == Errc::io);
  CHECK(load_error(scratch.path()).code == Errc::io);  // no config.json
  support::write_text(scratch / "m.gguf", "GGUX");
  CHECK(load_error(scratch / "m.gguf").code == Errc::bad_file);
  support::write_text(scratch / "m.bin", "x");
  CHECK(load_error(scratch / "m.bin").code == Errc::unsupported);
}

TEST_CASE("tensors that do not fit the configuration are named") {
  const support::ScratchFolder scratch;
  copy_model(scratch);
  SECTION("wrong shape") {
    edit_config(scratch, [](Json& json) { json["intermediate_size"] = 511; });
    const cbq::Error error = load_error(scratch.path());
    CHECK(error.code == Errc::bad_shape);
    const std::string message = support::message(error);
    CAPTURE(message);
    CHECK(message.find("model.layers.0.mlp.gate_proj.weight") != std::string::npos);
    CHECK(message.find("[512, 256]") != std::string::npos);
    CHECK(message.find("[511, 256]") != std::string::npos);
  }
  SECTION("missing layer") {
    edit_config(scratch, [](Json& json) { json["num_hidden_layers"] = 6; });
    const cbq::Error error = load_error(scratch.path());
    CHECK(error.code == Errc::bad_file);
    CHECK(support::message(error).find("model.layers.5.input_layernorm.weight") != std::string::npos);
  }
  SECTION("untied head that is not there") {
    edit_config(scratch, [](Json& json) { json["tie_word_embeddings"] = false; });
    CHECK(support::message(load_error(scratch.path())).find("lm_head") != std::string::npos);
  }
  SECTION("truncated file") {
    std::filesystem::resize_file(scratch / "model.safetensors", 5'000'000);
    CHECK(load_error(scratch.path()).code == Errc::bad_file);
  }
  SECTION("NaN in a weight") {
    const auto checkpoint = unwrap(cbq::Checkpoint::open(scratch.path()));
    const std::size_t from_end = checkpoint.file_bytes();
    const cbq::TensorView* tensor = checkpoint.find("model.layers.2.mlp.up_proj.weight");
    REQUIRE(tensor != nullptr);
    std::string bytes = support::read_text(scratch / "model.safetensors");
    std::size_t data = 0;
    for (const cbq::TensorView& each : checkpoint.tensors()) data += each.bytes.size();
    bytes.at(from_end - data + tensor->offset + 2 * (256 * 3 + 7) + 1) = '\x7e';  // 0x7e?? is a NaN in half
    support::write_text(scratch / "model.safetensors", bytes);
    const cbq::Error error = load_error(scratch.path());
    CHECK(error.code == Errc::not_finite);
    CHECK(support::message(error).find("model.layers.2.mlp.up_proj.weight: row 3, column 7") != std::string::npos);
  }
}

TEST_CASE("a sharded checkpoint is the same model") {
  const support::ScratchFolder scratch;
  copy_model(scratch);
  const auto whole = unwrap(cbq::Checkpoint::open(scratch.path()));
  Json map = Json::object();
  for (const int shard : {0, 1}) {
    const std::string name = "model-0000" + std::to_string(shard + 1) + "-of-00002.safetensors";
    std::vector<cbq::TensorPlan> plan;
    for (const cbq::TensorView& tensor : whole.tensors()) {
      if ((tensor.name.size() % 2 == 0) == (shard == 0))
        plan.push_back({std::string(tensor.name), tensor.dtype, tensor.shape});
    }
    auto writer = unwrap(cbq::SafetensorsWriter::create(scratch / name, plan));
    for (const cbq::TensorPlan& tensor : plan) {
      REQUIRE(writer.write(tensor.name, whole.find(tensor.name)->bytes));
      map[tensor.name] = name;
    }
    REQUIRE(writer.commit());
  }
  support::write_text(scratch / "model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  std::filesystem::remove(scratch / "model.safetensors");
  const std::vector<std::int32_t> tokens = {5, 6, 7};
  const Model sharded = unwrap(Model::load(unwrap(ModelSource::open(scratch.path()))));
  const Model single = unwrap(Model::load(unwrap(ModelSource::open(engine_fixture::pocket_llama()))));
  CHECK(logits_of(sharded, tokens) == logits_of(single, tokens));
}
