// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/bit_packing.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <random>
#include <vector>

#include "oracle/bits.hpp"
#include "support/files.hpp"

using cbq::Errc;
using support::message;

namespace {

std::vector<std::uint8_t> random_codes(std::size_t count, int bits, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> codes(count);
  for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random() & ((1u << bits) - 1));
  return codes;
}

cbq::MatrixView<const std::uint8_t> view_of(const std::vector<std::uint8_t>& codes, std::size_t rows,
                                            std::size_t columns) {
  return cbq::matrix_view(codes.data(), rows, columns);
}

}  // namespace

TEST_CASE("words of a row") {
  CHECK(cbq::packed_words(0, 4) == 0);
  CHECK(cbq::packed_words(8, 4) == 1);
  CHECK(cbq::packed_words(9, 4) == 2);
  CHECK(cbq::packed_words(11, 3) == 2);
  CHECK(cbq::packed_words(32, 3) == 3);
  CHECK(cbq::packed_words(33, 7) == 8);
  CHECK(cbq::packed_words(~std::size_t{0}, 8) == std::size_t{1} << 62);
}

TEST_CASE("rows of each width equal the bit string and come back") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const std::size_t columns : {0u, 1u, 2u, 5u, 10u, 11u, 31u, 32u, 33u, 64u, 97u, 576u}) {
      CAPTURE(bits, columns);
      const std::size_t rows = 3;
      const auto codes = random_codes(rows * columns, bits, static_cast<std::uint32_t>(columns));
      std::vector<std::int32_t> words(rows * cbq::packed_words(columns, bits), -1);
      REQUIRE(cbq::pack_rows(view_of(codes, rows, columns), bits, words));
      std::vector<std::int32_t> wanted;
      for (std::size_t r = 0; r < rows; ++r) {
        const auto at = codes.begin() + static_cast<std::ptrdiff_t>(r * columns);
        const auto line =
            oracle::pack_bits({at, at + static_cast<std::ptrdiff_t>(columns)}, static_cast<std::size_t>(bits));
        wanted.insert(wanted.end(), line.begin(), line.end());
      }
      CHECK(words == wanted);
      const support::GuardedBytes guarded(std::as_bytes(std::span(words)));
      std::vector<std::uint8_t> back(rows * (columns + 2), 99);
      REQUIRE(cbq::unpack_rows(guarded.bytes(), bits, {back.data(), rows, columns, columns + 2}));
      bool same = true;
      for (std::size_t i = 0; i < back.size(); ++i) {
        const std::size_t c = i % (columns + 2);
        same = same && back[i] == (c < columns ? codes[i / (columns + 2) * columns + c] : 99);
      }
      CHECK(same);
    }
  }
}

TEST_CASE("zero points of each width equal the bit strings of the columns and come back") {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const std::size_t outputs : {0u, 1u, 5u, 10u, 11u, 32u, 33u, 65u}) {
      const std::size_t groups = 3;
      CAPTURE(bits, outputs);
      const auto zeros = random_codes(outputs * groups, bits, 3);
      const std::size_t lines = cbq::packed_words(outputs, bits);
      std::vector<std::int32_t> words(lines * groups, -1);
      REQUIRE(cbq::pack_zeros(view_of(zeros, outputs, groups), bits, words));
      bool same = true;
      for (std::size_t g = 0; g < groups; ++g) {
        std::vector<std::uint8_t> column;
        for (std::size_t n = 0; n < outputs; ++n) column.push_back(zeros[n * groups + g]);
        const auto wanted = oracle::pack_bits(column, static_cast<std::size_t>(bits));
        for (std::size_t w = 0; w < lines; ++w) same = same && words[w * groups + g] == wanted[w];
      }
      CHECK(same);
      const support::GuardedBytes guarded(std::as_bytes(std::span(words)));
      std::vector<std::uint8_t> back(zeros.size());
      REQUIRE(cbq::unpack_zeros(guarded.bytes(), bits, cbq::matrix_view(back.data(), outputs, groups)));
      CHECK(back == zeros);
    }
  }
}

TEST_CASE("worked words: four and three bits") {
  const std::vector<std::uint8_t> four = {1, 2, 3, 4, 5, 6, 7, 8, 15};
  std::vector<std::int32_t> words(2);
  REQUIRE(cbq::pack_rows(view_of(four, 1, 9), 4, words));
  CHECK(static_cast<std::uint32_t>(words[0]) == 0x87654321u);
  CHECK(words[1] == 15);
  const std::vector<std::uint8_t> three = {0, 0, 0, 0, 0, 0,
                                           0, 0, 0, 0, 7};  // code 10 straddles: two bits here, one there
  REQUIRE(cbq::pack_rows(view_of(three, 1, 11), 3, words));
  CHECK(static_cast<std::uint32_t>(words[0]) == 0xc0000000u);
  CHECK(words[1] == 1);
}

TEST_CASE("what does not fit is refused") {
  std::vector<std::uint8_t> codes = {1, 2, 16, 3};
  std::vector<std::int32_t> words(1);
  CHECK(cbq::pack_rows(view_of(codes, 1, 4), 4, words).error().code == Errc::bad_argument);
  CHECK(message(cbq::pack_rows(view_of(codes, 1, 4), 4, words)) ==
        "row 0, column 2: a code lies outside the grid (got 16, wanted at most 15)");
  words.resize(4);
  CHECK(cbq::pack_zeros(view_of(codes, 1, 4), 4, words).error().code == Errc::bad_argument);
  CHECK_FALSE(cbq::pack_rows(view_of(codes, 1, 4), 8, words));
  CHECK_FALSE(cbq::pack_zeros(view_of(codes, 4, 1), 8, words));
  for (const int bits : {-1, 0, 1, 9, 16}) {
    CAPTURE(bits);
    CHECK_FALSE(cbq::pack_rows(view_of(codes, 1, 4), bits, words));
    CHECK_FALSE(cbq::unpack_rows(std::as_bytes(std::span(words)), bits, cbq::matrix_view(codes.data(), 1, 4)));
    CHECK_FALSE(cbq::pack_zeros(view_of(codes, 1, 4), bits, words));
    CHECK_FALSE(cbq::unpack_zeros(std::as_bytes(std::span(words)), bits, cbq::matrix_view(codes.data(), 1, 4)));
  }
  const auto bytes = std::as_bytes(std::span(words));
  CHECK_FALSE(cbq::unpack_rows(bytes.first(3), 8, cbq::matrix_view(codes.data(), 1, 4)));
  CHECK_FALSE(cbq::unpack_rows(bytes.first(8), 8, cbq::matrix_view(codes.data(), 1, 4)));
  CHECK_FALSE(cbq::unpack_zeros(bytes.first(8), 8, cbq::matrix_view(codes.data(), 4, 1)));
  const std::size_t huge = std::size_t{1} << 62;
  CHECK_FALSE(cbq::unpack_rows(bytes, 8, cbq::matrix_view(codes.data(), huge, 64)));
  CHECK(cbq::unpack_rows({}, 8, cbq::matrix_view(codes.data(), huge, 0)));
}
