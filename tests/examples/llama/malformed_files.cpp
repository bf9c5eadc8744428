// SPDX-License-Identifier: Apache-2.0

// Files of tests/data/malformed that the engine reads: config.json, GGUF's configurations and vocabularies,
// tokenizer.json; and models whose files change while they are read.

#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <string>

#include "examples/llama/engine_fixture.hpp"
#include "model_config.hpp"
#include "model_source.hpp"
#include "support/malformed.hpp"
#include "tokenizer.hpp"
#include "vocabulary_reader.hpp"

using cbq::Status;
using cbq_llama::ModelSource;
using cbq_llama::Tokenizer;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;
using support::message;

namespace {

template <class R>
Status named(const R& result, const std::string& path) {
  return result ? Status() : Status(cbq::in_context(result.error(), path));
}

Status read_config(const std::string& path) {
  return named(cbq_llama::read_config(unwrap(cbq::read_json_file(path))), path);
}

Status read_gguf_model(const std::string& path) {
  return named(cbq_llama::read_config(unwrap(cbq::GgufFile::open(path)).content), path);
}

Status read_vocabulary(const std::string& path) {
  const cbq::GgufFile file = unwrap(cbq::GgufFile::open(path));
  const auto vocabulary = cbq_llama::read_vocabulary(file.content.metadata());
  return vocabulary ? named(Tokenizer::from_gguf(*vocabulary), path) : named(vocabulary, path);
}

Status read_tokenizer(const std::string& path) {
  const auto tokenizer = Tokenizer::from_json(support::read_text(path));
  return tokenizer ? named(tokenizer->encode("a"), path) : named(tokenizer, path);
}

// A copy of pocket-llama that may be changed.
std::string copy_model(const support::ScratchFolder& scratch) {
  const std::string folder = scratch / "model";
  std::filesystem::copy(pocket_llama(), folder);
  return folder;
}

}  // namespace

TEST_CASE(
    "Malformed configs, models, vocabularies and tokenizers are refused with file, key, what was found and wanted") {
  support::check_malformed("config", read_config);
  support::check_malformed("gguf_model", read_gguf_model);
  support::check_malformed("vocabulary", read_vocabulary);
  support::check_malformed("tokenizer", read_tokenizer);
}

TEST_CASE("A vocabulary in JSON with an entry of another type is refused: later tokens would get other ids") {
  const auto refused = [](const char* text) {
    return message(cbq_llama::read_vocabulary(unwrap(cbq::parse_json(text))));
  };
  CHECK(refused(R"({"tokens": ["a", 1, "b"]})") ==
        "tokens[1]: a member of the vocabulary has the wrong type (got number, wanted text)");
  CHECK(refused(R"({"token_type": [1, 1e30]})").starts_with("token_type[1]: "));
  CHECK(refused(R"({"token_type": [-1]})") == "token_type[0]: a token has an unknown type (got -1, wanted 0 to 6)");
  CHECK(refused(R"({"bos_token_id": 8589934592})").starts_with("bos_token_id: a token id is out of range"));
  CHECK(refused(R"({"tokens": {}})").starts_with("tokens: "));
  CHECK(refused("[]").starts_with("byte 0: the vocabulary is no object"));
}

TEST_CASE("A model whose file changes or shrinks after it was opened is an error that names the file") {
  const support::ScratchFolder scratch;
  const std::string folder = copy_model(scratch);
  const std::string file = folder + "/model.safetensors";
  const ModelSource source = unwrap(ModelSource::open(folder));
  CHECK(source.check_unchanged());
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 4096);
  const Status changed = source.check_unchanged();
  REQUIRE_FALSE(changed);
  CHECK(changed.error().code == cbq::Errc::bad_file);
  CHECK(message(changed.error()).find("model.safetensors: the file changed its size") != std::string::npos);
}

TEST_CASE("A model that was read without mapping is whole whatever becomes of its file") {
  const support::ScratchFolder scratch;
  const std::string folder = copy_model(scratch);
  const ModelSource source = unwrap(ModelSource::open(folder, {}, cbq::FileMode::read));
  std::filesystem::resize_file(folder + "/model.safetensors", 16);
  const ModelSource other = unwrap(ModelSource::open(pocket_llama()));
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const cbq::TensorShape shape = unwrap(source.tensor(name)).shape;
  const auto copied = unwrap(source.read_matrix(name, shape.sizes[0], shape.sizes[1]));
  const auto mapped = unwrap(other.read_matrix(name, shape.sizes[0], shape.sizes[1]));
  REQUIRE(copied.memory.size() == mapped.memory.size());
  CHECK(std::equal(copied.memory.data(), copied.memory.data() + copied.memory.size(), mapped.memory.data()));
}

TEST_CASE("Every command takes --no-mmap and gives the same result") {
  const auto output = [](std::vector<std::string> arguments) {
    const engine_fixture::ToolRun run = run_tool(arguments);
    INFO(run.err);
    CHECK(run.code == 0);
    return run.out;
  };
  const std::vector<std::string> generate = {"generate", pocket_llama(), "--prompt", "The", "-n",
                                             "4",        "--threads",    "1"};
  std::vector<std::string> copied = generate;
  copied.emplace_back("--no-mmap");
  CHECK(output(generate) == output(copied));
  for (const char* command :
       {"info", "quantize", "generate", "sample", "perplexity", "passkey", "bench", "compare", "choose", "ablate"}) {
    CAPTURE(command);
    CHECK(output({command, "--help"}).find("--no-mmap") != std::string::npos);
  }
}
