// SPDX-License-Identifier: Apache-2.0
#include "gguf_export.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <cbq/io/compressed_tensors.hpp>

#include "examples/llama/engine_fixture.hpp"
#include "examples/llama/generated_model.hpp"
#include "gguf_import.hpp"
#include "model.hpp"

using namespace cbq_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

namespace {

/// The embedded model quantized by the tool.
void quantize(const std::string& scheme, const std::string& output, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"quantize", engine_fixture::pocket_llama(), "-o", output, "--scheme", scheme};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const auto run = run_tool(arguments);
  INFO(run.err);
  REQUIRE(run.code == 0);
}

void tool(const std::vector<std::string>& arguments) {
  const auto run = run_tool(arguments);
  INFO(run.err);
  REQUIRE(run.code == 0);
}

std::string failure(const std::vector<std::string>& arguments) {
  const auto run = run_tool(arguments);
  CHECK(run.code == 1);
  return run.err;
}

bool says(const std::string& text, const char* part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

/// The tensors of a folder by name: type, shape and bytes.
std::map<std::string, std::string> tensors_of(const std::string& folder) {
  const cbq::Checkpoint files = unwrap(cbq::Checkpoint::open(folder));
  std::map<std::string, std::string> tensors;
  for (const cbq::TensorView& tensor : files.tensors()) {
    const auto* bytes = reinterpret_cast<const char*>(tensor.bytes.data());
    // Norms are float32 in GGUF and in the folder that comes back.
    if (tensor.name.find("norm") != std::string_view::npos) continue;
    tensors[std::string(tensor.name)] = std::string(cbq::dtype_name(tensor.dtype)) +
                                        cbq::shape_text(tensor.shape).c_str() + std::string(bytes, tensor.bytes.size());
  }
  return tensors;
}

double perplexity(const std::string& model) {
  const auto run = run_tool({"perplexity", model, "--text", engine_fixture::evaluation_text(), "--context", "64",
                             "--windows", "2", "--json", "-"});
  INFO(run.err);
  REQUIRE(run.code == 0);
  return unwrap(cbq::parse_json(run.out)).at("perplexity").get<double>();
}

void check_same_tokens(const std::string& model, const std::string& other) {
  const Tokenizer a = unwrap(unwrap(ModelSource::open(model)).tokenizer());
  const Tokenizer b = unwrap(unwrap(ModelSource::open(other)).tokenizer());
  const std::string text =
      support::read_text(engine_fixture::evaluation_text()) + "  caf\xC3\xA9 \xE2\x82\xAC 1234\t\n\xFF";
  CHECK(unwrap(a.encode(text)) == unwrap(b.encode(text)));
}

/// A small model of heads of 16 elements whose rotary positions are scaled as Llama 3.1's.
void write_scaled_model(const std::string& folder, double original) {
  engine_fixture::write_model(folder, {.layers = 2});
  cbq::Json json = unwrap(cbq::read_json_file(folder + "/config.json"));
  json["rope_parameters"] = {{"rope_theta", 10000.0},   {"rope_type", "llama3"},
                             {"factor", 8.0},           {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0}, {"original_max_position_embeddings", original}};
  support::write_text(folder + "/config.json", cbq::json_text(json));
}

/// Logits of the last of some tokens.
std::vector<float> logits_of(const std::string& path) {
  const Model model = unwrap(Model::load(unwrap(ModelSource::open(path))));
  const std::vector<std::int32_t> tokens = {5, 900, 17, 33, 33, 512, 8, 1, 77, 640, 3, 3, 250, 9, 61};
  Session session = unwrap(Session::create(model, tokens.size(), {}));
  const auto logits = unwrap(session.next_logits(tokens));
  return {logits.begin(), logits.end()};
}

/// The rotary factors of a GGUF file.
std::vector<float> factors_of(const std::string& path) {
  const cbq::GgufFile file = unwrap(cbq::GgufFile::open(path));
  const cbq::GgufTensor* tensor = file.content.find("rope_freqs.weight");
  REQUIRE(tensor != nullptr);
  CHECK(tensor->type == cbq::GgufType::f32);
  CHECK(tensor->shape.rank == 1);
  std::vector<float> factors(tensor->shape.sizes[0]);
  REQUIRE(cbq::copy_to_float(*tensor, std::span<float>(factors)));
  return factors;
}

}  // namespace

TEST_CASE("a quantized model comes back from a GGUF file bit for bit") {
  const support::ScratchFolder folder;
  quantize("w4a8_g128", folder / "model");
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "model.gguf"});
  tool({"import", folder / "model.gguf", "-o", folder / "back"});
  CHECK(tensors_of(folder / "back") == tensors_of(folder / "model"));
  const cbq::Json before = unwrap(cbq::read_json_file(folder / "model/config.json"));
  const cbq::Json after = unwrap(cbq::read_json_file(folder / "back/config.json"));
  CHECK(after.at("cbq") == before.at("cbq"));
  CHECK(after.at("quantization_config") == before.at("quantization_config"));
  CHECK(perplexity(folder / "back") == perplexity(folder / "model"));
  check_same_tokens(folder / "model", folder / "model.gguf");
  check_same_tokens(folder / "model", folder / "back");
}

TEST_CASE("the blocks of a file say exactly what the codes say") {
  const support::ScratchFolder folder;
  for (const char* scheme : {"w2a8_g64_asym", "w4a16"}) {
    quantize(scheme, folder / scheme, {"--head-bits", "4"});
    const std::string file = folder / (std::string(scheme) + ".gguf");
    tool({"export", folder / scheme, "--format", "gguf", "-o", file});
    const ModelSource codes = unwrap(ModelSource::open(folder / scheme));
    const ModelSource blocks = unwrap(ModelSource::open(file));
    const auto packed = cbq::packed_modules(*codes.checkpoint());
    const cbq::QuantizationRecord record = unwrap(cbq::parse_quantization(codes.json(), packed));
    CHECK(record.modules.size() == 36);
    std::size_t differing = 0;
    for (const cbq::ModuleScheme& entry : record.modules) {
      const auto stored = unwrap(cbq::StoredMatrix::read(*codes.checkpoint(), entry.module, entry.scheme.weight));
      const std::size_t rows = stored.view().codes.rows;
      const std::size_t columns = stored.view().codes.columns;
      std::vector<float> wanted(rows * columns);
      REQUIRE(cbq::dequantize(stored.view(), stored.grid(), cbq::matrix_view(wanted.data(), rows, columns)));
      const FloatMatrix got = unwrap(blocks.read_matrix(entry.module + ".weight", rows, columns));
      for (std::size_t i = 0; i < wanted.size(); ++i) differing += wanted[i] != got.memory[i];
    }
    CHECK(differing == 0);
  }
  // Affine codes of 2 bits lost their zero points to Q4_0: codes may have moved with them, what they say did not.
  tool({"import", folder / "w2a8_g64_asym.gguf", "-o", folder / "back"});
  CHECK(perplexity(folder / "back") == perplexity(folder / "w2a8_g64_asym"));
}

TEST_CASE("a file without cbq's description becomes groups of 32") {
  const support::ScratchFolder folder;
  quantize("w4a8_g128", folder / "model");
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "model.gguf"});
  std::string bytes = support::read_text(folder / "model.gguf");
  const std::size_t key = bytes.find(gguf_quantization_key);
  REQUIRE(key != std::string::npos);
  bytes.replace(key, 3, "xyz");
  support::write_text(folder / "other.gguf", bytes);
  tool({"import", folder / "other.gguf", "-o", folder / "back"});
  const cbq::Json own = unwrap(cbq::read_json_file(folder / "back/config.json")).at("cbq");
  CHECK(own.at("method") == "gguf");
  CHECK(own.at("head_bits") == 8);
  CHECK(own.at("schemes").at("model.layers.0.self_attn.q_proj") == "w4a16_g32");
  CHECK(own.at("schemes").at("model.embed_tokens") == "w8a16_g32");
  CHECK(std::abs(std::log(perplexity(folder / "back") / perplexity(folder / "model"))) < 0.02);  // activations differ
}

TEST_CASE("a model in floating point keeps its numbers") {
  const support::ScratchFolder folder;
  const std::string model = engine_fixture::pocket_llama();
  tool({"export", model, "--format", "gguf", "-o", folder / "model.gguf"});
  const cbq::GgufFile file = unwrap(cbq::GgufFile::open(folder / "model.gguf"));
  CHECK(unwrap(file.content.metadata().unsigned_value("general.file_type")) == 1);
  CHECK(file.content.find("output.weight") == nullptr);  // tied
  CHECK(file.content.find("blk.4.attn_norm.weight")->type == cbq::GgufType::f32);
  CHECK(file.content.find("blk.4.ffn_down.weight")->type == cbq::GgufType::f16);
  tool({"import", folder / "model.gguf", "-o", folder / "back"});
  CHECK(tensors_of(folder / "back") == tensors_of(model));
  CHECK(perplexity(folder / "back") == perplexity(model));
  check_same_tokens(model, folder / "back");
}

TEST_CASE("rotary positions scaled as Llama 3's are factors in a file, and their rule again in a folder") {
  const support::ScratchFolder folder;
  write_scaled_model(folder / "model", 8192);
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "model.gguf"});
  // Wavelengths 2 pi 10000^(i / 8): up to 628 below 2048, 1987 too; 6283 between; 19869 above 8192.
  const std::vector<float> factors = factors_of(folder / "model.gguf");
  REQUIRE(factors.size() == 8);
  const double wavelength = 2000 * std::acos(-1.0);
  const double smooth = (8192 / wavelength - 1) / 3;
  for (std::size_t i = 0; i < 6; ++i) CHECK(factors[i] == 1);
  CHECK(std::abs(static_cast<double>(factors[6]) - 1 / ((1 - smooth) / 8 + smooth)) < 1e-6);
  CHECK(factors[7] == 8);
  const cbq::GgufFile file = unwrap(cbq::GgufFile::open(folder / "model.gguf"));
  CHECK(file.content.metadata().value("llama.rope.scaling.type") == nullptr);

  tool({"import", folder / "model.gguf", "-o", folder / "back"});
  const cbq::Json before = unwrap(cbq::read_json_file(folder / "model/config.json"));
  const cbq::Json after = unwrap(cbq::read_json_file(folder / "back/config.json"));
  CHECK(after.at("rope_parameters") == before.at("rope_parameters"));
  const std::vector<float> wanted = logits_of(folder / "model");
  CHECK(logits_of(folder / "model.gguf") == wanted);
  CHECK(logits_of(folder / "back") == wanted);
  tool({"export", folder / "back", "--format", "gguf", "-o", folder / "again.gguf"});
  CHECK(factors_of(folder / "again.gguf") == factors);
}

TEST_CASE("factors of another rule come back as they are") {
  const support::ScratchFolder folder;
  write_scaled_model(folder / "model", 40);
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "model.gguf"});
  tool({"import", folder / "model.gguf", "-o", folder / "back"});
  const cbq::Json rotary = unwrap(cbq::read_json_file(folder / "back/config.json")).at("rope_parameters");
  CHECK(rotary.at("rope_type") == "longrope");
  const std::vector<float> factors = factors_of(folder / "model.gguf");
  CHECK(rotary.at("long_factor").get<std::vector<float>>() == factors);
  const std::vector<float> wanted = logits_of(folder / "model");
  const std::vector<float> blocks = logits_of(folder / "model.gguf");
  CHECK(logits_of(folder / "back") == blocks);
  for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(std::abs(blocks[i] - wanted[i]) < 1e-4f);  // factors in float
  tool({"export", folder / "back", "--format", "gguf", "-o", folder / "again.gguf"});
  CHECK(factors_of(folder / "again.gguf") == factors);
  // The quantized model keeps them, too.
  tool({"quantize", folder / "model.gguf", "-o", folder / "quantized", "--scheme", "w8a16_g32", "--method", "rtn"});
  CHECK(unwrap(cbq::read_json_file(folder / "quantized/config.json")).at("rope_parameters") == rotary);
}

TEST_CASE("biases travel with their projections") {
  const support::ScratchFolder folder;
  engine_fixture::write_model(folder / "model", {.layers = 2, .attention_bias = true, .mlp_bias = true});
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "model.gguf"});
  const cbq::GgufFile file = unwrap(cbq::GgufFile::open(folder / "model.gguf"));
  const ModelSource model = unwrap(ModelSource::open(folder / "model"));
  const auto values = [&](const char* name, std::size_t size) {
    const cbq::GgufTensor* tensor = file.content.find(name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor->type == cbq::GgufType::f32);
    std::vector<float> numbers(size);
    REQUIRE(cbq::copy_to_float(*tensor, std::span<float>(numbers)));
    return numbers;
  };
  // Queries in pairs (i, i + 8) of the two halves of a head of 16; values as they are.
  std::vector<float> queries(64), pairs(64), keys(32);
  REQUIRE(model.read("model.layers.1.self_attn.q_proj.bias", std::span<float>(queries)));
  for (std::size_t head = 0; head < 64; head += 16) {
    for (std::size_t i = 0; i < 8; ++i) {
      pairs[head + 2 * i] = queries[head + i];
      pairs[head + 2 * i + 1] = queries[head + 8 + i];
    }
  }
  CHECK(values("blk.1.attn_q.bias", 64) == pairs);
  REQUIRE(model.read("model.layers.1.self_attn.v_proj.bias", std::span<float>(keys)));
  CHECK(values("blk.1.attn_v.bias", 32) == keys);
  CHECK(file.content.find("blk.0.ffn_up.bias")->shape.sizes[0] == 96);

  tool({"import", folder / "model.gguf", "-o", folder / "back"});
  const cbq::Json config = unwrap(cbq::read_json_file(folder / "back/config.json"));
  CHECK(config.at("attention_bias") == true);
  CHECK(config.at("mlp_bias") == true);
  CHECK(tensors_of(folder / "back") == tensors_of(folder / "model"));
  const std::vector<float> wanted = logits_of(folder / "model");
  CHECK(logits_of(folder / "model.gguf") == wanted);
  CHECK(logits_of(folder / "back") == wanted);
  CHECK(unwrap(ModelSource::open(folder / "model.gguf"))
            .read("model.layers.1.self_attn.q_proj.bias", std::span<float>(queries).first(63))
            .error()
            .code == cbq::Errc::bad_shape);
}

TEST_CASE("biases of attention alone are the attention's") {
  const support::ScratchFolder folder;
  engine_fixture::write_model(folder / "model", {.layers = 1, .attention_bias = true});
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "model.gguf"});
  const ModelConfig config = unwrap(ModelSource::open(folder / "model.gguf")).config();
  CHECK(config.attention_bias);
  CHECK_FALSE(config.mlp_bias);
  tool({"quantize", folder / "model.gguf", "-o", folder / "one", "--scheme", "w8a16_g32", "--method", "rtn"});
  tool({"quantize", folder / "model", "-o", folder / "other", "--scheme", "w8a16_g32", "--method", "rtn"});
  CHECK(logits_of(folder / "one") == logits_of(folder / "other"));
  // Quantized, to a file and back.
  tool({"export", folder / "one", "--format", "gguf", "-o", folder / "one.gguf"});
  tool({"import", folder / "one.gguf", "-o", folder / "back"});
  CHECK(logits_of(folder / "back") == logits_of(folder / "one"));
}

TEST_CASE("what GGUF or cbq cannot say is refused") {
  const support::ScratchFolder folder;
  const std::string model = engine_fixture::pocket_llama();
  CHECK(says(failure({"export", model, "--format", "gguf", "-o", folder / "out"}), "ends in .gguf"));
  CHECK(says(failure({"export", model, "--format", "gguf", "-o", folder / "out.gguf", "--shard-size", "1M"}),
             "one file"));
  quantize("w4a4", folder / "rotated");
  CHECK(says(failure({"export", folder / "rotated", "--format", "gguf", "-o", folder / "out.gguf"}),
             "model.layers.0.mlp.down_proj: GGUF cannot say that a layer's input is rotated"));
  tool({"export", model, "--format", "gguf", "-o", folder / "model.gguf"});
  CHECK(says(failure({"export", folder / "model.gguf", "--format", "gguf", "-o", folder / "out.gguf"}), "already"));
  CHECK_FALSE(std::filesystem::exists(folder / "out.gguf"));
  // The file of another program, with a layer in blocks that have no codes of cbq's kind but the same size.
  quantize("w4a8_g128", folder / "model");
  tool({"export", folder / "model", "--format", "gguf", "-o", folder / "codes.gguf"});
  std::string bytes = support::read_text(folder / "codes.gguf");
  const std::string name = "blk.4.ffn_down.weight";
  const std::size_t info = bytes.find(name);
  REQUIRE(info != std::string::npos);
  bytes[info + name.size() + 4 + 16] = static_cast<char>(cbq::GgufType::iq4_nl);  // after rank and two sizes
  bytes.replace(bytes.find(gguf_quantization_key), 3, "xyz");
  support::write_text(folder / "bad.gguf", bytes);
  CHECK(says(failure({"import", folder / "bad.gguf", "-o", folder / "out"}), "blk.4.ffn_down.weight: blocks of this"));
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
}
