// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/safetensors_writer.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include <cbq/io/safetensors.hpp>

#include "support/files.hpp"

using cbq::Dtype;
using cbq::Errc;
using cbq::SafetensorsWriter;
using cbq::TensorPlan;
using support::message;

namespace {

const std::vector<TensorPlan> plan = {
    {"scale", Dtype::f16, {.rank = 2, .sizes = {3, 1}}}, {"packed", Dtype::i32, {.rank = 2, .sizes = {3, 2}}},
    {"odd", Dtype::u8, {.rank = 1, .sizes = {5}}},       {"empty", Dtype::f32, {.rank = 2, .sizes = {0, 4}}},
    {"shape", Dtype::i64, {.rank = 1, .sizes = {2}}},    {"\"quoted\"\n", Dtype::u8, {}}};

std::vector<std::byte> payload(std::size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + seed);
  return bytes;
}

}  // namespace

TEST_CASE("what is written in any order is read back, aligned") {
  const support::ScratchFolder folder;
  auto writer = SafetensorsWriter::create(folder / "m.safetensors", plan, {{"by", "cbq"}});
  REQUIRE(writer);
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const auto bytes = payload(*cbq::byte_count(plan[i].shape, plan[i].dtype), static_cast<unsigned>(i));
    const std::size_t half = bytes.size() / 2;  // in two pieces
    REQUIRE(writer->write(plan[i].name, std::span(bytes).first(half)));
    REQUIRE(writer->write(plan[i].name, std::span(bytes).subspan(half)));
  }
  const std::size_t size = writer->file_size();
  REQUIRE(writer->commit());

  const auto file = cbq::FileBytes::open(folder / "m.safetensors");
  REQUIRE(file);
  CHECK(file->bytes().size() == size);
  const auto header = cbq::load_unaligned<std::uint64_t>(file->bytes().data());
  CHECK((header + 8) % 64 == 0);
  const auto read = cbq::Safetensors::parse(file->bytes());
  REQUIRE(read);
  CHECK(read->tensors().size() == plan.size());
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const cbq::TensorView* tensor = read->find(plan[i].name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor->dtype == plan[i].dtype);
    CHECK(cbq::same_shape(tensor->shape, plan[i].shape));
    const auto wanted = payload(tensor->bytes.size(), static_cast<unsigned>(i));
    CHECK(std::equal(wanted.begin(), wanted.end(), tensor->bytes.begin(), tensor->bytes.end()));
    CHECK(tensor->offset % (cbq::dtype_bits(tensor->dtype) / 8) == 0);
  }
  REQUIRE(read->metadata().size() == 2);
  CHECK(read->metadata()[0] == std::pair<std::string, std::string>("by", "cbq"));
  CHECK(read->metadata()[1] == std::pair<std::string, std::string>("format", "pt"));
}

TEST_CASE("a tensor that is missing, unplanned or too long is an error and leaves no file") {
  const support::ScratchFolder folder;
  {
    auto writer = SafetensorsWriter::create(folder / "m.safetensors", plan);
    REQUIRE(writer);
    CHECK_FALSE(writer->write("other", payload(1, 0)));
    CHECK_FALSE(writer->write("odd", payload(6, 0)));
    CHECK(writer->write("odd", payload(4, 0)));
    CHECK_FALSE(writer->write("odd", payload(2, 0)));
    CHECK_THAT(message(writer->commit()), Catch::Matchers::ContainsSubstring("not complete"));
    CHECK(writer->planned("packed")->dtype == Dtype::i32);
    CHECK(writer->planned("other") == nullptr);
  }
  CHECK(folder.entries() == 0);
}

TEST_CASE("plans that make no file are refused") {
  const support::ScratchFolder folder;
  const auto refused = [&](const std::vector<TensorPlan>& tensors) {
    return !SafetensorsWriter::create(folder / "m.safetensors", tensors);
  };
  CHECK(refused({{"a", Dtype::u8, {}}, {"b", Dtype::f32, {}}, {"a", Dtype::f32, {}}}));
  CHECK(refused({{"__metadata__", Dtype::u8, {}}}));
  CHECK(refused({{"a", Dtype::f32, {.rank = 2, .sizes = {std::size_t{1} << 40, std::size_t{1} << 40}}}}));
  CHECK(refused({{"a", Dtype::u8, {.rank = 1, .sizes = {std::size_t{1} << 60}}},
                 {"b", Dtype::u8, {.rank = 1, .sizes = {~std::size_t{0} / 8}}},
                 {"c", Dtype::f4, {.rank = 1, .sizes = {1}}}}));
  CHECK_FALSE(SafetensorsWriter::create(folder / "absent/m.safetensors", plan));
  CHECK_FALSE(refused({}));
  CHECK(folder.entries() == 0);
}
