// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gguf_packing.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "oracle/gguf.hpp"
#include "support/files.hpp"
#include "support/guarded.hpp"

using cbq::Errc;
using cbq::GgufType;
using support::message;

namespace {

struct Shape {
  std::size_t outputs;
  std::size_t inputs;
};

constexpr std::size_t block_bytes(GgufType type) {
  return cbq::gguf_layout(static_cast<std::uint32_t>(type))->bytes;
}

void set_half(std::byte* at, std::uint16_t bits) {
  std::memcpy(at, &bits, sizeof bits);
}

/// Blocks with random codes and scales of any sign and size, zeros and subnormals included. Minima of Q4_1 are -zero
/// times the scale, as far as a half holds that.
std::vector<std::byte> random_blocks(GgufType type, Shape shape) {
  std::mt19937 random(17);
  std::vector<std::byte> bytes(shape.outputs * (shape.inputs / 32) * block_bytes(type));
  for (std::byte& b : bytes) b = static_cast<std::byte>(random() % 256);
  for (std::size_t at = 0; at < bytes.size(); at += block_bytes(type)) {
    if (type != GgufType::q4_1) {
      const auto bits = static_cast<std::uint16_t>(random() & 0xffffu);
      set_half(&bytes[at], (bits & 0x7c00u) == 0x7c00u ? 0x0001 : bits);
      continue;
    }
    // Seven significant bits leave room for the factor.
    const float scale = static_cast<float>(random() % 128) * 0x1p-12f;
    set_half(&bytes[at], cbq::to_half(scale).bits);
    set_half(&bytes[at + 2], cbq::to_half(-scale * static_cast<float>(random() % 16)).bits);
  }
  return bytes;
}

cbq::GgufTensor tensor_of(GgufType type, Shape shape, std::span<const std::byte> bytes) {
  return {.name = "w", .type = type, .shape = {.rank = 2, .sizes = {shape.outputs, shape.inputs}}, .bytes = bytes};
}

std::vector<std::byte> memory_for(GgufType type, Shape shape) {
  return std::vector<std::byte>(
      cbq::packed_bytes(*cbq::packed_layout(*cbq::gguf_grid(type), shape.outputs, shape.inputs)));
}

}  // namespace

TEST_CASE("Every packed weight is exactly what the block says") {
  const auto type = GENERATE(GgufType::q4_0, GgufType::q4_1, GgufType::q8_0);
  const Shape shape = GENERATE(Shape{1, 32}, Shape{16, 64}, Shape{17, 96}, Shape{37, 576}, Shape{0, 64}, Shape{3, 0});
  CAPTURE(static_cast<int>(type), shape.outputs, shape.inputs);
  const std::vector<std::byte> blocks = random_blocks(type, shape);
  const support::GuardedBytes guarded(blocks);
  const support::Guarded<std::byte> memory(memory_for(type, shape).size(), support::Edge::end);
  const auto packed = cbq::pack_gguf(tensor_of(type, shape, guarded.bytes()), memory.span());
  INFO(message(packed));
  REQUIRE(packed);
  const auto* raw = reinterpret_cast<const unsigned char*>(blocks.data());
  std::size_t wrong = 0;
  for (std::size_t n = 0; n < shape.outputs; ++n) {
    for (std::size_t k = 0; k < shape.inputs; ++k) {
      const cbq::UnpackedWeight w = cbq::unpack(*packed, n, k);
      const unsigned char* block = raw + (n * (shape.inputs / 32) + k / 32) * block_bytes(type);
      const double wanted = oracle::gguf_element(static_cast<int>(type), block, k % 32);
      wrong += static_cast<double>(w.scale * static_cast<float>(static_cast<int>(w.code) - w.zero)) != wanted;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("Padding outputs of a panel hold zeros") {
  const auto type = GENERATE(GgufType::q4_0, GgufType::q4_1, GgufType::q8_0);
  const Shape shape{3, 32};
  std::vector<std::byte> memory = memory_for(type, shape);
  for (std::byte& b : memory) b = std::byte{0x77};
  REQUIRE(cbq::pack_gguf(tensor_of(type, shape, random_blocks(type, shape)), memory));
  cbq::PackedMatrix packed{memory.data(), *cbq::packed_layout(*cbq::gguf_grid(type), 16, 32), 1.0f};
  for (std::size_t n = 3; n < 16; ++n) {
    CHECK(cbq::unpack(packed, n, 0).scale == 0.0f);
    for (std::size_t k = 0; k < 32; ++k) REQUIRE(cbq::unpack(packed, n, k).code == 0);
  }
}

TEST_CASE("Q4_1 is packed where its minimum is an integer multiple of its scale, else refused") {
  const Shape shape{18, 64};
  std::vector<std::byte> blocks = random_blocks(GgufType::q4_1, shape);
  std::vector<std::byte> memory = memory_for(GgufType::q4_1, shape);
  std::byte* const block = &blocks[(17 * 2 + 1) * 20];  // output 17, group 1
  const auto pack = [&](float scale, float minimum) {
    set_half(block, cbq::to_half(scale).bits);
    set_half(block + 2, cbq::to_half(minimum).bits);
    return cbq::pack_gguf<cbq::make_scheme(4, 8, 32, cbq::Zero::affine)>(tensor_of(GgufType::q4_1, shape, blocks),
                                                                         memory);
  };
  SECTION("exact") {
    CHECK(pack(0.5f, 0.0f));
    CHECK(pack(0.5f, -0.0f));
    CHECK(pack(0.0f, 0.0f));
    CHECK(pack(0x1p-24f, -15 * 0x1p-24f));
    const auto packed = pack(0.25f, -3.75f);
    REQUIRE(packed);
    CHECK(cbq::unpack(*packed, 17, 40).zero == 15);
    CHECK(cbq::unpack(*packed, 17, 40).scale == 0.25f);
  }
  SECTION("not exact") {
    const auto [scale, minimum] = GENERATE(table<float, float>({{0.5f, 0.5f},
                                                                {0.5f, -8.0f},
                                                                {0.5f, -0.25f},
                                                                {0.0f, -1.0f},
                                                                {0.0f, 1.0f},
                                                                {1.0f, -7.0039f},
                                                                {0x1p-24f, -1.0f},
                                                                {1.0f, -60000.0f}}));
    CAPTURE(scale, minimum);
    const auto packed = pack(scale, minimum);
    REQUIRE_FALSE(packed);
    CHECK(packed.error().code == Errc::unsupported);
    CHECK(std::string(packed.error().where.c_str()) == "w: output 17, group 1");
  }
}

TEST_CASE("Scales that are no numbers are named") {
  const auto type = GENERATE(GgufType::q4_0, GgufType::q4_1, GgufType::q8_0);
  const std::uint16_t bad = GENERATE(std::uint16_t{0x7c00}, std::uint16_t{0xfc00}, std::uint16_t{0x7e01});
  const Shape shape{33, 96};
  std::vector<std::byte> blocks = random_blocks(type, shape);
  std::vector<std::byte> memory = memory_for(type, shape);
  const std::size_t number = type == GgufType::q4_1 ? GENERATE(0u, 2u) : 0u;
  set_half(&blocks[(20 * 3 + 2) * block_bytes(type) + number], bad);
  const auto packed = cbq::pack_gguf(tensor_of(type, shape, blocks), memory);
  REQUIRE_FALSE(packed);
  CHECK(packed.error().code == Errc::not_finite);
  CHECK(std::string(packed.error().where.c_str()) == "w: output 20, group 2");
}

TEST_CASE("Tensors that do not fit are refused") {
  const Shape shape{4, 64};
  const std::vector<std::byte> blocks = random_blocks(GgufType::q4_0, shape);
  std::vector<std::byte> memory = memory_for(GgufType::q4_0, shape);
  cbq::GgufTensor tensor = tensor_of(GgufType::q4_0, shape, blocks);
  REQUIRE(cbq::pack_gguf(tensor, memory));
  SECTION("another type") {
    tensor.type = GgufType::q4_k;
    CHECK(message(cbq::pack_gguf(tensor, memory)) ==
          "w: blocks of this GGUF type have no packed form (got Q4_K, wanted Q4_0, Q4_1 or Q8_0)");
  }
  SECTION("a number that is no type") {
    tensor.type = static_cast<GgufType>(12345);
    CHECK(cbq::pack_gguf(tensor, memory).error().code == Errc::unsupported);
  }
  SECTION("another scheme") {
    CHECK(cbq::pack_gguf<cbq::schemes::w4a8_g32>(tensor, memory));
    CHECK(cbq::pack_gguf<cbq::schemes::w4a16_g32>(tensor, memory));
    const auto packed = cbq::pack_gguf<cbq::schemes::w4a8_g128>(tensor, memory);
    REQUIRE_FALSE(packed);
    CHECK(packed.error().code == Errc::unsupported);
    CHECK(std::string(packed.error().wanted.c_str()) == "w4a8_g128");
  }
  SECTION("memory that is too small") {
    CHECK(cbq::pack_gguf(tensor, std::span(memory).first(memory.size() - 1)).error().code == Errc::bad_shape);
  }
  SECTION("bytes of another size") {
    tensor.bytes = tensor.bytes.first(tensor.bytes.size() - 18);
    CHECK(cbq::pack_gguf(tensor, memory).error().code == Errc::bad_shape);
  }
  SECTION("rows that end inside a block") {
    tensor.shape.sizes[1] = 40;
    CHECK(cbq::pack_gguf(tensor, memory).error().code == Errc::bad_shape);
  }
  SECTION("sizes that overflow") {
    tensor.shape.sizes[0] = std::size_t{1} << 62;
    CHECK(cbq::pack_gguf(tensor, memory).error().code == Errc::bad_shape);
  }
  SECTION("no matrix") {
    tensor.shape.rank = 3;
    CHECK(cbq::pack_gguf(tensor, memory).error().code == Errc::bad_shape);
  }
}
