// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gguf_metadata.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "support/gguf.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Gguf;
using cbq::GgufKind;
using support::GgufBuilder;
using support::message;

namespace {

std::string outcome(const GgufBuilder& file, const cbq::GgufLimits& limits = {}) {
  const support::GuardedBytes guarded(file.bytes());
  return message(Gguf::parse(guarded.bytes(), limits));
}

}  // namespace

TEST_CASE("values of each type are read, and only as what they are") {
  const support::GuardedBytes guarded(support::small_gguf().bytes());
  const auto file = Gguf::parse(guarded.bytes());
  REQUIRE(file);
  const cbq::GgufMetadata& values = file->metadata();
  CHECK(values.values().size() == 16);
  CHECK(*values.unsigned_value("a.u8") == 200);
  CHECK(*values.unsigned_value("a.u16") == 60000);
  CHECK(*values.unsigned_value("a.u32") == 4000000000u);
  CHECK(*values.unsigned_value("a.u64") == ~std::uint64_t{0});
  for (const char* key :
       {"a.i8", "a.i16", "a.i32", "a.i64", "a.f32", "a.bool", "list.i32", "general.architecture", "none"}) {
    CAPTURE(key);
    CHECK_FALSE(values.unsigned_value(key));
  }
  CHECK(*values.number_value("a.f32") == 1.5);
  CHECK(*values.number_value("a.f64") == 2.25);
  CHECK(*values.number_value("a.i16") == -30000.0);
  CHECK_FALSE(values.number_value("a.bool"));
  CHECK_FALSE(values.number_value("list.f32"));
  CHECK(*values.boolean_value("a.bool"));
  CHECK_FALSE(values.boolean_value("a.u8"));
  CHECK(*values.text_value("general.architecture") == "llama");
  CHECK_FALSE(values.text_value("list.text"));
  CHECK(*values.text_array("list.text") == std::vector<std::string_view>{"x", "", "yz"});
  CHECK(*values.integer_array("list.i32") == std::vector<std::int64_t>{-1, 7});
  CHECK(values.integer_array("list.empty")->empty());
  CHECK(*values.float_array("list.f32") == std::vector<float>{0.5f, -2.0f});
}

TEST_CASE("array of another element type: an error, not a cast") {
  const support::GuardedBytes guarded(support::small_gguf().bytes());
  const auto file = Gguf::parse(guarded.bytes());
  CHECK_FALSE(file->metadata().text_array("list.i32"));
  CHECK_FALSE(file->metadata().integer_array("list.f32"));
  CHECK_FALSE(file->metadata().integer_array("list.text"));
  CHECK_FALSE(file->metadata().integer_array("a.i32"));
  CHECK_FALSE(file->metadata().float_array("list.i32"));
  CHECK_THAT(message(file->metadata().float_array("list.i32")),
             ContainsSubstring("got array of i32, wanted an array of f32"));
}

TEST_CASE("counts that wrap: keys, arrays and texts longer than the file") {
  for (const std::uint64_t count :
       {std::uint64_t{100}, std::uint64_t{1} << 32, ~std::uint64_t{0}, ~std::uint64_t{0} / 4 + 1}) {
    CAPTURE(count);
    GgufBuilder keys;
    keys.keys = count;
    CHECK_THAT(outcome(keys), ContainsSubstring("more keys than the file can hold"));
    for (const GgufKind kind : {GgufKind::u8, GgufKind::u32, GgufKind::f64, GgufKind::text}) {
      GgufBuilder array;
      array.array("list", kind, count);
      CHECK_THAT(outcome(array), ContainsSubstring("longer than the file"));
    }
    GgufBuilder text;
    text.key("text", GgufKind::text).add(count);
    CHECK(outcome(text) != "success");
    GgufBuilder nested;
    nested.array("list", GgufKind::text, 1).add(count);
    CHECK(outcome(nested) != "success");
    GgufBuilder name;
    name.keys = 1;
    name.metadata.add(count).zeros(14);
    CHECK(outcome(name) != "success");
  }
}

TEST_CASE("unknown types, arrays of arrays, bad booleans") {
  GgufBuilder unknown;
  unknown.key("x", static_cast<GgufKind>(13)).add(std::uint64_t{0});
  CHECK_THAT(outcome(unknown), ContainsSubstring("unknown type"));
  GgufBuilder unknown_element;
  unknown_element.array("x", static_cast<GgufKind>(0xffffffffu), 0);
  CHECK_THAT(outcome(unknown_element), ContainsSubstring("unknown type"));
  GgufBuilder nested;
  nested.array("x", GgufKind::array, 1).add(std::uint32_t{0}).add(std::uint64_t{0});
  CHECK_THAT(outcome(nested), ContainsSubstring("array of arrays"));
  GgufBuilder boolean;
  boolean.key("x", GgufKind::boolean).add(std::uint8_t{2});
  CHECK_THAT(outcome(boolean), ContainsSubstring("neither 0 nor 1"));
}

TEST_CASE("duplicate and empty keys") {
  GgufBuilder twice;
  twice.key("x", GgufKind::u8).add(std::uint8_t{1});
  twice.key("y", GgufKind::u8).add(std::uint8_t{1});
  twice.key("x", GgufKind::u16).add(std::uint16_t{1});
  CHECK_THAT(outcome(twice), ContainsSubstring("the same metadata key twice"));
  GgufBuilder empty;
  empty.key("", GgufKind::u8).add(std::uint8_t{1}).zeros(1);
  CHECK_THAT(outcome(empty), ContainsSubstring("empty metadata key"));
}

TEST_CASE("limits hold before anything is read") {
  const GgufBuilder file = support::small_gguf();
  CHECK(outcome(file) == "success");
  CHECK(outcome(file, {.keys = 15}) != "success");
  CHECK(outcome(file, {.tensors = 3}) != "success");
  CHECK(outcome(file, {.text_bytes = 4}) != "success");
  CHECK(outcome(file, {.array_elements = 2}) != "success");
}

TEST_CASE("an integer of 64 bits that does not fit int64 is an error in arrays") {
  GgufBuilder file;
  file.array("x", GgufKind::u64, 1).add(~std::uint64_t{0});
  file.array("y", GgufKind::u64, 1).add(~std::uint64_t{0} >> 1);
  const auto bytes = file.bytes();
  const auto parsed = Gguf::parse(bytes);
  REQUIRE(parsed);
  CHECK_FALSE(parsed->metadata().integer_array("x"));
  CHECK(parsed->metadata().integer_array("y"));
}
