// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gguf_blocks.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "oracle/gguf.hpp"
#include "support/files.hpp"

using cbq::GgufType;

namespace {

// Where the half-precision numbers of a block lie.
std::vector<std::size_t> half_places(GgufType type) {
  switch (type) {
    case GgufType::q4_1:
    case GgufType::q5_1:
    case GgufType::q4_k:
      return {0, 2};
    case GgufType::q6_k:
      return {208};
    default:
      return {0};
  }
}

constexpr GgufType quantized_types[] = {GgufType::q8_0, GgufType::q4_0, GgufType::q4_1, GgufType::q5_0,
                                        GgufType::q5_1, GgufType::q4_k, GgufType::q6_k};

// Decodes the blocks up against a guard page and compares each element with the oracle. The decoders round at most
// three times, each by half a unit of the largest term.
void check_blocks(GgufType type, const std::vector<std::byte>& blocks) {
  const auto layout = cbq::gguf_layout(static_cast<std::uint32_t>(type));
  REQUIRE(layout);
  const support::GuardedBytes guarded(blocks);
  const std::size_t count = blocks.size() / layout->bytes * layout->block;
  std::vector<float> out(count + 1, 7.0f);
  REQUIRE(cbq::decode_gguf(type, guarded.bytes(), std::span(out).first(count)));
  CHECK(out.back() == 7.0f);
  const auto* raw = reinterpret_cast<const unsigned char*>(guarded.bytes().data());
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned char* block = raw + i / layout->block * layout->bytes;
    double largest = 0;
    for (const std::size_t place : half_places(type))
      largest = std::max(largest, std::fabs(oracle::half_at(block + place)));
    const double wanted = oracle::gguf_element(static_cast<int>(type), block, i % layout->block);
    const double bound = largest * (127.0 * 63.0) * 3 * 0x1p-24;
    wrong += std::fabs(static_cast<double>(out[i]) - wanted) <= bound ? 0u : 1u;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("each block type decodes as its formula says, for random bits") {
  std::mt19937 random(5);
  for (const GgufType type : quantized_types) {
    const auto layout = *cbq::gguf_layout(static_cast<std::uint32_t>(type));
    CAPTURE(layout.name);
    std::vector<std::byte> blocks(20 * layout.bytes);
    for (std::byte& b : blocks) b = static_cast<std::byte>(random());
    for (std::size_t b = 0; b < 20; ++b) {
      for (const std::size_t place : half_places(type)) {
        // Any finite half: zero, subnormal and the largest among them.
        const std::uint16_t codes[] = {
            0x0000, 0x8000, 0x0001, 0x83ff, 0x7bff, 0xfbff, static_cast<std::uint16_t>(random() % 0x7c00)};
        const std::uint16_t code = codes[random() % 7];
        blocks[b * layout.bytes + place] = static_cast<std::byte>(code & 255);
        blocks[b * layout.bytes + place + 1] = static_cast<std::byte>(code >> 8);
      }
    }
    check_blocks(type, blocks);
  }
}

TEST_CASE("powers of two as scales decode exactly") {
  std::mt19937 random(6);
  for (const GgufType type : quantized_types) {
    const auto layout = *cbq::gguf_layout(static_cast<std::uint32_t>(type));
    CAPTURE(layout.name);
    std::vector<std::byte> block(layout.bytes);
    for (std::byte& b : block) b = static_cast<std::byte>(random());
    for (const std::size_t place : half_places(type)) {
      block[place] = std::byte{0};
      block[place + 1] = std::byte{0x34};  // 0.25
    }
    std::vector<float> out(layout.block);
    REQUIRE(cbq::decode_gguf(type, block, out));
    bool equal = true;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto* raw = reinterpret_cast<const unsigned char*>(block.data());
      equal = equal && static_cast<double>(out[i]) == oracle::gguf_element(static_cast<int>(type), raw, i);
    }
    CHECK(equal);
  }
}

TEST_CASE("worked bytes: Q4_1 and Q8_0") {
  std::vector<std::byte> block(20);
  block[1] = std::byte{0x40};  // d = 2
  block[3] = std::byte{0xbc};  // m = -1
  block[4] = std::byte{0xf3};  // element 0 is 3, element 16 is 15
  float out[32] = {};
  REQUIRE(cbq::decode_gguf(GgufType::q4_1, block, out));
  CHECK(out[0] == 5.0f);
  CHECK(out[16] == 29.0f);
  CHECK(out[1] == -1.0f);
  std::vector<std::byte> bytes(34);
  bytes[1] = std::byte{0x38};  // d = 0.5
  bytes[2] = std::byte{0x80};  // -128
  REQUIRE(cbq::decode_gguf(GgufType::q8_0, bytes, out));
  CHECK(out[0] == -64.0f);
}

TEST_CASE("float types decode like their elements") {
  const support::GuardedBytes guarded(support::ByteBuilder().add(cbq::to_half(1.5f)).add(cbq::to_half(-0.25f)).bytes());
  float out[2] = {};
  REQUIRE(cbq::decode_gguf(GgufType::f16, guarded.bytes(), out));
  CHECK(out[1] == -0.25f);
  REQUIRE(cbq::decode_gguf(GgufType::bf16, guarded.bytes(), out));
  CHECK(out[0] == cbq::to_float(cbq::bfloat16{cbq::to_half(1.5f).bits}));
  REQUIRE(cbq::decode_gguf(GgufType::f32, guarded.bytes(), std::span(out).first(1)));
}

TEST_CASE("sizes that do not fit and types without a decoder are refused") {
  std::vector<std::byte> bytes(36);
  std::vector<float> out(64);
  CHECK_FALSE(cbq::decode_gguf(GgufType::q4_0, bytes, std::span(out).first(32)));
  CHECK_FALSE(cbq::decode_gguf(GgufType::q4_0, std::span(bytes).first(35), out));
  CHECK_FALSE(cbq::decode_gguf(GgufType::q4_0, bytes, std::span(out).first(33)));
  CHECK(cbq::decode_gguf(GgufType::q4_0, bytes, out));
  CHECK(cbq::decode_gguf(GgufType::q4_0, {}, {}));
  CHECK(cbq::decode_gguf(GgufType::iq4_nl, bytes, out).error().code == cbq::Errc::unsupported);
  for (const cbq::GgufTypeLayout& layout : cbq::gguf_layouts) {
    CHECK(cbq::gguf_layout(static_cast<std::uint32_t>(layout.type))->bytes == layout.bytes);
  }
  CHECK_FALSE(cbq::gguf_layout(4));
}
