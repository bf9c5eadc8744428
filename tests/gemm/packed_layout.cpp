// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/packed_layout.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

using namespace cbq;

TEST_CASE("The worked example of the documentation") {
  // docs/packed_format.md: 4-bit symmetric, groups of 32, 16 outputs x 64 inputs.
  const Result<PackedLayout> layout = packed_layout(schemes::w4a8_g32.weight, 16, 64);
  REQUIRE(layout);
  CHECK(layout->groups == 2);
  CHECK(layout->header_bytes == 32);
  CHECK(layout->group_bytes == 32 + 256);
  CHECK(layout->panel_bytes == 576);
  CHECK(packed_bytes(*layout) == 576);
  // Output 3, input 9 of a block: step 2 is the low half of line 1; byte 4 * 3 + 1.
  std::byte block[256] = {};
  set_block_code(block, 4, 3, 9, 0xb);
  CHECK(block[64 + 13] == std::byte{0x0b});
  set_block_code(block, 4, 3, 13, 0x5);  // step 3: the high half of the same byte
  CHECK(block[64 + 13] == std::byte{0x5b});
}

TEST_CASE("Codes of every width come back and touch nothing else") {
  const std::size_t bits = GENERATE(std::size_t{2}, std::size_t{3}, std::size_t{4}, std::size_t{8});
  CAPTURE(bits);
  std::vector<std::byte> block(block_bytes(bits), std::byte{0});
  const auto expected = [bits](std::size_t output, std::size_t input) {
    return static_cast<unsigned>(output * 37 + input * 11 + 5) & ((1u << bits) - 1u);
  };
  for (std::size_t output = 0; output < panel_outputs; ++output) {
    for (std::size_t input = 0; input < block_inputs; ++input)
      set_block_code(block.data(), bits, output, input, expected(output, input));
  }
  for (std::size_t output = 0; output < panel_outputs; ++output) {
    for (std::size_t input = 0; input < block_inputs; ++input) {
      REQUIRE(block_code(block.data(), bits, output, input) == expected(output, input));
    }
  }
}

TEST_CASE("Every bit of a block belongs to exactly one code") {
  const std::size_t bits = GENERATE(std::size_t{2}, std::size_t{3}, std::size_t{4}, std::size_t{8});
  CAPTURE(bits);
  std::vector<int> owners(block_bytes(bits) * 8, 0);
  for (std::size_t output = 0; output < panel_outputs; ++output) {
    for (std::size_t input = 0; input < block_inputs; ++input) {
      std::vector<std::byte> block(block_bytes(bits), std::byte{0});
      set_block_code(block.data(), bits, output, input, (1u << bits) - 1u);
      for (std::size_t bit = 0; bit < owners.size(); ++bit) {
        owners[bit] += static_cast<int>((static_cast<unsigned>(block[bit / 8]) >> (bit % 8)) & 1u);
      }
    }
  }
  CHECK(std::all_of(owners.begin(), owners.end(), [](int count) { return count == 1; }));
}

TEST_CASE("Shapes with tails, and empty ones") {
  const auto bytes = [](const Grid& grid, std::size_t outputs, std::size_t inputs) {
    const Result<PackedLayout> layout = packed_layout(grid, outputs, inputs);
    REQUIRE(layout);
    return packed_bytes(*layout);
  };
  CHECK(bytes(schemes::w4a8_g128.weight, 0, 128) == 0);
  CHECK(bytes(schemes::w4a8_g128.weight, 16, 0) == 0);
  CHECK(bytes(schemes::w4a8_g128.weight, 1, 1) == 32 + 256);
  CHECK(bytes(schemes::w4a8_g128.weight, 17, 129) == 2 * (2 * 32 + 5 * 256));  // the second group has one block
  CHECK(bytes(schemes::w4a8_g128.weight, 576, 576) == 36 * (5 * 32 + 18 * 256));
  CHECK(bytes(schemes::w2a16_g64_asym.weight, 16, 64) == 48 + 2 * 128);
  CHECK(bytes(schemes::w8a8.weight, 16, 33) == 32 + 2 * 512);
}

TEST_CASE("Sizes that cannot be are refused") {
  constexpr std::size_t huge = ~std::size_t{0};
  CHECK(packed_layout(schemes::w4a8_g32.weight, huge, huge).error().code == Errc::bad_shape);
  CHECK(packed_layout(schemes::w4a8_g32.weight, huge, 4096).error().code == Errc::bad_shape);
  CHECK(packed_layout(schemes::w4a8_g32.weight, 16, huge).error().code == Errc::bad_shape);
  // Per channel, int32 sums bound the inputs.
  CHECK(packed_layout(schemes::w8a8.weight, 16, 65536));
  const Result<PackedLayout> overflow = packed_layout(schemes::w8a8.weight, 16, 65537);
  REQUIRE_FALSE(overflow);
  CHECK(std::strcmp(overflow.error().got.c_str(), "65537") == 0);
}
