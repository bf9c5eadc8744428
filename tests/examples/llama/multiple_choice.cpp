// SPDX-License-Identifier: Apache-2.0
#include "multiple_choice.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <cmath>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "commands.hpp"
#include "examples/llama/engine_fixture.hpp"
#include "scores.hpp"

using namespace cbq_llama;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;

namespace {

const std::string good = R"({"prompt": "The history of the", "choices": [" city", " xqzv"], "answer": 0})";

// Sum of log likelihoods of tokens[first ..], each from all tokens before it, evaluated from scratch.
double log_likelihood(const Model& model, std::span<const std::int32_t> tokens, std::size_t first) {
  double sum = 0;
  for (std::size_t i = first; i < tokens.size(); ++i) {
    Session session = unwrap(Session::create(model, tokens.size(), {1, cbq::detect()}));
    const auto logits = unwrap(session.next_logits(tokens.first(i)));
    sum -= score_token(logits, static_cast<std::size_t>(tokens[i])).nll;
  }
  return sum;
}

}  // namespace

TEST_CASE("bad items are named by line and reason") {
  struct Case {
    std::string line;
    std::string part;
  };
  const Case cases[] = {
      {"{", "not valid JSON"},
      {"[1]", "JSON object"},
      {R"({"choices": ["a", "b"], "answer": 0})", "prompt: a JSON key is missing"},
      {R"({"prompt": "x", "answer": 0})", "choices: a JSON key is missing"},
      {R"({"prompt": "x", "choices": ["a", "b"]})", "answer: a JSON key is missing"},
      {R"({"prompt": 1, "choices": ["a", "b"], "answer": 0})", "wrong type"},
      {R"({"prompt": "x", "choices": "ab", "answer": 0})", "list of choices"},
      {R"({"prompt": "x", "choices": ["a"], "answer": 0})", "at least two"},
      {R"({"prompt": "x", "choices": ["a", 2], "answer": 0})", "no text"},
      {R"({"prompt": "x", "choices": ["a", ""], "answer": 0})", "choice 1: a choice is empty"},
      {R"({"prompt": "x", "choices": ["a", "b"], "answer": 2})", "names no choice"},
      {R"({"prompt": "x", "choices": ["a", "b"], "answer": -1})", "wrong type"},
      {R"({"prompt": "x", "choices": ["a", "b"], "answer": "a"})", "wrong type"},
  };
  for (const Case& one : cases) {
    CAPTURE(one.line);
    const auto items = parse_items(good + "\n\n" + one.line + "\n" + good);
    REQUIRE_FALSE(items);
    const std::string message = support::message(items);
    CAPTURE(message);
    CHECK(message.starts_with("line 3"));
    CHECK(message.find(one.part) != std::string::npos);
    CHECK(items.error().code == cbq::Errc::bad_file);
  }
  CHECK(support::message(parse_items(" \n\n")).find("no items") != std::string::npos);
  const auto items = unwrap(parse_items("\n" + good + "\r\n" + good));
  REQUIRE(items.size() == 2);
  CHECK(items[1].line == 3);
  CHECK(items[1].choices[1] == " xqzv");
}

TEST_CASE("prompt and choice are encoded together, and what they share is evaluated once") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  const Tokenizer tokenizer = unwrap(source.tokenizer());
  // "o" and "f" are one token: the border is no border of tokens.
  const std::vector<ChoiceItem> items = {{"The history o", {"f the city", "n a city", " x"}, 0, 1},
                                         {"The history of", {" the city", " a king"}, 1, 2}};
  const std::vector<TokenizedItem> tokens = unwrap(tokenize_items(tokenizer, items, 64));
  for (std::size_t i = 0; i < items.size(); ++i) {
    for (std::size_t c = 0; c < items[i].choices.size(); ++c) {
      std::vector<std::int32_t> whole = tokens[i].prompt;
      const auto& rest = tokens[i].choices[c].tokens;
      whole.insert(whole.end(), rest.begin(), rest.end());
      CHECK(whole == unwrap(tokenizer.encode(items[i].prompt + items[i].choices[c])));
      CHECK(tokens[i].choices[c].bytes == items[i].choices[c].size());
    }
  }
  CHECK(tokens[1].prompt == unwrap(tokenizer.encode("The history of")));
  CHECK(tokens[0].prompt.size() < unwrap(tokenizer.encode("The history o")).size());

  CHECK(support::message(tokenize_items(tokenizer, items, 4)).find("line 1: choice") != std::string::npos);
  const auto no_prompt = tokenize_items(tokenizer, {{"", {"a", "b"}, 0, 7}}, 64);
  CHECK(support::message(no_prompt).starts_with("line 7: nothing to predict"));
}

TEST_CASE("scores are log likelihoods per byte, for any number of threads") {
  const LoadedModel loaded = unwrap(load_model({pocket_llama(), {}}));
  const Tokenizer tokenizer = unwrap(loaded.source.tokenizer());
  const std::vector<ChoiceItem> items = {
      {"The history of the", {" city of London", " xqzv", " purple of of"}, 0, 1},
      {"In 1999 he was", {" seven seven", " born"}, 1, 2},
      {"In a", {" b", "c", " d", " book which is a long one"}, 2, 3},
  };
  const auto tokens = unwrap(tokenize_items(tokenizer, items, 1024));
  const ChoiceResult result = unwrap(choose(loaded.model, tokens, {.machine = {1, cbq::detect()}}));
  REQUIRE(result.chosen.size() == items.size());
  double right = 0;
  std::size_t hits = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    std::size_t best = 0;
    std::vector<double> scores;
    for (const auto& choice : tokens[i].choices) {
      std::vector<std::int32_t> whole = tokens[i].prompt;
      whole.insert(whole.end(), choice.tokens.begin(), choice.tokens.end());
      scores.push_back(log_likelihood(loaded.model, whole, tokens[i].prompt.size()) /
                       static_cast<double>(choice.bytes));
      if (scores.back() > scores[best]) best = scores.size() - 1;
    }
    CHECK(result.chosen[i] == best);
    if (best == items[i].answer) ++hits;
    right += scores[items[i].answer] / static_cast<double>(items.size());
  }
  CHECK_THAT(result.right_log_likelihood, Catch::Matchers::WithinAbs(right, 1e-4));
  CHECK(result.accuracy == static_cast<double>(hits) / 3);
  CHECK_THAT(result.standard_error,
             Catch::Matchers::WithinAbs(std::sqrt(result.accuracy * (1 - result.accuracy) / 2), 1e-12));
  CHECK_THAT(result.chance, Catch::Matchers::WithinAbs((1.0 / 3 + 1.0 / 2 + 1.0 / 4) / 3, 1e-12));
  const ChoiceResult threads = unwrap(choose(loaded.model, tokens, {.machine = {8, cbq::detect()}}));
  CHECK(threads.chosen == result.chosen);
  CHECK(threads.right_log_likelihood == result.right_log_likelihood);
}

TEST_CASE("choose prints accuracy and its error, and names bad items") {
  const support::ScratchFolder scratch;
  const std::string path = scratch / "items.jsonl";
  support::write_text(path, good + "\n" + good + "\n");
  const ToolRun run = run_tool({"choose", pocket_llama(), "--items", path, "--threads", "1"});
  CHECK(run.code == 0);
  CHECK(run.out.find("100.00 % (standard error 0.00 %") != std::string::npos);
  const cbq::Json json =
      unwrap(cbq::parse_json(run_tool({"choose", pocket_llama(), "--items", path, "--json", "-"}).out));
  CHECK(json.at("items") == 2);
  CHECK(json.at("accuracy") == 1.0);
  CHECK(json.at("accuracy_stderr") == 0.0);
  CHECK(json.at("chance") == 0.5);
  CHECK(json.at("chosen") == cbq::Json{0, 0});

  support::write_text(path, good + "\n{\"prompt\": 3}\n");
  const ToolRun bad = run_tool({"choose", pocket_llama(), "--items", path});
  CHECK(bad.code == 1);
  CHECK(bad.err.find(path + ": line 2: prompt") != std::string::npos);
  CHECK(run_tool({"choose", pocket_llama(), "--items", scratch / "none"}).code == 1);
  CHECK(run_tool({"choose", pocket_llama()}).code == 2);
}

TEST_CASE("the script makes the same items of the same text and seed") {
  const std::string script = CBQ_SOURCE_DIR "/examples/llama/make_cloze_items.py";
  if (std::system("python3 -c pass >/dev/null 2>&1") != 0) SKIP("no Python");
  const support::ScratchFolder scratch;
  const auto make = [&](const std::string& name, const std::string& options) {
    const std::string output = scratch / name;
    const std::string command = "python3 '" + script + "' '" + engine_fixture::evaluation_text() + "' -o '" + output +
                                "' " + options + " 2>/dev/null";
    return std::system(command.c_str()) == 0 ? support::read_text(output) : std::string();
  };
  const std::string items = make("a", "--items 50");
  CHECK(unwrap(parse_items(items)).size() == 50);
  CHECK(make("b", "--items 50") == items);
  CHECK(make("c", "--items 50 --seed 2") != items);
  CHECK(unwrap(parse_items(make("d", "--items 9 --choices 2 --words 1")))[8].choices.size() == 2);
  CHECK(make("e", "--items 1000000").empty());
}
