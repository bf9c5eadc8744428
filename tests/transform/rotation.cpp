// SPDX-License-Identifier: Apache-2.0
#include <cbq/transform/rotation.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <vector>

#include "support/nn.hpp"

using cbq::Errc;
using cbq::Rotation;
using cbq::RotationMean;

namespace {

// Q itself, transposed: its rows are the rotated unit vectors.
template <class T>
std::vector<T> columns_of(const Rotation<T>& q) {
  const std::size_t n = q.width();
  std::vector<T> unit(n * n);
  for (std::size_t i = 0; i < n; ++i) unit[i * n + i] = 1;
  REQUIRE(cbq::rotate_rows(cbq::matrix_view(unit.data(), n, n), q));
  return unit;
}

}  // namespace

TEMPLATE_TEST_CASE("rotations of any width are orthogonal and spread what they rotate", "", float, double) {
  const double tolerance = sizeof(TestType) == 4 ? 2e-6 : 1e-13;
  for (const std::size_t n : {1u, 2u, 3u, 7u, 12u, 40u, 48u, 64u, 96u, 77u, 256u}) {
    for (const RotationMean mean : {RotationMean::free, RotationMean::kept}) {
      CAPTURE(n, mean == RotationMean::kept);
      const auto q = Rotation<TestType>::create(n, 5, mean);
      REQUIRE(q);
      const std::vector<TestType> columns = columns_of(*q);
      for (std::size_t i = 0; i < n; ++i) {
        double mean_of_column = 0, largest = 0;
        for (std::size_t k = 0; k < n; ++k) {
          mean_of_column += static_cast<double>(columns[i * n + k]);
          largest = std::fmax(largest, std::fabs(static_cast<double>(columns[i * n + k])));
        }
        if (mean == RotationMean::kept) REQUIRE(std::fabs(mean_of_column - 1) < tolerance * 4);
        if (n >= 40) REQUIRE(largest < 0.65);
        if (mean == RotationMean::free && cbq::hadamard_size(n) == n) {
          REQUIRE(largest == Catch::Approx(1 / std::sqrt(static_cast<double>(n))));
        }
        for (std::size_t j = 0; j <= i; ++j) {
          double product = 0;
          for (std::size_t k = 0; k < n; ++k) {
            product += static_cast<double>(columns[i * n + k]) * static_cast<double>(columns[j * n + k]);
          }
          REQUIRE(std::fabs(product - (i == j ? 1 : 0)) < tolerance);
        }
      }
    }
  }
}

TEST_CASE("seeds choose rotations") {
  const auto of = [](std::uint64_t seed) { return columns_of(*Rotation<double>::create(12, seed)); };
  CHECK(of(1) == of(1));
  CHECK(of(1) != of(2));
}

TEST_CASE("columns are rotated as rows are, by any executor") {
  const auto q = Rotation<float>::create(24, 3);
  REQUIRE(q);
  for (const std::size_t columns : {1u, 15u, 16u, 33u}) {
    std::vector<float> x = support::normal(24 * columns, 4);
    std::vector<float> transposed(x.size());
    for (std::size_t r = 0; r < 24; ++r) {
      for (std::size_t c = 0; c < columns; ++c) transposed[c * 24 + r] = x[r * columns + c];
    }
    REQUIRE(cbq::rotate_columns(support::view(x, columns), *q, support::ThreadExecutor{}));
    REQUIRE(cbq::rotate_rows(support::view(transposed, 24), *q));
    for (std::size_t r = 0; r < 24; ++r) {
      for (std::size_t c = 0; c < columns; ++c) REQUIRE(x[r * columns + c] == transposed[c * 24 + r]);
    }
  }
}

TEST_CASE("widths that do not fit are refused") {
  CHECK(Rotation<float>::create(0, 1).error().code == Errc::bad_argument);
  const auto q = Rotation<float>::create(8, 1);
  std::vector<float> x(72);
  CHECK(cbq::rotate_rows(support::view(x, 9), *q).error().code == Errc::bad_shape);
  CHECK(cbq::rotate_columns(support::view(x, 8), *q).error().code == Errc::bad_shape);
  CHECK(cbq::rotate_rows(support::view(x, 8), *q));
}
