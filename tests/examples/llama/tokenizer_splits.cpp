// SPDX-License-Identifier: Apache-2.0

#include "tokenizer_splits.hpp"

#include <catch2/catch_test_macros.hpp>

#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace cbq_llama;

namespace {

using Words = std::vector<std::string>;

Regex regex(std::string_view pattern) {
  auto compiled = Regex::compile(pattern);
  REQUIRE(compiled);
  return *std::move(compiled);
}

Words words_of(std::string_view text, const std::vector<PreTokenizer>& steps,
               TextPosition position = TextPosition::start) {
  std::deque<std::string> storage;
  const auto words = split_words(text, position, steps, storage);
  REQUIRE(words);
  return Words(words->begin(), words->end());
}

Metaspace metaspace(Metaspace::Prefix prefix, bool splits) {
  return {regex(" "), regex("_"), "_", prefix, splits};
}

AddedToken added(std::string text, std::int32_t id) {
  AddedToken token;
  token.text = std::move(text);
  token.id = id;
  return token;
}

/// Matches as "begin-end:id".
Words found(const AddedTokenFinder& finder, std::string_view text,
            AddedTokenFinder::Wanted wanted = AddedTokenFinder::Wanted::all) {
  Words matches;
  for (const auto& match : finder.find(text, wanted)) {
    matches.push_back(std::to_string(match.span.begin) + "-" + std::to_string(match.span.end) + ":" +
                      std::to_string(match.id));
  }
  return matches;
}

}  // namespace

TEST_CASE("the behaviours of a split") {
  const auto cut = [](SplitBehavior behavior, bool inverted = false) {
    return words_of("a--b-", {Split{regex("-"), behavior, inverted}});
  };
  CHECK(cut(SplitBehavior::isolated) == Words{"a", "-", "-", "b", "-"});
  CHECK(cut(SplitBehavior::removed) == Words{"a", "b"});
  CHECK(cut(SplitBehavior::contiguous) == Words{"a", "--", "b", "-"});
  CHECK(cut(SplitBehavior::merged_with_previous) == Words{"a-", "-", "b-"});
  CHECK(cut(SplitBehavior::merged_with_next) == Words{"a", "-", "-b", "-"});
  CHECK(cut(SplitBehavior::removed, true) == Words{"-", "-", "-"});
  CHECK(cut(SplitBehavior::isolated, true) == Words{"a", "-", "-", "b", "-"});
  CHECK(words_of("", {Split{regex("-"), SplitBehavior::isolated, false}}).empty());
  CHECK(words_of("abc", {}) == Words{"abc"});
}

TEST_CASE("splits compose, and ill-formed bytes are words of their own") {
  const std::vector<PreTokenizer> steps = {Split{regex(R"(\p{N})"), SplitBehavior::isolated, false},
                                           Split{regex(R"( ?\p{L}+)"), SplitBehavior::isolated, false}};
  CHECK(words_of("ab 12 cd", steps) == Words{"ab", " ", "1", "2", " cd"});
  CHECK(words_of("a\xFF\xFE"
                 "b\xC3",
                 steps) == Words{"a", "\xFF\xFE", "b", "\xC3"});
}

TEST_CASE("a space goes before each piece that has none") {
  CHECK(words_of("ab", {PrefixSpace{}}) == Words{" ab"});
  CHECK(words_of(" ab", {PrefixSpace{}}) == Words{" ab"});
  CHECK(words_of("", {PrefixSpace{}}).empty());
  CHECK(words_of("a1", {Split{regex("1"), SplitBehavior::isolated, false}, PrefixSpace{}}) == Words{" a", " 1"});
}

TEST_CASE("metaspace") {
  using Prefix = Metaspace::Prefix;
  CHECK(words_of("a b", {metaspace(Prefix::always, true)}) == Words{"_a", "_b"});
  CHECK(words_of("a b", {metaspace(Prefix::never, true)}) == Words{"a", "_b"});
  CHECK(words_of("a b", {metaspace(Prefix::always, false)}) == Words{"_a_b"});
  CHECK(words_of(" a", {metaspace(Prefix::always, true)}) == Words{"_a"});
  CHECK(words_of("a", {metaspace(Prefix::first, true)}, TextPosition::start) == Words{"_a"});
  CHECK(words_of("a", {metaspace(Prefix::first, true)}, TextPosition::later) == Words{"a"});
  CHECK(words_of("a", {metaspace(Prefix::always, true)}, TextPosition::later) == Words{"_a"});
}

TEST_CASE("normalizers run in their order") {
  const std::vector<Normalizer> steps = {Prepend{"_"}, Replace{regex("[ .]"), "_"}, Replace{regex("_+"), "-"}};
  const auto normalized = [&](std::string_view text) {
    const auto result = normalize(text, steps);
    REQUIRE(result);
    return *result;
  };
  CHECK(normalized("a. b") == "-a-b");
  CHECK(normalized("").empty());
  CHECK(normalized("\xFF ") == "-\xFF-");
}

TEST_CASE("added tokens: leftmost, then longest") {
  const AddedTokenFinder finder({added("<s>", 1), added("<s>>", 2), added("s>", 3), added("", 4)});
  CHECK(found(finder, "<s>>s><s>") == Words{"0-4:2", "4-6:3", "6-9:1"});
  CHECK(found(finder, "<s").empty());
  CHECK(found(finder, "").empty());
  CHECK(found(AddedTokenFinder(), "<s>").empty());
}

TEST_CASE("added tokens: special ones only on request") {
  AddedToken special = added("<s>", 1);
  special.special = true;
  const AddedTokenFinder finder({special, added("<t>", 2)});
  CHECK(found(finder, "<s><t>") == Words{"0-3:1", "3-6:2"});
  CHECK(found(finder, "<s><t>", AddedTokenFinder::Wanted::not_special) == Words{"3-6:2"});
}

TEST_CASE("added tokens take white space along where they say so") {
  AddedToken left = added("L", 1);
  left.strips_left = true;
  AddedToken right = added("R", 2);
  right.strips_right = true;
  const AddedTokenFinder finder({left, right});
  CHECK(found(finder, "a \t\xE3\x80\x80L b") == Words{"1-7:1"});
  CHECK(found(finder, "R \n x") == Words{"0-4:2"});
  CHECK(found(finder, "  R  L") == Words{"2-5:2", "5-6:1"});  // the spaces belong to the first
  CHECK(found(finder, "\xE2\x80\x8BL") == Words{"3-4:1"});    // U+200B is no white space
}
