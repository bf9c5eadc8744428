// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/sharded_writer.hpp>

#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include <cbq/io/checkpoint.hpp>

#include "support/files.hpp"

using cbq::Dtype;
using cbq::ShardedWriter;
using support::message;

namespace {

const std::vector<cbq::TensorPlan> plan = {{"a", Dtype::f32, {.rank = 1, .sizes = {10}}},
                                           {"b", Dtype::u8, {.rank = 1, .sizes = {24}}},
                                           {"large", Dtype::f32, {.rank = 1, .sizes = {100}}},
                                           {"c", Dtype::i64, {.rank = 1, .sizes = {2}}}};

cbq::Status write_all(ShardedWriter& writer) {
  for (const cbq::TensorPlan& tensor : plan) {
    std::vector<std::byte> bytes(*cbq::byte_count(tensor.shape, tensor.dtype));
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i + tensor.name.size());
    const auto half = std::span<const std::byte>(bytes).first(bytes.size() / 2);
    if (const cbq::Status ok = writer.write(tensor.name, half); !ok) return ok;
    if (const cbq::Status ok = writer.write(tensor.name, std::span<const std::byte>(bytes).subspan(half.size())); !ok)
      return ok;
  }
  return writer.commit();
}

}  // namespace

TEST_CASE("tensors fill shards in order, and an index says where each is") {
  const support::ScratchFolder folder;
  auto writer = ShardedWriter::create(folder.path(), plan, 64);
  REQUIRE(writer);
  CHECK(writer->shards() == 3);
  REQUIRE(writer->planned("c") != nullptr);
  CHECK(writer->planned("c")->dtype == Dtype::i64);
  CHECK(writer->planned("d") == nullptr);
  REQUIRE(write_all(*writer));
  CHECK(folder.entries() == 4);
  const auto index = cbq::read_json_file(folder / "model.safetensors.index.json");
  REQUIRE(index);
  CHECK(index->at("metadata").at("total_size") == 480);
  CHECK(index->at("weight_map") == cbq::Json{{"a", "model-00001-of-00003.safetensors"},
                                             {"b", "model-00001-of-00003.safetensors"},
                                             {"large", "model-00002-of-00003.safetensors"},
                                             {"c", "model-00003-of-00003.safetensors"}});
  const auto read = cbq::Checkpoint::open(folder.path());
  REQUIRE(message(read) == "success");
  CHECK(read->file_bytes() == writer->file_bytes());
  CHECK(read->find("large")->bytes[7] == static_cast<std::byte>(12));
  CHECK(read->find("a")->bytes[39] == static_cast<std::byte>(40));
  read->release(*read->find("large"));  // the bytes come back from the file
  CHECK(read->find("large")->bytes[7] == static_cast<std::byte>(12));
}

TEST_CASE("without a limit there is one file and no index") {
  const support::ScratchFolder folder;
  for (const std::size_t limit : {std::size_t{0}, std::size_t{480}}) {
    auto writer = ShardedWriter::create(folder.path(), plan, limit);
    REQUIRE(writer);
    REQUIRE(write_all(*writer));
    CHECK(folder.entries() == 1);
    CHECK(std::filesystem::exists(folder / "model.safetensors"));
  }
}

TEST_CASE("nothing appears before everything is complete") {
  const support::ScratchFolder folder;
  {
    auto writer = ShardedWriter::create(folder.path(), plan, 64);
    REQUIRE(writer);
    CHECK_FALSE(writer->write("d", std::span<const std::byte>()));
    CHECK_FALSE(writer->commit());
  }
  CHECK(folder.entries() == 0);
  const std::vector<cbq::TensorPlan> twice = {plan[0], plan[2], plan[0]};
  CHECK(message(ShardedWriter::create(folder.path(), twice, 64)) == "a: a tensor name is taken");
  CHECK_FALSE(ShardedWriter::create(folder / "nowhere", plan, 64));
  std::vector<cbq::TensorPlan> many;
  for (int i = 0; i < 4097; ++i) many.push_back({std::to_string(i), Dtype::u8, {.rank = 1, .sizes = {2}}});
  CHECK_FALSE(ShardedWriter::create(folder.path(), many, 1));
  CHECK(folder.entries() == 0);
}
