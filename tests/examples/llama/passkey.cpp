// SPDX-License-Identifier: Apache-2.0
#include "passkey.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cctype>
#include <set>
#include <string>

#include "examples/llama/engine_fixture.hpp"

using namespace cbq_llama;
using cbq::Json;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

TEST_CASE("a passkey's text fills the context, with the number at its depth") {
  const Tokenizer tokenizer = unwrap(unwrap(ModelSource::open(pocket_llama())).tokenizer());
  PasskeyOptions options;
  options.context = 600;
  options.items = 4;
  std::set<std::string> keys;
  std::size_t last = 0;
  for (std::size_t i = 0; i < options.items; ++i) {
    CAPTURE(i);
    const PasskeyItem item = unwrap(make_passkey_item(tokenizer, options, i));
    CHECK(item.ids == unwrap(tokenizer.encode(item.prompt)));
    CHECK(item.ids.size() < options.context);
    CHECK(item.ids.size() + 60 > options.context);  // less than a sentence is missing
    CHECK(item.key.size() == 5);
    CHECK(std::all_of(item.key.begin(), item.key.end(), [](unsigned char c) { return std::isdigit(c) != 0; }));
    const std::size_t found = item.prompt.find(item.key);
    REQUIRE(found != std::string::npos);
    CHECK(found > last);
    last = found;
    CHECK(item.prompt.ends_with("The secret number is"));
    keys.insert(item.key);
    CHECK(unwrap(make_passkey_item(tokenizer, options, i)).prompt == item.prompt);
  }
  CHECK(keys.size() == options.items);
  const std::string first = unwrap(make_passkey_item(tokenizer, options, 0)).prompt;
  options.seed = 1;
  CHECK(unwrap(make_passkey_item(tokenizer, options, 0)).prompt != first);
  options.context = 40;
  CHECK(make_passkey_item(tokenizer, options, 0).error().code == cbq::Errc::bad_argument);
}

TEST_CASE("an answer says the digits it begins with") {
  CHECK(says(" 12345.", "12345"));
  CHECK(says(": it is 12345, not 54321", "12345"));
  CHECK_FALSE(says(" 54321, not 12345", "12345"));
  CHECK_FALSE(says(" 123456", "12345"));
  CHECK_FALSE(says(" 1234", "12345"));
  CHECK_FALSE(says("no number", "12345"));
  CHECK_FALSE(says("", "12345"));
}

TEST_CASE("passkey reports each answer and the share retrieved") {
  const auto run = run_tool({"passkey", pocket_llama(), "--context", "200", "--items", "2", "--seed", "3", "--threads",
                             "1", "--kv", "kv4_past", "--json", "-"});
  REQUIRE(run.code == 0);
  CHECK(run.err.empty());
  const Json json = unwrap(cbq::parse_json(run.out));
  CHECK(json.at("kv_scheme") == "kv4_past");
  CHECK(json.at("context") == 200);
  CHECK(json.at("seed") == 3);
  const Json& answers = json.at("passkeys");
  REQUIRE(answers.size() == 2);
  double retrieved = 0;
  for (const Json& answer : answers) {
    const auto text = answer.at("answer").get<std::string>();
    const auto key = answer.at("key").get<std::string>();
    const std::size_t digits = text.find_first_of("0123456789");
    const bool right = digits != std::string::npos && text.compare(digits, key.size(), key) == 0;
    if (answer.at("retrieved").get<bool>()) CHECK(right);
    retrieved += answer.at("retrieved").get<bool>() ? 0.5 : 0.0;
  }
  CHECK(json.at("passkey_retrieved") == retrieved);
  CHECK(run_tool({"passkey", pocket_llama(), "--context", "5000"}).code == 1);
  CHECK(run_tool({"passkey", pocket_llama(), "--context", "50"}).code == 1);
}
