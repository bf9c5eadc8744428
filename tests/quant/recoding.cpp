// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/recoding.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cstdint>
#include <random>

using cbq::Granularity;
using cbq::Grid;
using cbq::QuantizedMatrix;
using cbq::Zero;

namespace {

Grid grid_of(int bits, int group, Zero zero) {
  return {.bits = bits,
          .granularity = group == 0 ? Granularity::per_channel : Granularity::per_group,
          .group = group,
          .zero = zero};
}

QuantizedMatrix random_matrix(const Grid& grid) {
  std::mt19937 random(5);
  QuantizedMatrix matrix = *QuantizedMatrix::allocate(3, 112, grid);  // groups of 32 and 64 end in a shorter one
  const unsigned codes = static_cast<unsigned>(cbq::max_code(grid)) + 1;
  for (std::size_t r = 0; r < 3; ++r) {
    for (std::size_t k = 0; k < 112; ++k) row(matrix.codes(), r)[k] = static_cast<std::uint8_t>(random() % codes);
    for (std::size_t g = 0; g < matrix.groups(); ++g) {
      row(matrix.scales(), r)[g] = static_cast<float>(random() % 100 + 1);
      if (grid.zero == Zero::affine) row(matrix.zeros(), r)[g] = static_cast<std::uint8_t>(random() % codes);
    }
  }
  return matrix;
}

std::size_t differing_weights(const QuantizedMatrix& a, const QuantizedMatrix& b) {
  float x[3 * 112];
  float y[3 * 112];
  REQUIRE(cbq::dequantize(a.view(), a.grid(), cbq::matrix_view(x, 3, 112)));
  REQUIRE(cbq::dequantize(b.view(), b.grid(), cbq::matrix_view(y, 3, 112)));
  std::size_t differing = 0;
  for (std::size_t i = 0; i < 3 * 112; ++i) differing += x[i] != y[i];
  return differing;
}

bool same_codes(const QuantizedMatrix& a, const QuantizedMatrix& b) {
  bool same = true;
  for (std::size_t r = 0; r < 3; ++r) {
    for (std::size_t k = 0; k < 112; ++k) same = same && row(a.view().codes, r)[k] == row(b.view().codes, r)[k];
  }
  return same;
}

}  // namespace

TEST_CASE("Shorter groups and wider codes say the same, and lead back to the same codes") {
  const int bits = GENERATE(2, 3, 4);
  const int group = GENERATE(0, 64, 32);
  const Grid from = grid_of(bits, group, Zero::symmetric);
  const QuantizedMatrix matrix = random_matrix(from);
  const auto wide = cbq::recode(matrix.view(), from, grid_of(8, 16, Zero::symmetric));
  REQUIRE(wide);
  CHECK(differing_weights(matrix, *wide) == 0);
  const auto back = cbq::recode(wide->view(), wide->grid(), from);
  REQUIRE(back);
  CHECK(back->grid() == from);
  CHECK(differing_weights(matrix, *back) == 0);
  CHECK(same_codes(matrix, *back));
}

TEST_CASE("Zero points stay where they can and are found again elsewhere") {
  const Grid affine = grid_of(4, 64, Zero::affine);
  const QuantizedMatrix matrix = random_matrix(affine);
  const auto shorter = cbq::recode(matrix.view(), affine, grid_of(4, 32, Zero::affine));
  REQUIRE(shorter);
  CHECK(same_codes(matrix, *shorter));
  const auto symmetric = cbq::recode(matrix.view(), affine, grid_of(5, 32, Zero::symmetric));
  REQUIRE(symmetric);
  const auto back = cbq::recode(symmetric->view(), symmetric->grid(), affine);
  REQUIRE(back);
  CHECK(differing_weights(matrix, *back) == 0);
}

TEST_CASE("What the new grid cannot say is refused with its row and group") {
  const Grid from = grid_of(4, 32, Zero::symmetric);
  QuantizedMatrix matrix = random_matrix(from);
  const auto refused = [&](const Grid& to) {
    const auto result = cbq::recode(matrix.view(), from, to);
    return result ? std::string("none") : std::string(result.error().where.c_str());
  };
  CHECK(refused(grid_of(4, 64, Zero::symmetric)) == "row 0, group 0");  // several scales
  CHECK(refused(grid_of(3, 32, Zero::symmetric)) == "row 0, group 0");  // codes that need 4 bits
  CHECK(refused(grid_of(4, 32, Zero::affine)) == "none");
  row(matrix.scales(), 2)[1] = -1.0f;
  CHECK(refused(grid_of(4, 32, Zero::affine)) == "row 2, group 1");  // affine scales are positive
  CHECK(cbq::recode(matrix.view(), from, grid_of(9, 32, Zero::symmetric)).error().code == cbq::Errc::bad_argument);
}
