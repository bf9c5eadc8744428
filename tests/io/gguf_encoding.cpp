// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gguf_encoding.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "oracle/gguf.hpp"
#include "support/files.hpp"
#include "support/guarded.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Errc;
using cbq::GgufType;
using cbq::Granularity;
using cbq::Grid;
using cbq::QuantizedMatrix;
using cbq::Zero;
using support::message;

namespace {

Grid grid_of(int bits, int group, Zero zero) {
  return {.bits = bits,
          .granularity = group == 0 ? Granularity::per_channel : Granularity::per_group,
          .group = group,
          .zero = zero};
}

/// How many significant bits the scales have: with 7 of them every product with a zero point of 4 bits is a half.
enum class Scales { of_7_bits, of_11_bits };

QuantizedMatrix random_matrix(std::size_t outputs, std::size_t inputs, const Grid& grid, Scales scales) {
  std::mt19937 random(29);
  QuantizedMatrix matrix = *QuantizedMatrix::allocate(outputs, inputs, grid);
  const unsigned codes = static_cast<unsigned>(cbq::max_code(grid)) + 1;
  for (std::size_t r = 0; r < outputs; ++r) {
    for (std::size_t k = 0; k < inputs; ++k) row(matrix.codes(), r)[k] = static_cast<std::uint8_t>(random() % codes);
    for (std::size_t g = 0; g < matrix.groups(); ++g) {
      const auto digits = scales == Scales::of_7_bits ? random() % 127 + 1 : random() % 1024 + 1024;
      const float sign = grid.zero == Zero::symmetric && random() % 2 == 0 ? -1.0f : 1.0f;
      row(matrix.scales(), r)[g] = sign * static_cast<float>(digits) * 0x1p-18f;
      if (grid.zero == Zero::affine) row(matrix.zeros(), r)[g] = static_cast<std::uint8_t>(random() % codes);
    }
  }
  return matrix;
}

double weight(const QuantizedMatrix& matrix, std::size_t r, std::size_t k) {
  const std::size_t g = k / cbq::group_length(matrix.grid(), matrix.inputs());
  const auto view = matrix.view();
  const bool affine = matrix.grid().zero == Zero::affine;
  const int zero = affine ? int{row(view.zeros, r)[g]} : 1 << (matrix.grid().bits - 1);
  return static_cast<double>(row(view.scales, r)[g]) * (int{row(view.codes, r)[k]} - zero);
}

cbq::Result<GgufType> type_for(const QuantizedMatrix& matrix) {
  return cbq::gguf_type_for(matrix.grid(), matrix.inputs(), matrix.view().scales, matrix.view().zeros);
}

std::vector<std::byte> blocks_of(const QuantizedMatrix& matrix, GgufType type) {
  std::vector<std::byte> bytes(*cbq::gguf_bytes(type, {.rank = 2, .sizes = {matrix.outputs(), matrix.inputs()}}));
  const support::Guarded<std::byte> blocks(bytes.size(), support::Edge::end);
  const cbq::Status done = cbq::encode_gguf(matrix.view(), matrix.grid(), type, blocks.span());
  INFO(message(done));
  REQUIRE(done);
  std::copy(blocks.span().begin(), blocks.span().end(), bytes.begin());
  return bytes;
}

std::vector<int> numbers(const std::vector<std::byte>& bytes) {
  std::vector<int> list;
  for (const std::byte b : bytes) list.push_back(std::to_integer<int>(b));
  return list;
}

/// One row of 32 codes 0, 1, .. in turn, scale 0.5.
QuantizedMatrix counting_row(const Grid& grid, int zero) {
  QuantizedMatrix matrix = *QuantizedMatrix::allocate(1, 32, grid);
  for (int k = 0; k < 32; ++k) row(matrix.codes(), 0)[k] = static_cast<std::uint8_t>(k & cbq::max_code(grid));
  row(matrix.scales(), 0)[0] = 0.5f;
  if (grid.zero == Zero::affine) row(matrix.zeros(), 0)[0] = static_cast<std::uint8_t>(zero);
  return matrix;
}

}  // namespace

TEST_CASE("Blocks byte for byte") {
  // 0.5 is the half 0x3800. Elements j and j + 16 share a byte; codes of 4 bits are the same for both.
  std::vector<int> wanted = {0x00, 0x38};
  for (int j = 0; j < 16; ++j) wanted.push_back(j | j << 4);
  CHECK(numbers(blocks_of(counting_row(grid_of(4, 32, Zero::symmetric), 8), GgufType::q4_0)) == wanted);
  // Affine, zero point 3: minimum -1.5, the half 0xbe00.
  std::vector<int> with_minimum = {0x00, 0x38, 0x00, 0xbe};
  with_minimum.insert(with_minimum.end(), wanted.begin() + 2, wanted.end());
  CHECK(numbers(blocks_of(counting_row(grid_of(4, 32, Zero::affine), 3), GgufType::q4_1)) == with_minimum);
  // The same as 5-bit codes: q - 3 + 16; fifth bits are those of q >= 3, in both halves.
  std::vector<int> of_5_bits = {0x00, 0x38, 0xf8, 0xff, 0xf8, 0xff};
  for (int j = 0; j < 16; ++j) of_5_bits.push_back(((j + 13) & 15) | ((j + 13) & 15) << 4);
  CHECK(numbers(blocks_of(counting_row(grid_of(4, 32, Zero::affine), 3), GgufType::q5_0)) == of_5_bits);
  // Codes of 3 bits become 4 .. 11, those of 8 bits signed bytes.
  std::vector<int> of_3_bits = {0x00, 0x38};
  for (int j = 0; j < 16; ++j) of_3_bits.push_back((j % 8 + 4) | (j % 8 + 4) << 4);
  CHECK(numbers(blocks_of(counting_row(grid_of(3, 32, Zero::symmetric), 4), GgufType::q4_0)) == of_3_bits);
  std::vector<int> signed_bytes = {0x00, 0x38};
  for (int j = 0; j < 32; ++j) signed_bytes.push_back(j + 128);
  CHECK(numbers(blocks_of(counting_row(grid_of(8, 32, Zero::symmetric), 128), GgufType::q8_0)) == signed_bytes);
}

TEST_CASE("The smallest block that holds a grid holds every weight exactly, and gives it back") {
  const int bits = GENERATE(2, 3, 4, 5, 8);
  const int group = GENERATE(0, 32, 64, 128);
  const Zero zero = GENERATE(Zero::symmetric, Zero::affine);
  const Scales scales = GENERATE(Scales::of_7_bits, Scales::of_11_bits);
  if (zero == Zero::affine && bits == 8) return;  // a case of its own
  const Grid grid = grid_of(bits, group, zero);
  const QuantizedMatrix matrix = random_matrix(5, 160, grid, scales);
  CAPTURE(bits, group, zero == Zero::affine, scales == Scales::of_7_bits);
  const auto type = type_for(matrix);
  INFO(message(type));
  REQUIRE(type);
  const GgufType affine = bits < 4                      ? GgufType::q4_0
                          : bits == 5                   ? GgufType::q8_0
                          : scales == Scales::of_7_bits ? GgufType::q4_1
                                                        : GgufType::q5_0;
  const GgufType symmetric = bits <= 4 ? GgufType::q4_0 : bits == 5 ? GgufType::q5_0 : GgufType::q8_0;
  CHECK(*type == (zero == Zero::affine ? affine : symmetric));

  const std::vector<std::byte> blocks = blocks_of(matrix, *type);
  const auto* raw = reinterpret_cast<const unsigned char*>(blocks.data());
  const std::size_t bytes = cbq::gguf_layout(static_cast<std::uint32_t>(*type))->bytes;
  std::size_t wrong = 0;
  for (std::size_t r = 0; r < 5; ++r) {
    for (std::size_t k = 0; k < 160; ++k) {
      const double wanted = oracle::gguf_element(static_cast<int>(*type), raw + (r * 5 + k / 32) * bytes, k % 32);
      wrong += weight(matrix, r, k) != wanted;
    }
  }
  CHECK(wrong == 0);

  QuantizedMatrix read = *QuantizedMatrix::allocate(5, 160, *cbq::gguf_codes_grid(*type));
  const support::GuardedBytes guarded(blocks);
  const cbq::Status done = cbq::decode_gguf_codes(*type, guarded.bytes(), read.codes(), read.scales(), read.zeros());
  INFO(message(done));
  REQUIRE(done);
  wrong = 0;
  for (std::size_t r = 0; r < 5; ++r) {
    for (std::size_t k = 0; k < 160; ++k) wrong += weight(read, r, k) != weight(matrix, r, k);
  }
  CHECK(wrong == 0);
  CHECK(blocks_of(read, *type) == blocks);
}

TEST_CASE("Affine codes of 8 bits fit only near their zero points") {
  QuantizedMatrix matrix = random_matrix(3, 64, grid_of(8, 32, Zero::affine), Scales::of_11_bits);
  CHECK(type_for(matrix).error().code == Errc::unsupported);
  for (std::size_t r = 0; r < 3; ++r) row(matrix.zeros(), r)[0] = row(matrix.zeros(), r)[1] = 128;
  REQUIRE(type_for(matrix));
  CHECK(*type_for(matrix) == GgufType::q8_0);
  row(matrix.zeros(), 1)[1] = 100;
  row(matrix.codes(), 1)[40] = 228;  // one too far for this block, but no other is
  std::vector<std::byte> blocks(6 * 34);
  CHECK_THAT(message(cbq::encode_gguf(matrix.view(), matrix.grid(), GgufType::q8_0, blocks)),
             ContainsSubstring("row 1, group 1"));
}

TEST_CASE("What has no exact place is refused with its row and group") {
  const Grid grid = grid_of(4, 32, Zero::symmetric);
  QuantizedMatrix matrix = random_matrix(2, 64, grid, Scales::of_11_bits);
  std::vector<std::byte> blocks(4 * 18);
  const auto encode = [&](GgufType type) { return message(cbq::encode_gguf(matrix.view(), grid, type, blocks)); };
  CHECK(encode(GgufType::q4_0) == "success");
  CHECK_THAT(encode(GgufType::q4_k), ContainsSubstring("hold no codes (got Q4_K"));
  CHECK_THAT(encode(GgufType::q8_0), ContainsSubstring("not the blocks of this shape"));
  row(matrix.codes(), 1)[33] = 16;
  CHECK_THAT(encode(GgufType::q4_0), ContainsSubstring("row 1, group 1: a code or minimum"));
  row(matrix.codes(), 1)[33] = 15;
  for (const float bad : {0x1.001p-8f, 65536.0f, 0x1p-25f, INFINITY, NAN}) {
    row(matrix.scales(), 1)[0] = bad;
    CHECK_THAT(encode(GgufType::q4_0), ContainsSubstring("row 1, group 0: a scale is no half"));
    CHECK_THAT(message(type_for(matrix)), ContainsSubstring("row 1, group 0: a scale is no half"));
  }
  const auto odd = [](std::size_t inputs, int group) {
    return message(type_for(random_matrix(1, inputs, grid_of(4, group, Zero::symmetric), Scales::of_11_bits)));
  };
  CHECK_THAT(odd(48, 0), ContainsSubstring("(got 48 and 48, wanted multiples of 32)"));
  CHECK_THAT(odd(64, 16), ContainsSubstring("(got 64 and 16, wanted multiples of 32)"));
  CHECK(odd(96, 64) == "success");
}

TEST_CASE("Blocks that no grid of cbq holds are refused; a scale of zero is another way to say zero") {
  std::vector<std::byte> block(20);
  QuantizedMatrix codes = *QuantizedMatrix::allocate(1, 32, *cbq::gguf_codes_grid(GgufType::q4_1));
  const auto decode = [&](std::uint16_t d, std::uint16_t m) {
    std::memcpy(block.data(), &d, 2);
    std::memcpy(block.data() + 2, &m, 2);
    block[4] = std::byte{0x5f};
    return message(cbq::decode_gguf_codes(GgufType::q4_1, block, codes.codes(), codes.scales(), codes.zeros()));
  };
  CHECK(decode(0x3c00, 0xc200) == "success");  // 1 and -3
  CHECK(row(codes.zeros(), 0)[0] == 3);
  CHECK(row(codes.codes(), 0)[0] == 15);
  CHECK(row(codes.codes(), 0)[16] == 5);
  CHECK_THAT(decode(0x3c00, 0xc201), ContainsSubstring("row 0, block 0: a minimum is no multiple"));
  CHECK_THAT(decode(0xbc00, 0x4200), ContainsSubstring("positive scale"));
  CHECK_THAT(decode(0x7c00, 0x0000), ContainsSubstring("not finite"));
  CHECK_THAT(decode(0x3c00, 0x7e00), ContainsSubstring("not finite"));
  CHECK(decode(0x0000, 0x0000) == "success");
  CHECK(row(codes.scales(), 0)[0] > 0);
  CHECK(row(codes.codes(), 0)[0] == row(codes.zeros(), 0)[0]);
  CHECK(cbq::check_values(codes.view(), codes.grid()));
  CHECK(cbq::gguf_codes_grid(GgufType::q6_k).error().code == Errc::unsupported);
  CHECK_THAT(message(cbq::decode_gguf_codes(GgufType::q4_1, std::span(block).first(19), codes.codes(), codes.scales(),
                                            codes.zeros())),
             ContainsSubstring("not the blocks of this shape"));
}
