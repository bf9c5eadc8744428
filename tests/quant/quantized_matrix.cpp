// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/quantized_matrix.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

using cbq::Errc;
using cbq::Granularity;
using cbq::Grid;
using cbq::Zero;

namespace {

constexpr Grid grouped{.bits = 4, .granularity = Granularity::per_group, .group = 4, .zero = Zero::affine};

// 3 x 10 in groups of 4, 4 and 2, filled with values that all differ.
cbq::QuantizedMatrix filled(const Grid& grid) {
  auto matrix = cbq::QuantizedMatrix::allocate(3, 10, grid);
  REQUIRE(matrix);
  for (std::size_t n = 0; n < 3; ++n) {
    for (std::size_t k = 0; k < 10; ++k)
      cbq::row(matrix->codes(), n)[k] = static_cast<std::uint8_t>((n * 10 + k * 7) % 16);
    for (std::size_t g = 0; g < matrix->groups(); ++g) {
      cbq::row(matrix->scales(), n)[g] = 0.25f * static_cast<float>(1 + n + 3 * g);
      if (grid.zero == Zero::affine) cbq::row(matrix->zeros(), n)[g] = static_cast<std::uint8_t>(n + 2 * g);
    }
  }
  return *std::move(matrix);
}

}  // namespace

TEST_CASE("allocation follows the grid") {
  const cbq::QuantizedMatrix affine = filled(grouped);
  CHECK(affine.groups() == 3);
  CHECK(affine.view().codes.rows == 3);
  CHECK(affine.view().codes.columns == 10);
  CHECK(affine.view().scales.columns == 3);
  CHECK(affine.view().zeros.columns == 3);
  auto channel = cbq::QuantizedMatrix::allocate(5, 7, {.bits = 8});
  REQUIRE(channel);
  CHECK(channel->groups() == 1);
  CHECK(channel->view().zeros.data == nullptr);
  CHECK(channel->zeros().rows == 0);
  for (const auto& [outputs, inputs] : {std::pair<std::size_t, std::size_t>{0, 7}, {7, 0}, {0, 0}}) {
    auto empty = cbq::QuantizedMatrix::allocate(outputs, inputs, grouped);
    REQUIRE(empty);
    CHECK(cbq::check_shape(empty->view(), grouped));
    CHECK(cbq::check_values(empty->view(), grouped));
  }
}

TEST_CASE("impossible grids and sizes are errors") {
  const auto code = [](std::size_t outputs, std::size_t inputs, const Grid& grid) {
    const auto matrix = cbq::QuantizedMatrix::allocate(outputs, inputs, grid);
    REQUIRE(!matrix);
    return matrix.error().code;
  };
  for (const int bits : {-1, 0, 1, 9, 16}) CHECK(code(1, 1, {.bits = bits}) == Errc::bad_argument);
  CHECK(code(1, 1, {.bits = 4, .group = 32}) == Errc::bad_argument);
  CHECK(code(1, 1, {.bits = 4, .granularity = Granularity::per_group}) == Errc::bad_argument);
  CHECK(code(1, 1, {.bits = 4, .granularity = Granularity::per_group, .group = -32}) == Errc::bad_argument);
  CHECK(code(std::size_t{1} << 33, std::size_t{1} << 33, {.bits = 4}) == Errc::bad_shape);
}

TEST_CASE("dequantize is scale * (code - zero) in every element type") {
  for (const Zero zero : {Zero::affine, Zero::symmetric}) {
    Grid grid = grouped;
    grid.zero = zero;
    const cbq::QuantizedMatrix matrix = filled(grid);
    std::vector<float> out(3 * 12, -1.0f);
    std::vector<cbq::half> halves(30);
    REQUIRE(cbq::dequantize(matrix.view(), grid, cbq::MatrixView<float>{out.data(), 3, 10, 12}));
    REQUIRE(cbq::dequantize(matrix.view(), grid, cbq::matrix_view(halves.data(), 3, 10)));
    for (std::size_t n = 0; n < 3; ++n) {
      for (std::size_t k = 0; k < 10; ++k) {
        const std::size_t g = k / 4;
        const double z = zero == Zero::affine ? static_cast<double>(n + 2 * g) : 8.0;
        const double wanted =
            0.25 * static_cast<double>(1 + n + 3 * g) * (static_cast<double>((n * 10 + k * 7) % 16) - z);
        CHECK(static_cast<double>(out[n * 12 + k]) == wanted);
        CHECK(static_cast<double>(cbq::to_float(halves[n * 10 + k])) == wanted);  // few bits: exact in half
      }
      CHECK(out[n * 12 + 10] == -1.0f);
    }
  }
}

TEST_CASE("shapes that do not fit are errors") {
  const cbq::QuantizedMatrix matrix = filled(grouped);
  std::vector<float> out(100);
  const auto shape_error = [](const cbq::Status& status) { return !status && status.error().code == Errc::bad_shape; };
  CHECK(shape_error(cbq::dequantize(matrix.view(), grouped, cbq::matrix_view(out.data(), 3, 9))));
  CHECK(shape_error(cbq::dequantize(matrix.view(), grouped, cbq::matrix_view(out.data(), 2, 10))));
  CHECK(shape_error(cbq::dequantize(matrix.view(), grouped, cbq::MatrixView<float>{out.data(), 3, 10, 9})));
  Grid other = grouped;
  other.group = 8;
  CHECK(shape_error(cbq::check_shape(matrix.view(), other)));
  cbq::QuantizedMatrixView view = matrix.view();
  view.zeros = {};
  CHECK(shape_error(cbq::check_shape(view, grouped)));
  view = matrix.view();
  view.scales.rows = 2;
  CHECK(shape_error(cbq::check_shape(view, grouped)));
  view = matrix.view();
  view.codes.stride = 9;
  CHECK(shape_error(cbq::check_shape(view, grouped)));
  CHECK(cbq::check_shape(matrix.view(), {.bits = 16}).error().code == Errc::bad_argument);
}

TEST_CASE("values off the grid are errors that name the place") {
  const auto check = [](auto change) {
    cbq::QuantizedMatrix matrix = filled(grouped);
    REQUIRE(cbq::check_values(matrix.view(), grouped));
    change(matrix);
    const cbq::Status status = cbq::check_values(matrix.view(), grouped);
    REQUIRE(!status);
    return std::pair{status.error().code, std::string(status.error().where.c_str())};
  };
  using Matrix = cbq::QuantizedMatrix;
  CHECK(check([](Matrix& m) { cbq::row(m.codes(), 2)[9] = 16; }) ==
        std::pair{Errc::bad_argument, std::string("code 2, 9")});
  CHECK(check([](Matrix& m) { cbq::row(m.zeros(), 1)[2] = 16; }) ==
        std::pair{Errc::bad_argument, std::string("zero 1, 2")});
  for (const float scale : {NAN, INFINITY, -INFINITY}) {
    CHECK(check([&](Matrix& m) { cbq::row(m.scales(), 0)[1] = scale; }) ==
          std::pair{Errc::not_finite, std::string("scale 0, 1")});
  }
  for (const float scale : {0.0f, -0.25f, 0.1f, 0x1p-90f}) {  // 0.1 has more than 11 significant bits
    CAPTURE(scale);
    CHECK(check([&](Matrix& m) { cbq::row(m.scales(), 0)[1] = scale; }).first == Errc::bad_argument);
  }
}

TEST_CASE("scales of symmetric grids may be negative") {
  Grid grid = grouped;
  grid.zero = Zero::symmetric;
  cbq::QuantizedMatrix matrix = filled(grid);
  cbq::row(matrix.scales(), 2)[2] = -64.0f;  // the largest magnitude
  cbq::row(matrix.scales(), 0)[1] = -0.25f;
  CHECK(cbq::check_values(matrix.view(), grid));
  std::vector<float> out(30);
  REQUIRE(cbq::dequantize(matrix.view(), grid, cbq::matrix_view(out.data(), 3, 10)));
  CHECK(out[5] == -0.25f * (static_cast<float>(35 % 16) - 8.0f));
  for (const float scale : {0.0f, -0.0f, -0.1f, -0x1p-90f}) {
    CAPTURE(scale);
    cbq::row(matrix.scales(), 0)[1] = scale;
    const cbq::Status status = cbq::check_values(matrix.view(), grid);
    REQUIRE(!status);
    CHECK(status.error().code == Errc::bad_argument);
  }
}
