// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/safetensors.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <random>
#include <string>
#include <vector>

#include "support/files.hpp"

using cbq::Dtype;
using cbq::Errc;
using cbq::Safetensors;
using support::ByteBuilder;
using support::message;

namespace {

std::vector<std::byte> file_bytes(std::string_view header, std::size_t data_size) {
  ByteBuilder builder;
  builder.counted(header);
  for (std::size_t i = 0; i < data_size; ++i) builder.add(static_cast<unsigned char>(i));
  return builder.bytes();
}

// The message for a file of that header and so much data; the bytes end at a guard page.
std::string outcome(std::string_view header, std::size_t data_size) {
  const support::GuardedBytes guarded(file_bytes(header, data_size));
  return message(Safetensors::parse(guarded.bytes()));
}

std::string entry(std::string_view name, std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return std::string("\"")
      .append(name)
      .append(R"(": {"dtype": ")")
      .append(dtype)
      .append(R"(", "shape": )")
      .append(shape)
      .append(R"(, "data_offsets": )")
      .append(offsets)
      .append("}");
}

std::string outcome_of(std::string_view dtype, std::string_view shape, std::string_view offsets,
                       std::size_t data_size) {
  return outcome("{" + entry("w", dtype, shape, offsets) + "}", data_size);
}

const std::string good_header = "{\"__metadata__\": {\"format\": \"pt\"}, " + entry("b", "F16", "[2, 3]", "[4, 16]") +
                                ", " + entry("a", "I32", "[]", "[0, 4]") + ", " +
                                entry("empty", "F32", "[0, 7]", "[4, 4]") + "}    ";

using Catch::Matchers::ContainsSubstring;

}  // namespace

TEST_CASE("a file is its tensors, sorted by name") {
  const support::GuardedBytes guarded(file_bytes(good_header, 16));
  auto parsed = Safetensors::parse(guarded.bytes());
  REQUIRE(parsed);
  const Safetensors file = std::move(*parsed);  // views of names survive a move
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.tensors()[0].name == "a");
  CHECK(file.tensors()[2].name == "empty");
  const cbq::TensorView* b = file.find("b");
  REQUIRE(b != nullptr);
  CHECK(b->dtype == Dtype::f16);
  CHECK(cbq::same_shape(b->shape, {.rank = 2, .sizes = {2, 3}}));
  CHECK(b->bytes.size() == 12);
  CHECK(b->bytes[0] == std::byte{4});
  CHECK(b->bytes.data() + 12 == guarded.bytes().data() + guarded.bytes().size());
  CHECK(file.find("a")->shape.rank == 0);
  CHECK(file.find("empty")->bytes.empty());
  CHECK(file.find("c") == nullptr);
  REQUIRE(file.metadata().size() == 1);
  CHECK(file.metadata()[0].second == "pt");
}

TEST_CASE("a file without tensors is a file") {
  CHECK(outcome("{}", 0) == "success");
  CHECK(outcome("{\"__metadata__\": {}}", 0) == "success");
}

TEST_CASE("header length: missing, beyond the file, beyond the limit, wrapping") {
  for (std::size_t size = 0; size < 8; ++size) {
    CHECK_THAT(message(Safetensors::parse(std::vector<std::byte>(size))), ContainsSubstring("too short"));
  }
  for (const std::uint64_t length : {std::uint64_t{3}, std::uint64_t{99'999'999}, std::uint64_t{100'000'001},
                                     ~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 63}) {
    const support::GuardedBytes guarded(ByteBuilder().add(length).text("{}").bytes());
    const auto parsed = Safetensors::parse(guarded.bytes());
    CAPTURE(length);
    REQUIRE_FALSE(parsed);
    CHECK_THAT(message(parsed), ContainsSubstring(std::to_string(length)));
  }
  CHECK_FALSE(Safetensors::parse(file_bytes("{}", 0), {.header_bytes = 1}));
}

TEST_CASE("header text: not JSON, not an object, bad UTF-8, nested deeply") {
  for (const char* header :
       {"", " {}", "[]", "{", "{}}", "{\"\xff\": 1}", "{\"a\": 1}", "{\"a\": []}", "{\"a\": null}",
        "{\"__metadata__\": 3}", "{\"__metadata__\": {\"a\": 3}}", "{\"__metadata__\": {\"a\": {}}}"}) {
    CAPTURE(header);
    CHECK(outcome(header, 0) != "success");
  }
  CHECK_THAT(outcome("{\"w\": " + std::string(100'000, '['), 0), ContainsSubstring("nested too deeply"));
  CHECK_THAT(outcome(std::string_view("{}\0{}", 5), 0), ContainsSubstring("NUL"));
}

TEST_CASE("duplicate name: the same tensor twice") {
  const std::string twice = "{" + entry("w", "U8", "[4]", "[0, 4]") + "," + entry("w", "U8", "[4]", "[4, 8]") + "}";
  CHECK_THAT(outcome(twice, 8), ContainsSubstring("the same key twice"));
}

TEST_CASE("entries: missing, wrong and unknown members") {
  const char* headers[] = {R"({"w": {"shape": [4], "data_offsets": [0, 4]}})",
                           R"({"w": {"dtype": "U8", "data_offsets": [0, 4]}})",
                           R"({"w": {"dtype": "U8", "shape": [4]}})",
                           R"({"w": {"dtype": 3, "shape": [4], "data_offsets": [0, 4]}})",
                           R"({"w": {"dtype": "U8", "shape": 4, "data_offsets": [0, 4]}})",
                           R"({"w": {"dtype": "U8", "shape": ["4"], "data_offsets": [0, 4]}})",
                           R"({"w": {"dtype": "U8", "shape": [4], "data_offsets": 4}})",
                           R"({"w": {"dtype": "U8", "shape": [4], "data_offsets": [4]}})",
                           R"({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 4]}})",
                           R"({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "stride": [1]}})"};
  for (const char* header : headers) {
    CAPTURE(header);
    CHECK_THAT(outcome(header, 4), ContainsSubstring("w: "));
  }
  CHECK_THAT(outcome_of("Q4", "[4]", "[0, 4]", 4), ContainsSubstring("unknown element type (got Q4"));
  CHECK_THAT(outcome_of("U8", "[1,1,1,1,1,1,1,1,4]", "[0, 4]", 4), ContainsSubstring("too many dimensions"));
}

TEST_CASE("numbers through double: floats, exponents and negatives are no sizes") {
  for (const char* number : {"4.0", "4e0", "-4", "-0", "18446744073709551620", "true", "null", "[4]"}) {
    CAPTURE(number);
    const std::string shape = std::string("[") + number + "]";
    const std::string offsets = std::string("[0, ") + number + "]";
    CHECK(outcome_of("U8", shape, "[0, 4]", 4) != "success");
    CHECK(outcome_of("U8", "[4]", offsets, 4) != "success");
  }
}

TEST_CASE("shape product wraps: exabyte tensors in small files") {
  for (const char* shape : {"[4294967296, 4294967296]", "[18446744073709551615, 2]", "[9223372036854775808, 2, 0]",
                            "[4611686018427387905]", "[2305843009213693952, 8]", "[9223372036854775808]"}) {
    CAPTURE(shape);
    CHECK_THAT(outcome_of("F32", shape, "[0, 4]", 4), ContainsSubstring("64 bits"));
  }
}

TEST_CASE("offsets: not the size of the tensor, beyond the file, backwards") {
  CHECK(outcome_of("F32", "[2]", "[0, 8]", 8) == "success");
  CHECK_THAT(outcome_of("F32", "[2]", "[0, 4]", 8),
             ContainsSubstring("shape x type (got 4 bytes, wanted 8 bytes for F32 [2])"));
  CHECK_THAT(outcome_of("F32", "[2]", "[0, 12]", 12), ContainsSubstring("shape x type"));
  CHECK_THAT(outcome_of("F32", "[2]", "[0, 8]", 7), ContainsSubstring("outside the data area"));
  CHECK_THAT(outcome_of("F32", "[2]", "[8, 0]", 8), ContainsSubstring("outside the data area"));
  CHECK_THAT(outcome_of("F32", "[2]", "[18446744073709551608, 0]", 8), ContainsSubstring("outside the data area"));
  CHECK_THAT(outcome_of("F32", "[2]", "[18446744073709551607, 18446744073709551615]", 8), ContainsSubstring("outside"));
  CHECK_THAT(outcome_of("F4", "[3]", "[0, 1]", 1), ContainsSubstring("whole byte"));
}

TEST_CASE("tiling: holes, overlaps, a late start, bytes after the last tensor") {
  const auto two = [](std::string_view a, std::string_view b, std::size_t size) {
    return outcome("{" + entry("a", "U8", "[4]", a) + "," + entry("b", "U8", "[4]", b) + "}", size);
  };
  CHECK(two("[0, 4]", "[4, 8]", 8) == "success");
  CHECK(two("[4, 8]", "[0, 4]", 8) == "success");
  CHECK_THAT(two("[0, 4]", "[5, 9]", 9),
             ContainsSubstring("b: a hole before a tensor (got data byte 5, wanted data byte 4)"));
  CHECK_THAT(two("[0, 4]", "[3, 7]", 7), ContainsSubstring("b: tensors overlap"));
  CHECK_THAT(two("[0, 4]", "[0, 4]", 4), ContainsSubstring("overlap"));
  CHECK_THAT(two("[1, 5]", "[5, 9]", 9), ContainsSubstring("a hole"));
  CHECK_THAT(two("[0, 4]", "[4, 8]", 9), ContainsSubstring("does not end with the last tensor"));
  CHECK_THAT(outcome("{}", 1), ContainsSubstring("does not end with the last tensor"));
}

TEST_CASE("more tensors than the limit") {
  CHECK(Safetensors::parse(file_bytes(good_header, 16), {.tensors = 4}));
  CHECK_FALSE(Safetensors::parse(file_bytes(good_header, 16), {.tensors = 2}));
}

TEST_CASE("truncated at every byte, a file is refused and nothing is read beyond it") {
  const std::vector<std::byte> whole = file_bytes(good_header, 16);
  REQUIRE(Safetensors::parse(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const support::GuardedBytes guarded{std::span(whole).first(size)};
    if (Safetensors::parse(guarded.bytes())) FAIL("accepted a file cut to " << size << " bytes");
  }
}

TEST_CASE("mutated files are refused or consistent") {
  const std::vector<std::byte> whole = file_bytes(good_header, 16);
  std::mt19937 random(7);
  std::size_t accepted = 0;
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::byte> mutated = whole;
    for (std::size_t n = random() % 3 + 1; n != 0; --n)
      mutated[random() % mutated.size()] = static_cast<std::byte>(random());
    const support::GuardedBytes guarded(mutated);
    const auto file = Safetensors::parse(guarded.bytes());
    if (!file) continue;
    ++accepted;
    unsigned sum = 0;
    for (const cbq::TensorView& tensor : file->tensors()) {
      if (tensor.bytes.size() != *cbq::byte_count(tensor.shape, tensor.dtype)) FAIL("a tensor of the wrong size");
      for (const std::byte b : tensor.bytes) sum += std::to_integer<unsigned>(b);
    }
    if (sum > 16 * 255) FAIL("more bytes than the file has");
  }
  CHECK(accepted > 0);
  CHECK(accepted < 5000);
}
