// SPDX-License-Identifier: Apache-2.0

#include "unicode.hpp"

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <string_view>
#include <vector>

using namespace cbq_llama;

namespace {

/// UTF-8 by the definition, for any value below 2^21 (also for those that are not characters).
std::string encoded(unsigned value) {
  const auto byte = [](unsigned bits) { return static_cast<char>(bits); };
  const auto tail = [&](unsigned shift) { return byte(0x80U | ((value >> shift) & 0x3FU)); };
  if (value < 0x80) return {byte(value)};
  if (value < 0x800) return {byte(0xC0U | (value >> 6U)), tail(0)};
  if (value < 0x10000) return {byte(0xE0U | (value >> 12U)), tail(6), tail(0)};
  return {byte(0xF0U | (value >> 18U)), tail(12), tail(6), tail(0)};
}

std::vector<std::string> matched(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::compile(pattern);
  REQUIRE(regex);
  const auto spans = regex->matches(text);
  REQUIRE(spans);
  std::vector<std::string> found;
  for (const Span& span : *spans) found.emplace_back(text.substr(span.begin, span.end - span.begin));
  return found;
}

using Found = std::vector<std::string>;

}  // namespace

TEST_CASE("utf8_length accepts each code point and nothing else") {
  std::size_t wrong = 0;
  for (unsigned value = 0; value < 0x200000; ++value) {
    const std::string text = encoded(value);
    const bool character = value < 0x110000 && !(value >= 0xD800 && value < 0xE000);
    if (utf8_length(text, 0) != (character ? text.size() : 0)) ++wrong;
    if (character_length(text, 0) != (character ? text.size() : 1)) ++wrong;
    // Cut anywhere, it is ill-formed; and only the cut form of a character may wait for more.
    for (std::size_t size = 1; size < text.size(); ++size) {
      const std::string_view cut = std::string_view(text).substr(0, size);
      if (utf8_length(cut, 0) != 0) ++wrong;
      if (character && without_unfinished_character(cut) != 0) ++wrong;
    }
    if (without_unfinished_character(text) != text.size()) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("ill-formed UTF-8 is seen as such") {
  for (const std::string_view text :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80",
        "\xF5\x80\x80\x80", "\xFF", "\xC3(", "\xE2\x82(", "\xF0\x9F\x98("}) {
    CHECK(utf8_length(text, 0) == 0);
    CHECK(character_length(text, 0) == 1);
  }
}

TEST_CASE("only an unfinished character waits") {
  CHECK(without_unfinished_character("") == 0);
  CHECK(without_unfinished_character("abc") == 3);
  CHECK(without_unfinished_character("a\xC3") == 1);
  CHECK(without_unfinished_character("a\xF0\x9F\x98") == 1);
  CHECK(without_unfinished_character("\xF0\x9F\x98\x80\xE2\x82") == 4);
  // No byte can make these well-formed: nothing to wait for.
  CHECK(without_unfinished_character("a\xFF") == 2);
  CHECK(without_unfinished_character("\x80\x80\x80") == 3);
  CHECK(without_unfinished_character("\xE0\x80") == 2);
  CHECK(without_unfinished_character("\xED\xA0") == 2);
}

TEST_CASE("the byte alphabet is one to one and keeps printable ASCII") {
  std::string all;
  std::string spelled;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string character = byte_to_alphabet(static_cast<unsigned char>(byte));
    CHECK(utf8_length(character, 0) == character.size());
    CHECK(alphabet_to_bytes(character) == std::string(1, static_cast<char>(byte)));
    all += static_cast<char>(byte);
    spelled += character;
  }
  CHECK(alphabet_to_bytes(spelled) == all);
  CHECK(byte_to_alphabet('A') == "A");
  CHECK(byte_to_alphabet(' ') == "\xC4\xA0");   // U+0120
  CHECK(byte_to_alphabet('\n') == "\xC4\x8A");  // U+010A
  CHECK(byte_to_alphabet(0xAD) == "\xC5\x83");  // U+0143, the last one
  CHECK_FALSE(alphabet_to_bytes(" "));
  CHECK_FALSE(alphabet_to_bytes("\xC5\x84"));  // one past the last
  CHECK_FALSE(alphabet_to_bytes("\xC2\xAD"));
  CHECK_FALSE(alphabet_to_bytes("A\xE2\x96\x81"));
  CHECK_FALSE(alphabet_to_bytes("\xFF"));
  CHECK(alphabet_to_bytes("") == "");
}

TEST_CASE("regular expressions know Unicode classes") {
  CHECK(matched(R"(\p{L}+)", "na\xC3\xAFve \xD0\xB4\xD0\xB0 7") == Found{"na\xC3\xAFve", "\xD0\xB4\xD0\xB0"});
  CHECK(matched(R"(\p{N})", "a1\xC2\xBD\xE2\x85\xA7") == Found{"1", "\xC2\xBD", "\xE2\x85\xA7"});
  CHECK(matched(R"(\s+(?!\S)|\s+)", "a   b\n") == Found{"  ", " ", "\n"});
  CHECK(matched(R"((?i:'s|'ll))", "it'S we'LL") == Found{"'S", "'LL"});
}

TEST_CASE("\\s is Unicode's White_Space") {
  CHECK(matched(R"(\s)", "\xC2\x85|\xC2\xA0|\xE3\x80\x80|\xE2\x80\xA8").size() == 4);
  CHECK(matched(R"(\s)", "\xE1\xA0\x8E|\xE2\x80\x8B").empty());  // U+180E, U+200B
  CHECK(matched(R"([^\s|])", "\xE1\xA0\x8E| |").size() == 1);
  CHECK(matched(R"(\S+)",
                "a \xE1\xA0\x8E"
                "b") == Found{"a",
                              "\xE1\xA0\x8E"
                              "b"});
  CHECK(matched(R"(\\s)", "\\s ") == Found{"\\s"});  // an escaped backslash before an s
}

TEST_CASE("classes within a class are united with it") {
  CHECK(matched("[a[bc]]+", "xabc]") == Found{"abc"});
  CHECK(matched("[^(\\s|[.,[!]])]+", "ab(c, d|e]f!") == Found{"ab", "c", "d", "e]f"});
  CHECK(matched("[]a]+[^]b]", "a]c") == Found{"a]c"});  // a bracket that comes first stands for itself
  CHECK(matched("[[:digit:]\\]]+", "a1]b") == Found{"1]"});
  CHECK(matched("\\[a]", "[a] a]") == Found{"[a]"});
  for (const char* other : {"[a[^b]]", "[a-z&&[bc]]", "[a-[b]]"}) {
    CAPTURE(other);
    REQUIRE_FALSE(Regex::compile(other));
    CHECK(Regex::compile(other).error().code == cbq::Errc::unsupported);
  }
}

TEST_CASE("matches stop at ill-formed bytes") {
  CHECK(matched("[^x]+",
                "ab\xFF"
                "cd\xC3") == Found{"ab", "cd"});
  CHECK(matched("[^x]+", "\xFF\xFE").empty());
  CHECK(matched("a", "").empty());
  CHECK(matched("b*", "abba") == Found{"bb"});  // empty matches are none
}

TEST_CASE("a literal pattern means itself") {
  for (const std::string text : {" ", ".*[a](b)\\d{2}|^$+?", "\xE2\x96\x81", "\\E", "a-b#c"}) {
    const auto regex = Regex::literal(text);
    REQUIRE(regex);
    const auto found = regex->matches("x" + text + "y" + text);
    REQUIRE(found);
    CHECK(found->size() == 2);
  }
}

TEST_CASE("a pattern that does not compile or does not end is an error") {
  for (const char* pattern : {"(", "[a", "\\p{Nonsense}", "*", "(?<", "\\C"}) {
    const auto regex = Regex::compile(pattern);
    REQUIRE_FALSE(regex);
    CHECK(regex.error().code == cbq::Errc::bad_file);
    CHECK_FALSE(regex.error().got.empty());
  }
  const auto exponential = Regex::compile("(a+)+(a+)+(a+)+(a+)+$");
  REQUIRE(exponential);
  std::string text(60, 'a');
  text += 'b';
  const auto found = exponential->matches(text);
  REQUIRE_FALSE(found);
  CHECK(found.error().code == cbq::Errc::bad_argument);
}
