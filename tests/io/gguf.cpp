// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gguf.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "support/gguf.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Errc;
using cbq::Gguf;
using cbq::GgufKind;
using cbq::GgufType;
using support::GgufBuilder;
using support::message;

namespace {

std::string outcome(const std::vector<std::byte>& bytes) {
  const support::GuardedBytes guarded(bytes);
  return message(Gguf::parse(guarded.bytes()));
}
std::string outcome(const GgufBuilder& file) {
  return outcome(file.bytes());
}

std::string outcome_of_tensor(const std::vector<std::uint64_t>& sizes, GgufType type, std::size_t data_size) {
  GgufBuilder file;
  file.info("w", sizes, static_cast<std::uint32_t>(type), 0);
  file.data.zeros(data_size);
  return outcome(file);
}

std::string outcome_of_alignment(std::uint32_t value, std::size_t padding) {
  GgufBuilder file;
  file.alignment = padding;
  file.key("general.alignment", GgufKind::u32).add(value);
  file.tensor("w", {1}, GgufType::f32, std::vector<std::byte>(4));
  return outcome(file);
}

// Decodes whatever the file holds; the sum keeps the loads.
double decode_all(const Gguf& file) {
  double sum = 0;
  for (const cbq::GgufTensor& tensor : file.tensors()) {
    if (tensor.bytes.size() > 4096 || tensor.shape.rank == 0 || tensor.shape.rank > 2) continue;
    const std::size_t rows = tensor.shape.rank == 2 ? tensor.shape.sizes[0] : 1;
    const std::size_t columns = tensor.shape.sizes[tensor.shape.rank - 1];
    if (rows == 0 || columns == 0) continue;
    std::vector<float> values(rows * columns);
    const auto done = copy_to_float(tensor, cbq::matrix_view(values.data(), rows, columns));
    if (done) sum += static_cast<double>(values.back());
  }
  return sum;
}

}  // namespace

TEST_CASE("a file is its tensors, shapes outermost first") {
  for (const std::uint32_t version : {2u, 3u}) {
    GgufBuilder builder = support::small_gguf();
    builder.version = version;
    const support::GuardedBytes guarded(builder.bytes());
    auto parsed = Gguf::parse(guarded.bytes());
    REQUIRE(parsed);
    const Gguf file = std::move(*parsed);
    CHECK(file.tensors().size() == 4);
    const cbq::GgufTensor* w = file.find("w.f32");
    REQUIRE(w != nullptr);
    CHECK(cbq::same_shape(w->shape, {.rank = 2, .sizes = {2, 3}}));
    float values[6] = {};
    REQUIRE(cbq::copy_to_float(*w, cbq::matrix_view(values, 2, 3)));
    CHECK(values[5] == 5.0f);
    REQUIRE(cbq::copy_rows_to_float(*w, 1, cbq::matrix_view(values, 1, 3)));
    CHECK(values[0] == 3.0f);
    CHECK_FALSE(cbq::copy_to_float(*w, cbq::matrix_view(values, 3, 2)));
    CHECK_FALSE(cbq::copy_rows_to_float(*w, 2, cbq::matrix_view(values, 1, 3)));
    REQUIRE(cbq::copy_to_float(*file.find("norm"), std::span<float>(values)));
    float quantized[128] = {};
    REQUIRE(cbq::copy_to_float(*file.find("w.q8_0"), cbq::matrix_view(quantized, 2, 64)));
    float last_row[64] = {};
    REQUIRE(cbq::copy_rows_to_float(*file.find("w.q8_0"), 1, cbq::matrix_view(last_row, 1, 64)));
    CHECK(std::equal(last_row, last_row + 64, quantized + 64));
    CHECK(cbq::copy_to_float(*file.find("empty"), cbq::matrix_view(values, 0, 32)));
    CHECK(file.find("other") == nullptr);
  }
}

TEST_CASE("magic, version, byte order") {
  GgufBuilder file = support::small_gguf();
  std::vector<std::byte> bytes = file.bytes();
  bytes[0] = std::byte{'g'};
  CHECK_THAT(outcome(bytes), ContainsSubstring("not a GGUF file"));
  for (const std::uint32_t version : {0u, 1u, 4u, 0x03000000u, 0x02000000u}) {
    file.version = version;
    CAPTURE(version);
    CHECK(Gguf::parse(file.bytes()).error().code == Errc::unsupported);
  }
  file.version = 0x03000000u;
  CHECK_THAT(outcome(file), ContainsSubstring("big-endian"));
}

TEST_CASE("alignment: zero, odd, huge, not u32") {
  CHECK(outcome_of_alignment(32, 32) == "success");
  CHECK(outcome_of_alignment(64, 64) == "success");
  CHECK(outcome_of_alignment(8, 8) == "success");
  for (const std::uint32_t bad : {0u, 3u, 24u, 0x80000000u, 0xffffffffu}) {
    CAPTURE(bad);
    CHECK_THAT(outcome_of_alignment(bad, 32), ContainsSubstring("not an alignment"));
  }
  GgufBuilder wrong;
  wrong.key("general.alignment", GgufKind::u64).add(std::uint64_t{32});
  CHECK_THAT(outcome(wrong), ContainsSubstring("wrong type (got u64, wanted u32)"));
}

TEST_CASE("tensor count beyond the file") {
  for (const std::uint64_t count : {std::uint64_t{2}, std::uint64_t{1} << 40, ~std::uint64_t{0}}) {
    GgufBuilder file;
    file.info("w", {}, 0, 0);
    file.tensors = count;
    CHECK_THAT(outcome(file), ContainsSubstring("more tensors than the file can hold") ||
                                  ContainsSubstring("ends too early") || ContainsSubstring("the tensor"));
  }
}

TEST_CASE("n_dims above four") {
  CHECK(outcome_of_tensor({1, 1, 1, 1}, GgufType::f32, 4) == "success");
  CHECK_THAT(outcome_of_tensor({1, 1, 1, 1, 1}, GgufType::f32, 4), ContainsSubstring("too many dimensions"));
  GgufBuilder file;
  file.tensors = 1;
  file.infos.counted("w").add(0xffffffffu).zeros(64);
  CHECK_THAT(outcome(file), ContainsSubstring("too many dimensions"));
}

TEST_CASE("product of sizes wraps") {
  const std::uint64_t large = std::uint64_t{1} << 32;
  CHECK(outcome_of_tensor({large, large}, GgufType::f32, 4) != "success");
  CHECK(outcome_of_tensor({std::uint64_t{1} << 62, 2}, GgufType::f32, 4) != "success");
  CHECK(outcome_of_tensor({std::uint64_t{1} << 62}, GgufType::f32, 4) != "success");
  CHECK(outcome_of_tensor({32, std::uint64_t{1} << 59}, GgufType::q8_0, 64) != "success");
  CHECK(outcome_of_tensor({~std::uint64_t{0}}, GgufType::i8, 64) != "success");
  CHECK(outcome_of_tensor({~std::uint64_t{0} - 30}, GgufType::i8, 64) != "success");
}

TEST_CASE("sum of padded sizes wraps") {
  GgufBuilder file;
  const std::uint64_t nearly = ~std::uint64_t{0} - 31;
  file.info("a", {nearly}, static_cast<std::uint32_t>(GgufType::i8), 0);
  file.info("b", {64}, static_cast<std::uint32_t>(GgufType::i8), nearly + 32);
  file.data.zeros(64);
  CHECK_THAT(outcome(file), ContainsSubstring("a: the tensor does not fit in the file"));
}

TEST_CASE("innermost size is no multiple of the block") {
  CHECK(outcome_of_tensor({32}, GgufType::q4_0, 32) == "success");
  CHECK_THAT(outcome_of_tensor({48}, GgufType::q4_0, 64), ContainsSubstring("multiple of 32"));
  CHECK_THAT(outcome_of_tensor({16, 2}, GgufType::q4_0, 64), ContainsSubstring("multiple of 32"));
  CHECK_THAT(outcome_of_tensor({32, 8}, GgufType::q4_k, 160), ContainsSubstring("multiple of 256"));
}

TEST_CASE("unknown element type") {
  for (const std::uint32_t type : {4u, 5u, 31u, 200u, 0xffffffffu}) {
    GgufBuilder file;
    file.info("w", {32}, type, 0);
    file.data.zeros(64);
    CAPTURE(type);
    CHECK_THAT(outcome(file), ContainsSubstring("unknown GGUF element type (got number " + std::to_string(type)));
  }
}

TEST_CASE("offsets: beyond the file, with gaps, overlapping, out of order") {
  const auto two = [](std::uint64_t first, std::uint64_t second, std::size_t size) {
    GgufBuilder file;
    file.info("a", {3}, static_cast<std::uint32_t>(GgufType::f32), first);
    file.info("b", {3}, static_cast<std::uint32_t>(GgufType::f32), second);
    file.data.zeros(size);
    return outcome(file);
  };
  CHECK(two(0, 32, 64) == "success");
  CHECK(two(0, 32, 44) == "success");  // the padding after the last tensor may be missing
  CHECK_THAT(two(0, 32, 43), ContainsSubstring("does not fit in the file"));
  CHECK_THAT(two(0, 32, 0), ContainsSubstring("does not fit in the file"));
  CHECK_THAT(two(0, 12, 64),
             ContainsSubstring("b: the tensor does not follow the one before it (got offset 12, wanted"));
  CHECK_THAT(two(0, 64, 128), ContainsSubstring("does not follow"));
  CHECK_THAT(two(32, 0, 64), ContainsSubstring("does not follow"));
  CHECK_THAT(two(0, 0, 64), ContainsSubstring("does not follow"));
  CHECK_THAT(two(~std::uint64_t{0}, 32, 64), ContainsSubstring("does not follow"));
}

TEST_CASE("duplicate and long tensor names") {
  GgufBuilder file;
  for (int i = 0; i < 2; ++i) file.tensor("w", {1}, GgufType::f32, std::vector<std::byte>(4));
  CHECK_THAT(outcome(file), ContainsSubstring("the same tensor twice"));
  for (const std::size_t length : {63u, 64u}) {
    GgufBuilder named;
    named.tensor(std::string(length, 'n'), {1}, GgufType::f32, std::vector<std::byte>(4));
    CHECK((outcome(named) == "success") == (length == 63));
  }
}

TEST_CASE("NaN in a scale is an error of the conversion") {
  std::vector<std::byte> block(34);
  block[1] = std::byte{0x7e};
  GgufBuilder file;
  file.tensor("w", {32}, GgufType::q8_0, block);
  const auto bytes = file.bytes();
  const auto parsed = Gguf::parse(bytes);
  REQUIRE(parsed);
  float values[32] = {};
  CHECK(cbq::copy_to_float(*parsed->find("w"), std::span<float>(values)).error().code == Errc::not_finite);
  CHECK(cbq::copy_to_float(*parsed->find("w"), std::span<float>(values), cbq::Finite::unchecked));
}

TEST_CASE("truncated at every byte, a file is refused") {
  const std::vector<std::byte> whole = support::small_gguf().bytes();
  const std::size_t padding = 8;  // after the last tensor
  REQUIRE(Gguf::parse(std::span(whole).first(whole.size() - padding)));
  for (std::size_t size = 0; size < whole.size() - padding; ++size) {
    const support::GuardedBytes guarded{std::span(whole).first(size)};
    if (Gguf::parse(guarded.bytes())) FAIL("accepted a file cut to " << size << " bytes");
  }
}

TEST_CASE("mutated files are refused or decoded within their bytes") {
  const std::vector<std::byte> whole = support::small_gguf().bytes();
  std::mt19937 random(11);
  std::size_t accepted = 0;
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    std::vector<std::byte> mutated = whole;
    for (std::size_t n = random() % 3 + 1; n != 0; --n)
      mutated[random() % mutated.size()] = static_cast<std::byte>(random());
    const support::GuardedBytes guarded(mutated);
    const auto file = Gguf::parse(guarded.bytes());
    if (!file) continue;
    ++accepted;
    sum += decode_all(*file);
    for (const cbq::GgufValue& value : file->metadata().values()) {
      sum += file->metadata().integer_array(value.key) || file->metadata().text_array(value.key) ? 1.0 : 0.0;
    }
  }
  CHECK(sum == sum);
  CHECK(accepted > 0);
  CHECK(accepted < 10000);
}

TEST_CASE("a file on disk is opened with its bytes") {
  const support::ScratchFolder folder;
  const auto bytes = support::small_gguf().bytes();
  support::write_text(folder / "m.gguf", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  for (const cbq::FileMode mode : {cbq::FileMode::map, cbq::FileMode::read}) {
    const auto file = cbq::GgufFile::open(folder / "m.gguf", mode);
    REQUIRE(file);
    CHECK(*file->content.metadata().text_value("general.architecture") == "llama");
  }
  support::write_text(folder / "short.gguf", "GGU");
  CHECK_THAT(message(cbq::GgufFile::open(folder / "short.gguf")), ContainsSubstring("short.gguf: byte 0"));
  CHECK(cbq::GgufFile::open(folder / "none.gguf").error().code == Errc::io);
}
