// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gguf_writer.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <cbq/io/gguf.hpp>

#include "support/files.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Errc;
using cbq::GgufKeys;
using cbq::GgufType;
using cbq::GgufWriter;
using support::message;

namespace {

std::vector<std::byte> payload(std::size_t size, unsigned seed) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + seed);
  return bytes;
}

const std::vector<cbq::GgufTensorPlan> plan = {{"token_embd.weight", GgufType::q8_0, {.rank = 2, .sizes = {3, 64}}},
                                               {"blk.0.attn_norm.weight", GgufType::f32, {.rank = 1, .sizes = {5}}},
                                               {"blk.0.attn_q.weight", GgufType::q4_0, {.rank = 2, .sizes = {1, 32}}},
                                               {"empty", GgufType::f16, {.rank = 2, .sizes = {0, 4}}},
                                               {"four", GgufType::bf16, {.rank = 4, .sizes = {2, 1, 3, 1}}},
                                               {"one", GgufType::i8, {}}};

std::string outcome(const GgufKeys& keys, const std::vector<cbq::GgufTensorPlan>& tensors, std::size_t alignment = 32) {
  const support::ScratchFolder folder;
  auto writer = GgufWriter::create(folder / "m.gguf", keys, tensors, alignment);
  if (!writer) {
    CHECK(folder.entries() == 0);
    return message(writer.error());
  }
  return "success";
}

std::string outcome_of_tensor(const std::string& name, GgufType type, const cbq::TensorShape& shape) {
  return outcome(GgufKeys(), {{name, type, shape}});
}

}  // namespace

TEST_CASE("a file byte for byte") {
  const support::ScratchFolder folder;
  GgufKeys keys;
  keys.add("k", std::uint32_t{7});
  auto writer = GgufWriter::create(
      folder / "m.gguf", keys, std::vector<cbq::GgufTensorPlan>{{"w", GgufType::f32, {.rank = 2, .sizes = {1, 2}}}});
  REQUIRE(writer);
  const std::array<float, 2> values = {1.0f, -2.0f};
  REQUIRE(writer->write("w", std::span<const float>(values)));
  REQUIRE(writer->commit());
  support::ByteBuilder wanted;
  wanted.text("GGUF").add(std::uint32_t{3}).add(std::uint64_t{1}).add(std::uint64_t{1});
  wanted.counted("k").add(std::uint32_t{4}).add(std::uint32_t{7});
  wanted.counted("w").add(std::uint32_t{2}).add(std::uint64_t{2}).add(std::uint64_t{1});  // innermost size first
  wanted.add(std::uint32_t{0}).add(std::uint64_t{0}).align(32);
  wanted.add(1.0f).add(-2.0f).align(32);
  const std::vector<std::byte>& bytes = wanted.bytes();
  CHECK(support::read_text(folder / "m.gguf") ==
        std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

TEST_CASE("tensors written in any order and in pieces are read back") {
  const std::size_t alignment = GENERATE(8u, 32u, 4096u);
  const support::ScratchFolder folder;
  GgufKeys keys;
  keys.add("general.architecture", "llama");
  auto writer = GgufWriter::create(folder / "m.gguf", keys, plan, alignment);
  INFO(message(writer));
  REQUIRE(writer);
  for (std::size_t i = plan.size(); i-- > 0;) {
    const auto bytes = payload(*cbq::gguf_bytes(plan[i].type, plan[i].shape), static_cast<unsigned>(i));
    const std::size_t half = bytes.size() / 2;
    REQUIRE(writer->write(plan[i].name, std::span(bytes).first(half)));
    REQUIRE(writer->write(plan[i].name, std::span(bytes).subspan(half)));
  }
  REQUIRE(writer->planned("four") != nullptr);
  CHECK(writer->planned("four")->type == GgufType::bf16);
  CHECK(writer->planned("fou") == nullptr);
  const std::size_t size = writer->file_size();
  REQUIRE(writer->commit());

  const auto file = cbq::GgufFile::open(folder / "m.gguf");
  INFO(message(file));
  REQUIRE(file);
  CHECK(file->file.bytes().size() == size);
  CHECK(size % alignment == 0);
  CHECK(file->content.tensors().size() == plan.size());
  CHECK((file->content.metadata().value("general.alignment") != nullptr) == (alignment != 32));
  for (std::size_t i = 0; i < plan.size(); ++i) {
    const cbq::GgufTensor* tensor = file->content.find(plan[i].name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor->type == plan[i].type);
    CHECK(cbq::same_shape(tensor->shape, plan[i].shape));
    CHECK(tensor->offset % alignment == 0);
    const auto wanted = payload(tensor->bytes.size(), static_cast<unsigned>(i));
    CHECK(std::equal(wanted.begin(), wanted.end(), tensor->bytes.begin(), tensor->bytes.end()));
  }
}

TEST_CASE("values of every kind, and arrays of them, are read back") {
  GgufKeys keys;
  const auto both = [&keys](const std::string& name, auto value) {
    using T = decltype(value);
    const std::array<T, 2> values = {value, T{}};
    keys.add(name, value).add(name + "s", std::span<const T>(values)).add(name + "0", std::span<const T>());
  };
  both("u8", std::uint8_t{200});
  both("i8", std::int8_t{-100});
  both("u16", std::uint16_t{60000});
  both("i16", std::int16_t{-30000});
  both("u32", std::uint32_t{4000000000u});
  both("i32", std::int32_t{-2000000000});
  both("u64", ~std::uint64_t{0});
  both("i64", std::int64_t{-3});
  both("f32", 1.5f);
  both("f64", 2.25);
  both("bool", true);
  const std::vector<std::string> texts = {"x", "", std::string("a\0\xff", 3)};
  keys.add("text", "llama").add("texts", std::span<const std::string>(texts));
  REQUIRE(keys.status());
  CHECK(keys.has("f64s"));
  CHECK_FALSE(keys.has("f640s"));

  const support::ScratchFolder folder;
  auto writer = GgufWriter::create(folder / "m.gguf", keys, {});
  REQUIRE(writer);
  REQUIRE(writer->commit());
  const auto file = cbq::GgufFile::open(folder / "m.gguf");
  INFO(message(file));
  REQUIRE(file);
  const cbq::GgufMetadata& read = file->content.metadata();
  CHECK(read.values().size() == 11 * 3 + 2);
  CHECK(read.value("u8")->kind == cbq::GgufKind::u8);
  CHECK(read.value("i16s")->element == cbq::GgufKind::i16);
  CHECK(*read.unsigned_value("u8") == 200);
  CHECK(*read.unsigned_value("u64") == ~std::uint64_t{0});
  CHECK(*read.integer_array("i8s") == std::vector<std::int64_t>{-100, 0});
  CHECK(*read.integer_array("u16s") == std::vector<std::int64_t>{60000, 0});
  CHECK(*read.integer_array("i16s") == std::vector<std::int64_t>{-30000, 0});
  CHECK(*read.integer_array("u32s") == std::vector<std::int64_t>{4000000000, 0});
  CHECK(*read.integer_array("i32s") == std::vector<std::int64_t>{-2000000000, 0});
  CHECK(*read.integer_array("i64s") == std::vector<std::int64_t>{-3, 0});
  CHECK(*read.float_array("f32s") == std::vector<float>{1.5f, 0.0f});
  CHECK(*read.number_value("f64") == 2.25);
  CHECK(*read.boolean_value("bool"));
  CHECK(read.value("bools")->bytes.size() == 2);
  CHECK(read.value("u640")->count == 0);
  CHECK(*read.text_value("text") == "llama");
  const auto list = read.text_array("texts");
  REQUIRE(list);
  CHECK(std::vector<std::string>(list->begin(), list->end()) == texts);
}

TEST_CASE("keys that a reader would refuse are refused") {
  CHECK_THAT(outcome(GgufKeys().add("", 1.0f), {}), ContainsSubstring("empty metadata key"));
  CHECK_THAT(outcome(GgufKeys().add(std::string(65536, 'k'), 1.0f), {}), ContainsSubstring("key is too long"));
  CHECK(outcome(GgufKeys().add(std::string(65535, 'k'), 1.0f), {}) == "success");
  CHECK_THAT(outcome(GgufKeys().add("a", 1.0f).add("b", true).add("a", "x").add("", true), {}),
             ContainsSubstring("a: the same metadata key twice"));
  CHECK_THAT(outcome(GgufKeys().add("general.alignment", std::uint32_t{64}), {}), ContainsSubstring("the writer adds"));
  const cbq::GgufLimits small = {.keys = 2, .tensors = 1, .text_bytes = 3, .array_elements = 2};
  CHECK_THAT(outcome(GgufKeys(small).add("a", "four"), {}),
             ContainsSubstring("text is too long (got 4, wanted at most 3)"));
  const std::array<std::int32_t, 3> three = {};
  CHECK_THAT(outcome(GgufKeys(small).add("a", std::span<const std::int32_t>(three)), {}),
             ContainsSubstring("array is too long"));
  CHECK_THAT(outcome(GgufKeys(small).add("a", true).add("b", true).add("c", true), {}),
             ContainsSubstring("too many metadata keys"));
}

TEST_CASE("tensors and alignments that a reader would refuse are refused") {
  CHECK(outcome_of_tensor(std::string(63, 'n'), GgufType::f32, {.rank = 1, .sizes = {1}}) == "success");
  for (const std::string& name : {std::string(64, 'n'), std::string()}) {
    CHECK_THAT(outcome_of_tensor(name, GgufType::f32, {.rank = 1, .sizes = {1}}), ContainsSubstring("1 to 63 bytes"));
  }
  CHECK_THAT(outcome_of_tensor("w", GgufType::f32, {.rank = 5, .sizes = {1, 1, 1, 1, 1}}),
             ContainsSubstring("too many dimensions"));
  CHECK_THAT(outcome_of_tensor("w", GgufType::q4_0, {.rank = 2, .sizes = {32, 48}}),
             ContainsSubstring("no multiple of the block (got 48, wanted a multiple of 32)"));
  const std::size_t huge = std::size_t{1} << 62;
  CHECK(outcome_of_tensor("w", GgufType::f32, {.rank = 1, .sizes = {huge}}) != "success");
  CHECK(outcome_of_tensor("w", GgufType::i8, {.rank = 1, .sizes = {~std::size_t{0}}}) != "success");
  CHECK_THAT(outcome(GgufKeys(), {plan[0], plan[1], plan[0]}), ContainsSubstring("a tensor name is taken"));
  for (const std::size_t bad : {std::size_t{0}, std::size_t{4}, std::size_t{24}, std::size_t{1} << 21}) {
    CHECK_THAT(outcome(GgufKeys(), {}, bad), ContainsSubstring("not an alignment"));
  }
}

TEST_CASE("a GGUF tensor that is missing, unplanned or too long is an error and leaves no file") {
  const support::ScratchFolder folder;
  {
    auto writer = GgufWriter::create(folder / "m.gguf", GgufKeys(), plan);
    REQUIRE(writer);
    CHECK(message(writer->write("other", payload(1, 0))) == "other: the tensor was not planned");
    CHECK(writer->write("one", payload(2, 0)).error().code == Errc::bad_shape);
    CHECK_THAT(message(writer->commit()), ContainsSubstring("token_embd.weight: a planned tensor is not complete"));
  }
  CHECK(folder.entries() == 0);
}
