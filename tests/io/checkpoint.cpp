// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/checkpoint.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include <cbq/io/safetensors_writer.hpp>

#include "support/files.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Checkpoint;
using cbq::FileMode;
using cbq::Json;
using support::message;

namespace {

// A file of F32 vectors of two, each filled with `value`.
void write_shard(const std::string& path, const std::vector<std::string>& names, float value) {
  std::vector<cbq::TensorPlan> plan;
  for (const std::string& name : names) plan.push_back({name, cbq::Dtype::f32, {.rank = 1, .sizes = {2}}});
  auto writer = cbq::SafetensorsWriter::create(path, plan);
  const float values[] = {value, value};
  for (const std::string& name : names) REQUIRE(writer->write(name, std::span<const float>(values)));
  REQUIRE(writer->commit());
}

void write_index(const std::string& folder, const Json& map) {
  support::write_text(folder + "/model.safetensors.index.json",
                      cbq::json_text({{"metadata", {{"total_size", 1}}}, {"weight_map", map}}));
}

}  // namespace

TEST_CASE("shards are one checkpoint") {
  const support::ScratchFolder folder;
  write_shard(folder / "model-00001-of-00002.safetensors", {"a", "d"}, 1.0f);
  write_shard(folder / "model-00002-of-00002.safetensors", {"b", "c"}, 2.0f);
  write_index(folder.path(), {{"a", "model-00001-of-00002.safetensors"},
                              {"b", "model-00002-of-00002.safetensors"},
                              {"c", "model-00002-of-00002.safetensors"},
                              {"d", "model-00001-of-00002.safetensors"}});
  for (const FileMode mode : {FileMode::map, FileMode::read}) {
    auto opened = Checkpoint::open(folder.path(), mode);
    REQUIRE(opened);
    const Checkpoint checkpoint = std::move(*opened);
    std::string names;
    for (const cbq::TensorView& tensor : checkpoint.tensors()) names += tensor.name;
    CHECK(names == "abcd");
    float values[2] = {};
    REQUIRE(cbq::copy_to_float(*checkpoint.tensor("d"), std::span<float>(values)));
    CHECK(values[1] == 1.0f);
    REQUIRE(cbq::copy_to_float(*checkpoint.tensor("c"), std::span<float>(values)));
    CHECK(values[1] == 2.0f);
    CHECK(checkpoint.find("e") == nullptr);
    CHECK_FALSE(checkpoint.tensor("e"));
  }
  CHECK(Checkpoint::open(folder / "model.safetensors.index.json"));
  CHECK(Checkpoint::open(folder / "model-00001-of-00002.safetensors")->tensors().size() == 2);
}

TEST_CASE("index and shards that disagree are refused") {
  const support::ScratchFolder folder;
  write_shard(folder / "1.safetensors", {"a", "b"}, 1.0f);
  write_shard(folder / "2.safetensors", {"b", "c"}, 2.0f);
  const auto outcome = [&](const Json& map) {
    write_index(folder.path(), map);
    return message(Checkpoint::open(folder.path()));
  };
  CHECK(outcome({{"a", "1.safetensors"}, {"b", "1.safetensors"}}) == "success");
  CHECK_THAT(outcome({{"a", "1.safetensors"}, {"b", "1.safetensors"}, {"c", "2.safetensors"}}),
             ContainsSubstring("elsewhere"));
  CHECK_THAT(outcome({{"a", "1.safetensors"}}), ContainsSubstring("b: "));
  CHECK_THAT(outcome({{"a", "1.safetensors"}, {"b", "1.safetensors"}, {"x", "1.safetensors"}}),
             ContainsSubstring("lacks a tensor"));
  CHECK_THAT(outcome({{"a", "3.safetensors"}}), ContainsSubstring("No such file"));
  CHECK_THAT(outcome({{"a", 3}}), ContainsSubstring("wrong type"));
  CHECK_THAT(outcome(Json::array()), ContainsSubstring("weight_map"));
  CHECK(outcome(Json::object()) == "success");
}

TEST_CASE("an index cannot reach out of its folder") {
  const support::ScratchFolder folder;
  std::filesystem::create_directory(folder / "inner");
  write_shard(folder / "1.safetensors", {"a"}, 1.0f);
  const std::string names[] = {"../1.safetensors",
                               folder / "1.safetensors",
                               "",
                               "..",
                               std::string("1.safetensors\0", 14),
                               std::string("../1.safetensors\0.safetensors", 29),
                               "1.bin"};
  for (const std::string& name : names) {
    write_index(folder / "inner", {{"a", name}});
    CAPTURE(name);
    CHECK_THAT(message(Checkpoint::open(folder / "inner")), ContainsSubstring("no shard of this folder"));
  }
}

TEST_CASE("errors name the file") {
  const support::ScratchFolder folder;
  CHECK_THAT(message(Checkpoint::open(folder.path())), ContainsSubstring("holds no checkpoint"));
  CHECK_THAT(message(Checkpoint::open(folder / "absent")), ContainsSubstring("No such file"));
  support::write_text(folder / "model.safetensors", "short");
  CHECK_THAT(message(Checkpoint::open(folder.path())), ContainsSubstring("model.safetensors: byte 0"));
}

TEST_CASE("the model in the tree is read") {
  const auto checkpoint = Checkpoint::open(CBQ_SOURCE_DIR "/examples/llama/models/pocket-llama");
  REQUIRE(checkpoint);
  const auto config = cbq::read_json_file(CBQ_SOURCE_DIR "/examples/llama/models/pocket-llama/config.json");
  REQUIRE(config);
  const std::size_t vocabulary = *cbq::json_unsigned(*config, "vocab_size");
  const std::size_t width = *cbq::json_unsigned(*config, "hidden_size");
  std::vector<float> embedding(vocabulary * width);
  REQUIRE(cbq::copy_to_float(*checkpoint->tensor("model.embed_tokens.weight"),
                             cbq::matrix_view(embedding.data(), vocabulary, width)));
  CHECK(checkpoint->tensors().size() == 2 + 9 * *cbq::json_unsigned(*config, "num_hidden_layers"));
  std::size_t bytes = 0;
  for (const cbq::TensorView& tensor : checkpoint->tensors()) bytes += tensor.bytes.size();
  CHECK(bytes < checkpoint->file_bytes());
}
