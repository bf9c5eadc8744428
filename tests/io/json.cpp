// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/json.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <random>
#include <string>

#include "support/files.hpp"

using cbq::Errc;
using cbq::Json;
using cbq::parse_json;
using support::message;

TEST_CASE("JSON text becomes the tree it spells") {
  const auto json = parse_json(R"( {"a": [1, -2, 2.5, true, null, "x\u00e9", {"b": {}}], "c": [], "d": [[1], [2]]} )");
  REQUIRE(json);
  CHECK(*json == Json{{"a", {1, -2, 2.5, true, nullptr, "x\u00e9", {{"b", Json::object()}}}},
                      {"c", Json::array()},
                      {"d", {{1}, {2}}}});
  CHECK(*parse_json("7") == 7);
  CHECK(*parse_json(R"("")") == "");
}

TEST_CASE("what breaks JSON is named with its byte") {
  const char* texts[] = {"",        "{",        "{}x",          "[1,]",        "{\"a\":}", "{\"a\" 1}",
                         "nul",     "[1 2]",    "'a'",          "[1]]",        "{]",       "\"\n\"",
                         "\"\\x\"", "01",       "1.",           "-",           "+1",       "NaN",
                         "[1e999]", "\"\xff\"", "\"\xc0\x80\"", "\"\\ud800\"", "// a\n1",  "{\"a\":1,,\"b\":2}",
                         "\xef\xbb"};
  for (const char* text : texts) {
    const auto json = parse_json(text);
    CAPTURE(text);
    REQUIRE_FALSE(json);
    CHECK(json.error().code == Errc::bad_file);
    CHECK_THAT(message(json), Catch::Matchers::ContainsSubstring("byte "));
  }
}

TEST_CASE("the same key twice is an error, at any depth") {
  CHECK_FALSE(parse_json(R"({"a": 1, "a": 1})"));
  CHECK_FALSE(parse_json(R"({"x": [{"a": 1, "b": 2, "a": {}}]})"));
  CHECK_FALSE(parse_json(R"({"a": 1, "\u0061": 2})"));
  CHECK(parse_json(R"({"a": {"a": {"a": 1}}})"));
  CHECK_THAT(message(parse_json(R"({"key": 1, "key": 1})")), Catch::Matchers::ContainsSubstring("key"));
}

TEST_CASE("a NUL byte does not end the text") {
  const auto json = parse_json(std::string_view("{}\0{", 4));
  REQUIRE_FALSE(json);
  CHECK_THAT(message(json), Catch::Matchers::ContainsSubstring("byte 2"));
}

TEST_CASE("limits hold before memory is spent") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(parse_json(nested(32)));
  CHECK_FALSE(parse_json(nested(33)));
  CHECK_FALSE(parse_json(nested(1'000'000)));
  CHECK_FALSE(parse_json(std::string(1'000'000, '[')));
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  CHECK_FALSE(parse_json(objects));
  CHECK(parse_json("[1, 2, 3]", {.values = 4}));
  CHECK_FALSE(parse_json("[1, 2, 3]", {.values = 3}));
  CHECK(parse_json("[1, 2]", {.bytes = 6}));
  CHECK_FALSE(parse_json("[1, 2] ", {.bytes = 6}));
}

TEST_CASE("integers keep all 64 bits and never pass through double") {
  const auto json = parse_json(R"({"max": 18446744073709551615, "over": 18446744073709551616, "odd": 9007199254740993,
                                   "minus": -1, "float": 3.0, "exponent": 1e3, "text": "3"})");
  REQUIRE(json);
  CHECK(*cbq::json_unsigned(*json, "max") == 18446744073709551615u);
  CHECK(*cbq::json_unsigned(*json, "odd") == 9007199254740993u);
  for (const char* key : {"over", "minus", "float", "exponent", "text", "absent"})
    CHECK_FALSE(cbq::json_unsigned(*json, key));
  CHECK(*cbq::json_unsigned(Json{{"built", 3}}, "built") == 3);
  CHECK_FALSE(cbq::json_unsigned(Json{{"built", -3}}, "built"));
  CHECK(*cbq::json_number(*json, "minus") == -1.0);
  CHECK(*cbq::json_number(*json, "exponent") == 1000.0);
  CHECK_FALSE(cbq::json_number(*json, "text"));
  CHECK(*cbq::json_string(*json, "text") == "3");
  CHECK_FALSE(cbq::json_string(*json, "float"));
  CHECK_FALSE(cbq::json_boolean(*json, "float"));
  CHECK_FALSE(cbq::json_string(Json(3), "float"));
}

TEST_CASE("a JSON file is read with its name in every error") {
  const support::ScratchFolder folder;
  support::write_text(folder / "good.json", "{\"a\": 1}");
  support::write_text(folder / "bad.json", "{\"a\": 1");
  const auto good = cbq::read_json_file(folder / "good.json");
  REQUIRE(good);
  CHECK(*good == Json{{"a", 1}});
  CHECK_THAT(message(cbq::read_json_file(folder / "bad.json")), Catch::Matchers::ContainsSubstring("bad.json"));
  CHECK(cbq::read_json_file(folder / "none.json").error().code == Errc::io);
  CHECK_FALSE(cbq::read_json_file(folder / "good.json", {.bytes = 7}));
}

TEST_CASE("json_text writes what parse_json reads, whatever bytes a string holds") {
  const Json json = {{"a", {1, 2.5, "x\n\"\\"}}, {"b", nullptr}};
  CHECK(*parse_json(cbq::json_text(json)) == json);
  CHECK(parse_json(cbq::json_text(Json{{"a", "\xff\xfe"}})));
}

TEST_CASE("mutated JSON never does more than fail") {
  const std::string text = R"({"a": [1, -2, 2.5e3, true, null], "b": {"c": "\u00e9\n", "d": []}})";
  std::mt19937 random(1);
  std::size_t accepted = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string mutated = text;
    for (std::size_t n = random() % 3 + 1; n != 0; --n)
      mutated[random() % mutated.size()] = static_cast<char>(random());
    accepted += parse_json(mutated) ? 1u : 0u;
  }
  CHECK(accepted > 0);
  for (std::size_t size = 0; size < text.size(); ++size) {
    if (parse_json(std::string_view(text).substr(0, size))) FAIL("accepted a text cut to " << size << " bytes");
  }
}
