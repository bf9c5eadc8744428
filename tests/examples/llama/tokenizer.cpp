// SPDX-License-Identifier: Apache-2.0

#include "tokenizer.hpp"

#include <catch2/catch_test_macros.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf_vocabulary.hpp"
#include "unicode.hpp"
#include "vocabulary_reader.hpp"

#if !defined(CBQ_EXAMPLE_MODELS) && defined(CBQ_SOURCE_DIR)
#define CBQ_EXAMPLE_MODELS CBQ_SOURCE_DIR "/examples/llama/models"
#endif

using namespace cbq_llama;
using Json = nlohmann::json;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr EncodeOptions with_special = {EncodeOptions::Special::as_tokens, EncodeOptions::Frame::added};
constexpr EncodeOptions unframed = {EncodeOptions::Special::as_text, EncodeOptions::Frame::omitted};

std::string message(const cbq::Error& error) {
  std::string text;
  cbq::append_message(text, error);
  return text;
}

Tokenizer tokenizer_from(const Json& file, SpecialIds ids = {}) {
  auto tokenizer = Tokenizer::from_json(file.dump(), ids);
  if (!tokenizer) FAIL(message(tokenizer.error()));
  return *std::move(tokenizer);
}

Tokenizer tokenizer_from(const GgufVocabulary& vocabulary) {
  auto tokenizer = Tokenizer::from_gguf(vocabulary);
  if (!tokenizer) FAIL(message(tokenizer.error()));
  return *std::move(tokenizer);
}

Ids encoded(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  auto ids = tokenizer.encode(text, options);
  if (!ids) FAIL(message(ids.error()));
  return *std::move(ids);
}

std::string decoded(const Tokenizer& tokenizer, const Ids& ids, ShowSpecial show = ShowSpecial::yes) {
  auto text = tokenizer.decode(ids, show);
  if (!text) FAIL(message(text.error()));
  return *std::move(text);
}

/// Byte-level BPE: the 256 bytes have ids 0 to 255, the merges' results follow, then <|end|>.
Json byte_level_file() {
  Json vocabulary;
  for (int byte = 0; byte < 256; ++byte) vocabulary[byte_to_alphabet(static_cast<unsigned char>(byte))] = byte;
  // Ids 256 to 262; Ġ is U+0120, the space.
  const std::vector<std::pair<std::string, std::string>> merges = {
      {"h", "e"}, {"l", "l"}, {"\xC4\xA0", "w"}, {"he", "ll"}, {"\xC4\xA0w", "o"}, {"1", "2"}, {"12", "3"}};
  Json list = Json::array();
  for (const auto& [left, right] : merges) {
    vocabulary[left + right] = 256 + list.size();
    list.push_back(left + " " + right);
  }
  Json file;
  file["added_tokens"] = {{{"id", 263}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}}};
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  file["decoder"] = {{"type", "ByteLevel"}};
  file["model"] = {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", list}};
  return file;
}

GgufVocabulary byte_level_metadata(const std::string& pre) {
  const Json file = byte_level_file();
  GgufVocabulary metadata;
  metadata.model = "gpt2";
  metadata.pre = pre;
  metadata.tokens.resize(264, "<|end|>");
  metadata.token_types.resize(264, 1);
  metadata.token_types.back() = 3;
  for (const auto& [text, id] : file["model"]["vocab"].items()) metadata.tokens[id.get<std::size_t>()] = text;
  metadata.merges = file["model"]["merges"].get<std::vector<std::string>>();
  return metadata;
}

const std::string mark = "\xE2\x96\x81";

/// SentencePiece-style: <unk> <s> </s>, 256 byte tokens from id 3, characters and words from id 259, best first.
GgufVocabulary sentence_piece_metadata() {
  GgufVocabulary metadata;
  metadata.model = "llama";
  const auto add = [&](std::string text, std::int32_t type, float score) {
    metadata.tokens.push_back(std::move(text));
    metadata.token_types.push_back(type);
    metadata.scores.push_back(score);
  };
  add("<unk>", 2, 0);
  add("<s>", 3, 0);
  add("</s>", 3, 0);
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    add(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">", 6, 0);
  }
  float score = 0;
  for (const char* word : {"el", "_h", "lo", "_w", "or", "_hel", "ld", "_hello", "_wor", "_world", "__"}) {
    std::string text(word);
    for (std::size_t at = 0; (at = text.find('_', at)) != std::string::npos;) text.replace(at, 1, mark);
    add(text, 1, score--);
  }
  for (const std::string& letter : {mark, std::string("h"), std::string("e"), std::string("l"), std::string("o"),
                                    std::string("w"), std::string("r"), std::string("d")}) {
    add(letter, 1, score--);
  }
  return metadata;
}

/// The same tokenizer as a tokenizer.json: each way to cut a token is a merge, in the order of the scores.
Json sentence_piece_file() {
  const GgufVocabulary metadata = sentence_piece_metadata();
  Json vocabulary;
  for (std::size_t id = 0; id < metadata.tokens.size(); ++id) vocabulary[metadata.tokens[id]] = id;
  Json merges = Json::array();
  for (std::size_t id = 259; id < metadata.tokens.size(); ++id) {
    const std::string& text = metadata.tokens[id];
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      const std::string left = text.substr(0, cut);
      const std::string right = text.substr(cut);
      if (vocabulary.contains(left) && vocabulary.contains(right)) merges.push_back({left, right});
    }
  }
  Json file;
  for (int id = 0; id < 3; ++id) {
    const std::string& text = metadata.tokens[static_cast<std::size_t>(id)];
    file["added_tokens"].push_back({{"id", id}, {"content", text}, {"special", true}, {"normalized", false}});
  }
  file["normalizer"] = {{"type", "Sequence"},
                        {"normalizers",
                         {{{"type", "Prepend"}, {"prepend", mark}},
                          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}}}}};
  file["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}};
  file["decoder"] = {{"type", "Sequence"},
                     {"decoders",
                      {{{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}},
                       {{"type", "ByteFallback"}},
                       {{"type", "Fuse"}},
                       {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  file["model"] = {{"type", "BPE"},         {"vocab", vocabulary}, {"merges", merges},
                   {"byte_fallback", true}, {"fuse_unk", true},    {"unk_token", "<unk>"}};
  return file;
}

std::string random_bytes(std::mt19937& random, std::size_t size, std::string_view alphabet = {}) {
  std::string text;
  for (std::size_t i = 0; i < size; ++i) {
    const auto any = static_cast<unsigned>(random());
    text += alphabet.empty() ? static_cast<char>(any & 0xFFU) : alphabet[any % alphabet.size()];
  }
  return text;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids, StreamDecoder::Start start, ShowSpecial show) {
  StreamDecoder stream(tokenizer, start, show);
  std::string text;
  std::vector<std::size_t> ends;
  for (const std::int32_t id : ids) {
    const auto piece = stream.push(id);
    if (!piece) FAIL(message(piece.error()));
    text += *piece;
    ends.push_back(text.size());
  }
  text += stream.finish();
  // What is handed out never ends inside a character.
  std::size_t at = 0;
  for (const std::size_t end : ends) {
    while (at < end) at += character_length(text, at);
    if (at != end) FAIL("a character was cut");
  }
  return text;
}

}  // namespace

TEST_CASE("byte-level BPE merges inside words only") {
  const Tokenizer tokenizer = tokenizer_from(byte_level_file());
  CHECK(tokenizer.vocabulary_size() == 264);
  CHECK(encoded(tokenizer, "hello") == Ids{259, 'o'});
  CHECK(encoded(tokenizer, "hello world") == Ids{259, 'o', 260, 'r', 'l', 'd'});
  CHECK(encoded(tokenizer, "  world") == Ids{' ', 260, 'r', 'l', 'd'});
  CHECK(encoded(tokenizer, "he'llo") == Ids{256, '\'', 257, 'o'});
  CHECK(encoded(tokenizer, "").empty());
  CHECK(tokenizer.find("\xC4\xA0wo") == 260);
  CHECK_FALSE(tokenizer.find("absent"));
  CHECK_FALSE(tokenizer.bos());
  CHECK(tokenizer.prefix().empty());
}

TEST_CASE("byte-level BPE gives any bytes back") {
  std::mt19937 random(11);
  const Tokenizer tokenizers[] = {tokenizer_from(byte_level_file()), tokenizer_from(byte_level_metadata("llama-bpe"))};
  for (std::size_t size = 0; size < 300; ++size) {
    const std::string text = random_bytes(random, size, size % 3 == 0 ? "" : "hel wo123\n\xC3\xA9\xFF<|>");
    CAPTURE(size);
    for (const Tokenizer& tokenizer : tokenizers) {
      const Ids ids = encoded(tokenizer, text);
      CHECK(decoded(tokenizer, ids) == text);
      CHECK(streamed(tokenizer, ids, StreamDecoder::Start::of_text, ShowSpecial::yes) == text);
    }
  }
}

TEST_CASE("special tokens are found only on request, and hidden on request") {
  const Tokenizer tokenizer = tokenizer_from(byte_level_file(), {std::nullopt, 263});
  CHECK(encoded(tokenizer, "he<|end|>ll", with_special) == Ids{256, 263, 257});
  CHECK(encoded(tokenizer, "<|end|>").size() == 7);
  CHECK(tokenizer.eos() == 263);
  CHECK(tokenizer.is_special(263));
  CHECK_FALSE(tokenizer.is_special(256));
  CHECK_FALSE(tokenizer.is_special(-1));
  CHECK_FALSE(tokenizer.is_special(264));
  CHECK(decoded(tokenizer, {256, 263, 257}) == "he<|end|>ll");
  CHECK(decoded(tokenizer, {256, 263, 257}, ShowSpecial::no) == "hell");
  CHECK(streamed(tokenizer, {256, 263, 257}, StreamDecoder::Start::of_text, ShowSpecial::no) == "hell");
}

TEST_CASE("pre-tokenizers of tokenizer.json and their names in GGUF agree") {
  const auto byte_level = [](bool uses_regex) {
    return Json{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", uses_regex}};
  };
  const auto sequence = [](Json first, Json second) {
    return Json{{"type", "Sequence"}, {"pretokenizers", Json::array({std::move(first), std::move(second)})}};
  };
  const char* three_digits =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const Json split = {{"type", "Split"}, {"pattern", {{"Regex", three_digits}}}, {"behavior", "Isolated"}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  struct Case {
    const char* name;
    Json pre_tokenizer;
    Ids ids_of_1234;
  };
  const Case cases[] = {{"gpt-2", byte_level(true), {262, '4'}},
                        {"llama-bpe", sequence(split, byte_level(false)), {262, '4'}},
                        {"smollm", sequence(digits, byte_level(true)), {'1', '2', '3', '4'}}};
  std::mt19937 random(3);
  for (const Case& entry : cases) {
    CAPTURE(entry.name);
    Json file = byte_level_file();
    file["pre_tokenizer"] = entry.pre_tokenizer;
    const Tokenizer from_json = tokenizer_from(file);
    const Tokenizer from_gguf = tokenizer_from(byte_level_metadata(entry.name));
    CHECK(encoded(from_json, "1234") == entry.ids_of_1234);
    for (int round = 0; round < 100; ++round) {
      const std::string text = random_bytes(random, 40, "hel wo123\n\r\t'.\xC3\xA9");
      CHECK(encoded(from_json, text) == encoded(from_gguf, text));
    }
  }
}

TEST_CASE("SentencePiece-style BPE: merges, byte fallback, and the space before a text") {
  const Tokenizer tokenizers[] = {tokenizer_from(sentence_piece_file()), tokenizer_from(sentence_piece_metadata())};
  for (const Tokenizer& tokenizer : tokenizers) {
    const auto id = [&](const std::string& token) { return tokenizer.find(token).value_or(-1); };
    const std::int32_t hello = id(mark + "hello");
    const std::int32_t world = id(mark + "world");
    CHECK(encoded(tokenizer, "hello world") == Ids{1, hello, world});
    CHECK(encoded(tokenizer, "hello world", unframed) == Ids{hello, world});
    CHECK(encoded(tokenizer, "  world", unframed) == Ids{id(mark + mark), world});
    CHECK(encoded(tokenizer, "", unframed).empty());
    CHECK(encoded(tokenizer, "") == Ids{1});
    // U+00E9 is C3 A9.
    CHECK(encoded(tokenizer, "\xC3\xA9\xFF", unframed) == Ids{id(mark), id("<0xC3>"), id("<0xA9>"), id("<0xFF>")});
    CHECK(encoded(tokenizer, "<s>hello", with_special) == Ids{1, 1, hello});
    CHECK(decoded(tokenizer, {1, hello, world}, ShowSpecial::no) == "hello world");
    CHECK(decoded(tokenizer, {1, hello, world}) == "<s> hello world");
    CHECK(tokenizer.bos() == 1);
    CHECK(tokenizer.unknown() == 0);
    CHECK(tokenizer.is_special(0));
    CHECK(std::vector(tokenizer.prefix().begin(), tokenizer.prefix().end()) == Ids{1});
  }
  CHECK(tokenizers[1].eos() == 2);
}

TEST_CASE("SentencePiece-style BPE: merges and scores agree, and any bytes come back") {
  const Tokenizer from_json = tokenizer_from(sentence_piece_file());
  const Tokenizer from_gguf = tokenizer_from(sentence_piece_metadata());
  std::mt19937 random(5);
  for (std::size_t size = 0; size < 300; ++size) {
    const std::string text = random_bytes(random, size, size % 3 == 0 ? "" : "hello world \xE2\x96\x81\xC3\xA9\xFF");
    CAPTURE(size);
    const Ids ids = encoded(from_json, text);
    CHECK(encoded(from_gguf, text) == ids);
    // A mark in the text is the one thing that reads like a space.
    if (text.find(mark) == std::string::npos) CHECK(decoded(from_json, ids, ShowSpecial::no) == text);
    CHECK(streamed(from_json, ids, StreamDecoder::Start::of_text, ShowSpecial::no) ==
          decoded(from_json, ids, ShowSpecial::no));
  }
}

TEST_CASE("a stream hands out whole characters and keeps spaces between words") {
  const Tokenizer bytes = tokenizer_from(byte_level_file());
  StreamDecoder stream(bytes);
  const std::string smile = "\xF0\x9F\x98\x80";
  for (std::size_t i = 0; i < 4; ++i) {
    const auto piece = stream.push(static_cast<unsigned char>(smile[i]));
    REQUIRE(piece);
    CHECK(*piece == (i == 3 ? smile : ""));
  }
  REQUIRE(stream.push(0xE2));
  CHECK(stream.finish() == "\xE2");
  CHECK(stream.finish().empty());
  CHECK_FALSE(stream.push(-1));
  CHECK_FALSE(stream.push(264));

  const Tokenizer pieces = tokenizer_from(sentence_piece_metadata());
  const Ids world = encoded(pieces, "world", unframed);
  CHECK(streamed(pieces, world, StreamDecoder::Start::of_text, ShowSpecial::no) == "world");
  CHECK(streamed(pieces, world, StreamDecoder::Start::continues, ShowSpecial::no) == " world");
}

TEST_CASE("a character that is no token can be part of one") {
  GgufVocabulary metadata;
  metadata.model = "llama";
  metadata.add_space_prefix = false;
  metadata.add_bos = false;
  metadata.tokens = {"<unk>", "<s>", "</s>", "ab", "a", "<0x62>"};
  metadata.token_types = {2, 3, 3, 1, 1, 6};
  metadata.scores = {0, 0, 0, -1, -2, 0};
  const Tokenizer tokenizer = tokenizer_from(metadata);
  CHECK(encoded(tokenizer, "aab") == Ids{4, 3});
  CHECK(encoded(tokenizer, "ba") == Ids{5, 4});            // the byte's token
  CHECK(encoded(tokenizer, "xyabzb") == Ids{0, 3, 0, 5});  // neighbouring unknown characters are one unknown token
}

TEST_CASE("control tokens are no product of merging") {
  GgufVocabulary metadata = sentence_piece_metadata();
  for (const char* text : {"<", "s", ">", "<s"}) {
    metadata.tokens.emplace_back(text);
    metadata.token_types.push_back(1);
    metadata.scores.push_back(-50);
  }
  const Tokenizer tokenizer = tokenizer_from(metadata);
  const Ids ids = encoded(tokenizer, "<s>", unframed);
  CHECK(ids == Ids{*tokenizer.find(mark), *tokenizer.find("<s"), *tokenizer.find(">")});
}

TEST_CASE("user-defined tokens are found in any text") {
  GgufVocabulary metadata = sentence_piece_metadata();
  metadata.tokens.push_back(mark + mark + "x");
  metadata.token_types.push_back(4);
  metadata.scores.push_back(0);
  const Tokenizer tokenizer = tokenizer_from(metadata);
  const auto added = static_cast<std::int32_t>(metadata.tokens.size()) - 1;
  CHECK(encoded(tokenizer, "hello  x", unframed) == Ids{*tokenizer.find(mark + "hello"), added});
  CHECK(decoded(tokenizer, {added, added}) == " x  x");
}

TEST_CASE("a vocabulary without some bytes leaves them out") {
  Json file = byte_level_file();
  file["model"]["vocab"].erase(byte_to_alphabet(0x04));
  const Tokenizer tokenizer = tokenizer_from(file);
  CHECK(encoded(tokenizer, "he\x04ll") == Ids{256, 257});
  CHECK(decoded(tokenizer, {256, 0x04}) == "he");  // an id that the vocabulary skips
}

TEST_CASE("frames: begin and end tokens") {
  GgufVocabulary metadata = byte_level_metadata("gpt-2");
  metadata.bos = 263;
  metadata.eos = 263;
  CHECK(encoded(tokenizer_from(metadata), "he") == Ids{256});
  metadata.add_bos = true;
  CHECK(encoded(tokenizer_from(metadata), "he") == Ids{263, 256});
  metadata.add_eos = true;
  CHECK(encoded(tokenizer_from(metadata), "he") == Ids{263, 256, 263});
  CHECK(encoded(tokenizer_from(metadata), "he", unframed) == Ids{256});
  // LLaMA 3's files expect BOS without saying so.
  metadata.add_bos.reset();
  metadata.add_eos.reset();
  metadata.pre = "llama-bpe";
  CHECK(encoded(tokenizer_from(metadata), "he") == Ids{263, 256});
  metadata.add_bos = false;
  CHECK(encoded(tokenizer_from(metadata), "he") == Ids{256});
}

TEST_CASE("a word that is a token needs no merges where the file says so") {
  Json file = byte_level_file();
  file["model"]["vocab"]["world"] = 264;
  CHECK(encoded(tokenizer_from(file), "world") == Ids{'w', 'o', 'r', 'l', 'd'});
  file["model"]["ignore_merges"] = true;
  CHECK(encoded(tokenizer_from(file), "world") == Ids{264});
}

TEST_CASE("malformed tokenizer.json files are errors") {
  using cbq::Errc;
  struct Case {
    const char* what;
    Errc code;
    std::function<void(Json&)> damage;
  };
  const Case cases[] = {
      {"no model", Errc::bad_file, [](Json& f) { f.erase("model"); }},
      {"model is no object", Errc::bad_file, [](Json& f) { f["model"] = 3; }},
      {"other model", Errc::unsupported, [](Json& f) { f["model"]["type"] = "Unigram"; }},
      {"model type is no text", Errc::bad_file, [](Json& f) { f["model"]["type"] = 1; }},
      {"no vocabulary", Errc::bad_file, [](Json& f) { f["model"].erase("vocab"); }},
      {"empty vocabulary", Errc::bad_file,
       [](Json& f) {
         f["model"]["vocab"] = Json::object();
         f["model"]["merges"] = Json::array();
         f.erase("added_tokens");
       }},
      {"vocabulary is a list", Errc::bad_file, [](Json& f) { f["model"]["vocab"] = Json::array(); }},
      {"id is a text", Errc::bad_file, [](Json& f) { f["model"]["vocab"]["x"] = "1"; }},
      {"id is a fraction", Errc::bad_file, [](Json& f) { f["model"]["vocab"]["x"] = 1.5; }},
      {"id below zero", Errc::bad_file, [](Json& f) { f["model"]["vocab"]["x"] = -1; }},
      {"id far too large", Errc::bad_file, [](Json& f) { f["model"]["vocab"]["x"] = 2000000000; }},
      {"id beyond 63 bits", Errc::bad_file, [](Json& f) { f["model"]["vocab"]["x"] = 18446744073709551615U; }},
      {"id twice", Errc::bad_file, [](Json& f) { f["model"]["vocab"]["xyz"] = 5; }},
      {"no merges", Errc::bad_file, [](Json& f) { f["model"].erase("merges"); }},
      {"merge of an unknown token", Errc::bad_file, [](Json& f) { f["model"]["merges"].push_back("xyz h"); }},
      {"merge into an unknown token", Errc::bad_file, [](Json& f) { f["model"]["merges"].push_back("h l"); }},
      {"merge of one", Errc::bad_file, [](Json& f) { f["model"]["merges"].push_back("h"); }},
      {"merge of three", Errc::bad_file, [](Json& f) { f["model"]["merges"].push_back("h e l"); }},
      {"merge of nothing", Errc::bad_file, [](Json& f) { f["model"]["merges"].push_back(" h"); }},
      {"merge of three in a list", Errc::bad_file,
       [](Json& f) {
         f["model"]["merges"].push_back({"h", "e", "l"});
       }},
      {"merge is a number", Errc::bad_file, [](Json& f) { f["model"]["merges"].push_back(7); }},
      {"unknown token unknown", Errc::bad_file, [](Json& f) { f["model"]["unk_token"] = "<unk>"; }},
      {"suffixes", Errc::unsupported, [](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }},
      {"flag is a text", Errc::bad_file, [](Json& f) { f["model"]["byte_fallback"] = "yes"; }},
      {"added token without id", Errc::bad_file, [](Json& f) { f["added_tokens"][0].erase("id"); }},
      {"added token with a used id", Errc::bad_file, [](Json& f) { f["added_tokens"][0]["id"] = 4; }},
      {"added token below zero", Errc::bad_file, [](Json& f) { f["added_tokens"][0]["id"] = -4; }},
      {"added token with another id", Errc::bad_file, [](Json& f) { f["added_tokens"][0]["content"] = "he"; }},
      {"added token of whole words", Errc::unsupported, [](Json& f) { f["added_tokens"][0]["single_word"] = true; }},
      {"added tokens are no list", Errc::bad_file, [](Json& f) { f["added_tokens"] = "x"; }},
      {"other normalizer", Errc::unsupported,
       [](Json& f) {
         f["normalizer"] = {{"type", "Lowercase"}};
       }},
      {"normalizer without type", Errc::bad_file, [](Json& f) { f["normalizer"] = Json::object(); }},
      {"Replace without pattern", Errc::bad_file,
       [](Json& f) {
         f["normalizer"] = {{"type", "Replace"}, {"content", ""}};
       }},
      {"other pre-tokenizer", Errc::unsupported,
       [](Json& f) {
         f["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
       }},
      {"empty sequence member", Errc::bad_file,
       [](Json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"}};
       }},
      {"expression does not compile", Errc::bad_file,
       [](Json& f) {
         f["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}};
       }},
      {"other behaviour", Errc::unsupported,
       [](Json& f) {
         f["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Sideways"}};
       }},
      {"ByteLevel not last", Errc::unsupported,
       [](Json& f) {
         const Json inner = f["pre_tokenizer"];
         f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", Json::array({inner, inner})}};
       }},
      {"other post-processor", Errc::unsupported,
       [](Json& f) {
         f["post_processor"] = {{"type", "RobertaProcessing"}};
       }},
      {"template with an unknown token", Errc::bad_file,
       [](Json& f) {
         f["post_processor"] = {{"type", "TemplateProcessing"},
                                {"single", Json::array({{{"SpecialToken", {{"id", "<s>"}}}}})}};
       }},
      {"template with an id out of range", Errc::bad_file,
       [](Json& f) {
         f["post_processor"] = {{"type", "TemplateProcessing"},
                                {"single", Json::array({{{"SpecialToken", {{"id", "<s>"}}}}})},
                                {"special_tokens", {{"<s>", {{"ids", {264}}}}}}};
       }},
      {"other decoder", Errc::unsupported,
       [](Json& f) {
         f["decoder"] = {{"type", "WordPiece"}};
       }},
      {"is a list", Errc::bad_file, [](Json& f) { f = Json::array({1}); }},
  };
  for (const Case& entry : cases) {
    CAPTURE(entry.what);
    Json file = byte_level_file();
    entry.damage(file);
    const auto tokenizer = Tokenizer::from_json(file.dump());
    REQUIRE_FALSE(tokenizer);
    CHECK(tokenizer.error().code == entry.code);
    CHECK(message(tokenizer.error()).size() > 10);
  }
  CHECK_FALSE(Tokenizer::from_json(byte_level_file().dump(), {264, std::nullopt}));
  CHECK_FALSE(Tokenizer::from_json(byte_level_file().dump(), {std::nullopt, -1}));
}

TEST_CASE("text that is not JSON is an error") {
  const std::string file = byte_level_file().dump();
  for (std::size_t size = 0; size < file.size(); size += 1 + size / 7) {
    CHECK_FALSE(Tokenizer::from_json(std::string_view(file).substr(0, size)));
  }
  CHECK_FALSE(Tokenizer::from_json(std::string(100000, '[')));
  CHECK_FALSE(Tokenizer::from_json("{\"model\": {\"vocab\": {\"\xFF\": 0}, \"merges\": []}}"));
  const auto twice = Tokenizer::from_json(R"({"model": {"vocab": {"a": 0, "b": 1, "a": 2}, "merges": []}})");
  REQUIRE_FALSE(twice);
  CHECK(message(twice.error()).find("twice") != std::string::npos);
  CHECK(Tokenizer::from_json(R"({"model": {"vocab": {"a": 0, "b": 1}, "merges": []}})"));
}

TEST_CASE("malformed GGUF vocabularies are errors") {
  struct Case {
    const char* what;
    std::function<void(GgufVocabulary&)> damage;
  };
  const Case byte_level[] = {
      {"other model", [](GgufVocabulary& v) { v.model = "bert"; }},
      {"no model", [](GgufVocabulary& v) { v.model.clear(); }},
      {"other pre-tokenizer", [](GgufVocabulary& v) { v.pre = "somebody-elses"; }},
      {"no tokens",
       [](GgufVocabulary& v) {
         v.tokens.clear();
         v.token_types.clear();
         v.merges.clear();
       }},
      {"too few types", [](GgufVocabulary& v) { v.token_types.pop_back(); }},
      {"unknown type", [](GgufVocabulary& v) { v.token_types[3] = 7; }},
      {"token twice", [](GgufVocabulary& v) { v.tokens[1] = v.tokens[0]; }},
      {"merge of an unknown token", [](GgufVocabulary& v) { v.merges.emplace_back("qq h"); }},
      {"merge without space", [](GgufVocabulary& v) { v.merges.emplace_back("he"); }},
      {"bos out of range", [](GgufVocabulary& v) { v.bos = 264; }},
      {"eos below zero", [](GgufVocabulary& v) { v.eos = -1; }},
  };
  for (const Case& entry : byte_level) {
    CAPTURE(entry.what);
    GgufVocabulary vocabulary = byte_level_metadata("gpt-2");
    entry.damage(vocabulary);
    CHECK_FALSE(Tokenizer::from_gguf(vocabulary));
  }
  const Case sentence_piece[] = {
      {"no scores", [](GgufVocabulary& v) { v.scores.clear(); }},
      {"too many scores", [](GgufVocabulary& v) { v.scores.push_back(0); }},
      {"score is no number", [](GgufVocabulary& v) { v.scores.back() = std::numeric_limits<float>::quiet_NaN(); }},
      {"byte token <0x-1>", [](GgufVocabulary& v) { v.tokens[3] = "<0x-1>"; }},
      {"byte token <0x100>", [](GgufVocabulary& v) { v.tokens[3] = "<0x100>"; }},
      {"byte token without digits", [](GgufVocabulary& v) { v.tokens[3] = "x"; }},
      {"token twice", [](GgufVocabulary& v) { v.tokens.back() = v.tokens[0]; }},
      {"token too long", [](GgufVocabulary& v) { v.tokens.back() = std::string(2000, 'a'); }},
      {"unknown token out of range", [](GgufVocabulary& v) { v.unknown = 1 << 20; }},
  };
  for (const Case& entry : sentence_piece) {
    CAPTURE(entry.what);
    GgufVocabulary vocabulary = sentence_piece_metadata();
    entry.damage(vocabulary);
    CHECK_FALSE(Tokenizer::from_gguf(vocabulary));
  }
}

TEST_CASE("ids outside the vocabulary do not decode") {
  const Tokenizer tokenizer = tokenizer_from(byte_level_file());
  for (const std::int32_t id :
       {-1, 264, std::numeric_limits<std::int32_t>::max(), std::numeric_limits<std::int32_t>::min()}) {
    const auto text = tokenizer.decode(Ids{256, id});
    REQUIRE_FALSE(text);
    CHECK(text.error().code == cbq::Errc::bad_argument);
    CHECK_FALSE(tokenizer.bytes(id));
  }
}

#if defined(CBQ_EXAMPLE_MODELS)
TEST_CASE("the embedded model's tokenizer gives the ids of the reference") {
  const auto content = [](const char* name) {
    std::ifstream file(std::string(CBQ_EXAMPLE_MODELS "/pocket-llama/") + name, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
  };
  const Json reference = Json::parse(content("reference.json"));
  const auto loaded = Tokenizer::from_json(content("tokenizer.json"), {0, 0});
  if (!loaded) FAIL(message(loaded.error()));
  const Tokenizer& tokenizer = *loaded;
  CHECK(tokenizer.vocabulary_size() == 1024);
  CHECK(tokenizer.bos() == 0);
  CHECK(tokenizer.prefix().empty());

  const auto& probe = reference["probe"];
  const auto& greedy = reference["greedy"];
  const auto probe_text = probe["text"].get<std::string>();
  const auto greedy_text = greedy["text"].get<std::string>();
  const auto greedy_ids = greedy["ids"].get<Ids>();
  CHECK(encoded(tokenizer, probe_text) == probe["ids"].get<Ids>());
  CHECK(decoded(tokenizer, probe["ids"].get<Ids>()) == probe_text);
  CHECK(decoded(tokenizer, greedy_ids) == greedy_text);
  CHECK(streamed(tokenizer, greedy_ids, StreamDecoder::Start::of_text, ShowSpecial::yes) == greedy_text);
  const Ids prompt = encoded(tokenizer, greedy["prompt"].get<std::string>());
  REQUIRE(prompt.size() < greedy_ids.size());
  CHECK(std::equal(prompt.begin(), prompt.end(), greedy_ids.begin()));
}
#endif

namespace {

GgufVocabulary vocabulary_from(const Json& file, SpecialIds ids, std::size_t size) {
  auto vocabulary = vocabulary_of_json(file.dump(), ids, size);
  if (!vocabulary) FAIL(message(vocabulary.error()));
  return *std::move(vocabulary);
}

std::string refusal(const Json& file, SpecialIds ids = {}, std::size_t size = 1000) {
  const auto vocabulary = vocabulary_of_json(file.dump(), ids, size);
  return vocabulary ? "none" : message(vocabulary.error());
}

bool says(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("A byte-level tokenizer.json in GGUF's words") {
  Json file = byte_level_file();
  const GgufVocabulary vocabulary = vocabulary_from(file, {.bos = 263, .eos = 263}, 266);
  CHECK(vocabulary.model == "gpt2");
  CHECK(vocabulary.pre == "gpt-2");
  CHECK(vocabulary.tokens.size() == 266);
  CHECK(vocabulary.tokens[256] == "he");
  CHECK(vocabulary.tokens[265] == "[PAD265]");
  CHECK(std::vector<std::int32_t>(vocabulary.token_types.end() - 4, vocabulary.token_types.end()) == Ids{1, 3, 5, 5});
  CHECK(vocabulary.merges.size() == 7);
  CHECK(vocabulary.merges[3] == "he ll");
  CHECK(vocabulary.bos == 263);
  CHECK(vocabulary.add_bos == false);
  const Json json = to_json(vocabulary);
  const auto again = cbq_llama::read_vocabulary(json);
  REQUIRE(again);
  CHECK(to_json(*again) == json);
  // Digits apart are SmolLM's, and so on: the expressions decide.
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Digits"}, {"individual_digits", true}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}}}};
  CHECK(vocabulary_from(file, {}, 264).pre == "smollm");
}

TEST_CASE("A tokenizer.json of SentencePiece's kind in GGUF's words cuts text as before") {
  const Json file = sentence_piece_file();
  const GgufVocabulary vocabulary = vocabulary_from(file, {}, 278);
  CHECK(vocabulary.model == "llama");
  CHECK(vocabulary.bos == 1);  // of the template
  CHECK(vocabulary.add_bos == true);
  CHECK(vocabulary.unknown == 0);
  CHECK(vocabulary.add_space_prefix == true);
  CHECK(vocabulary.token_types == sentence_piece_metadata().token_types);
  CHECK(encoded(tokenizer_from(vocabulary), "hello  world") == encoded(tokenizer_from(file), "hello  world"));
}

TEST_CASE("What GGUF has no words for in a tokenizer.json is refused") {
  CHECK(says(refusal(byte_level_file(), {}, 263), "beyond the model's vocabulary"));
  Json file = byte_level_file();
  file["pre_tokenizer"]["add_prefix_space"] = true;
  CHECK(says(refusal(file), "no name for this normalizer and pre-tokenizer"));
  file = byte_level_file();
  file["added_tokens"][0]["lstrip"] = true;
  CHECK(says(refusal(file), "<|end|>: GGUF has no tokens that take white space along"));
  file = sentence_piece_file();
  CHECK(says(refusal(file, {.bos = 2, .eos = {}}), "GGUF puts only BOS before"));
  // By ranks "hel" becomes h el, by scores also he l: merges that this file does not have.
  file = sentence_piece_file();
  file["model"]["merges"] = Json::array({{mark, "h"}, {"l", "o"}});
  CHECK(says(refusal(file), "would split text differently"));
  file["model"]["byte_fallback"] = false;
  CHECK(says(refusal(file), "byte fallback"));
}
