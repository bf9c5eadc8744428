// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/nearest.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "oracle/quant.hpp"
#include "support/failing_memory.hpp"

using cbq::Errc;
using cbq::Granularity;
using cbq::Grid;
using cbq::Zero;

namespace {

// Last task first, two threads: results must not notice.
struct BackwardThreads {
  [[nodiscard]] static std::size_t concurrency() { return 2; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    const auto half = [&](std::size_t parity) {
      for (std::size_t i = count; i-- > 0;) {
        if (i % 2 == parity) task(i);
      }
    };
    std::thread other(half, std::size_t{1});
    half(0);
    other.join();
  }
};

constexpr Grid make_grid(int bits, int group, Zero zero) {
  return {.bits = bits,
          .granularity = group == 0 ? Granularity::per_channel : Granularity::per_group,
          .group = group,
          .zero = zero};
}

template <class T>
double value_of(T x) {
  if constexpr (std::same_as<T, double>)
    return x;
  else
    return static_cast<double>(cbq::to_float(x));
}

template <class T>
std::vector<T> weights_of(std::size_t size, std::uint32_t seed, double magnitude = 0.05) {
  std::vector<T> out;
  for (const float v : oracle::random_weights(size, seed, magnitude)) out.push_back(cbq::from_float<T>(v));
  return out;
}

template <class T>
cbq::Result<cbq::QuantizedMatrix> quantize(const std::vector<T>& w, std::size_t rows, const Grid& grid) {
  const std::size_t columns = w.size() / rows;
  return cbq::round_nearest(cbq::MatrixView<const T>{w.data(), rows, columns, columns}, grid, cbq::MseRange{},
                            cbq::SerialExecutor{});
}

bool same(const cbq::QuantizedMatrixView& a, const cbq::QuantizedMatrixView& b) {
  const auto equal = [](const auto& x, const auto& y) {
    return x.rows == y.rows && x.columns == y.columns &&
           (x.rows * x.columns == 0 || std::memcmp(x.data, y.data, x.rows * x.columns * sizeof *x.data) == 0);
  };
  return equal(a.codes, b.codes) && equal(a.scales, b.scales) && equal(a.zeros, b.zeros);
}

}  // namespace

TEMPLATE_TEST_CASE("every weight takes the nearest code, for every element type, bits and grouping", "", float,
                   cbq::half, cbq::bfloat16, double) {
  constexpr std::size_t rows = 19, columns = 70;  // more than one task; the last group is shorter
  const std::vector<TestType> w = weights_of<TestType>(rows * columns, 1);
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int group : {0, 32}) {
      for (const Zero zero : {Zero::symmetric, Zero::affine}) {
        CAPTURE(bits, group, zero == Zero::affine);
        const Grid grid = make_grid(bits, group, zero);
        const auto matrix = quantize(w, rows, grid);
        REQUIRE(matrix);
        CHECK(cbq::check_values(matrix->view(), grid));
        int wrong = 0;
        double error = 0, squares = 0;
        for (std::size_t n = 0; n < rows; ++n) {
          for (std::size_t k = 0; k < columns; ++k) {
            const std::size_t g = group == 0 ? 0 : k / 32;
            const oracle::Grid at{static_cast<double>(cbq::row(matrix->view().scales, n)[g]),
                                  zero == Zero::affine ? cbq::row(matrix->view().zeros, n)[g] : 1 << (bits - 1),
                                  (1 << bits) - 1};
            const double v = value_of(cbq::from_float<float>(static_cast<float>(value_of(w[n * columns + k]))));
            const int code = cbq::row(matrix->view().codes, n)[k];
            // No other code is nearer, but for the rounding of the float division.
            const double here = std::fabs(v - oracle::value(code, at));
            const double best = std::fabs(v - oracle::value(oracle::code(v, at), at));
            wrong += here <= best + 1e-6 * std::fabs(at.scale) ? 0 : 1;
            error += (value_of(w[n * columns + k]) - oracle::value(code, at)) *
                     (value_of(w[n * columns + k]) - oracle::value(code, at));
            squares += value_of(w[n * columns + k]) * value_of(w[n * columns + k]);
          }
        }
        CHECK(wrong == 0);
        const auto reported = cbq::quantization_error(cbq::MatrixView<const TestType>{w.data(), rows, columns, columns},
                                                      matrix->view(), grid);
        REQUIRE(reported);
        CHECK(*reported == Catch::Approx(error / squares).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("results do not depend on the executor or on the stride") {
  constexpr std::size_t rows = 67, columns = 100, stride = 103;
  const std::vector<float> w = weights_of<float>(rows * stride, 2);
  std::vector<float> dense;
  for (std::size_t n = 0; n < rows; ++n)
    dense.insert(dense.end(), w.data() + n * stride, w.data() + n * stride + columns);
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    const Grid grid = make_grid(4, 32, zero);
    const auto serial = quantize(dense, rows, grid);
    const auto threads = cbq::round_nearest(cbq::MatrixView<const float>{w.data(), rows, columns, stride}, grid,
                                            cbq::MseRange{}, BackwardThreads{});
    REQUIRE((serial && threads));
    CHECK(same(serial->view(), threads->view()));
  }
}

TEST_CASE("one scale per tensor, found over all rows") {
  constexpr Grid grid{.bits = 4, .granularity = Granularity::per_tensor};
  std::vector<float> w = weights_of<float>(20 * 33, 3);
  w[19 * 33 + 5] = 7.0f;
  const auto matrix = cbq::round_nearest(cbq::MatrixView<const float>{w.data(), 20, 33, 33}, grid, cbq::MinMaxRange{},
                                         cbq::SerialExecutor{});
  REQUIRE(matrix);
  for (std::size_t n = 0; n < 20; ++n) CHECK(cbq::row(matrix->view().scales, n)[0] == 1.0f);
  CHECK(cbq::row(matrix->view().codes, 19)[5] == 15);
}

TEST_CASE("groups of zeros keep zeros and a positive storable scale") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    const Grid grid = make_grid(4, 32, zero);
    std::vector<float> w = weights_of<float>(2 * 96, 4);
    for (std::size_t k = 32; k < 64; ++k) w[k] = 0.0f;
    const auto matrix = quantize(w, 2, grid);
    REQUIRE(matrix);
    CHECK(cbq::check_values(matrix->view(), grid));
    std::vector<float> decoded(w.size());
    REQUIRE(cbq::dequantize(matrix->view(), grid, cbq::matrix_view(decoded.data(), 2, 96)));
    for (std::size_t k = 32; k < 64; ++k) CHECK(decoded[k] == 0.0f);
    const auto nothing = quantize(std::vector<float>(64, 0.0f), 2, grid);
    REQUIRE(nothing);
    CHECK(cbq::check_values(nothing->view(), grid));
    CHECK(cbq::row(nothing->view().scales, 1)[0] == 1.0f);
    CHECK(*cbq::quantization_error(cbq::MatrixView<const float>{std::vector<float>(64, 0.0f).data(), 2, 32, 32},
                                   nothing->view(), grid) == 0.0);
  }
}

TEST_CASE("rows of very different size stay storable, and the large ones exact") {
  const Grid grid = make_grid(4, 0, Zero::symmetric);
  std::vector<float> w;
  for (const int exponent : {100, 90, 73, 60, 20, -60, -149}) {
    for (const float v : oracle::random_weights(40, 5)) w.push_back(std::ldexp(v, exponent));
  }
  const auto matrix = quantize(w, 7, grid);
  REQUIRE(matrix);
  CHECK(cbq::check_values(matrix->view(), grid));
  const auto scale = [&](std::size_t n) { return cbq::row(matrix->view().scales, n)[0]; };
  CHECK(scale(1) == scale(0) * 0x1p-10f);
  CHECK(scale(2) == scale(0) * 0x1p-27f);
  CHECK(scale(3) != scale(0) * 0x1p-40f);  // beyond 2^28: fewer bits, or the smallest scale
  for (std::size_t n = 4; n < 7; ++n) {
    CHECK(std::fabs(scale(n)) == scale(6));
    for (std::size_t k = 0; k < 40; ++k) CHECK(cbq::row(matrix->view().codes, n)[k] == 8);
  }
  const std::vector<float> tiny(64, 0x1p-140f);
  const auto subnormal = quantize(tiny, 2, grid);
  REQUIRE(subnormal);
  CHECK(cbq::check_values(subnormal->view(), grid));
}

TEST_CASE("weights that are not finite are named") {
  constexpr std::size_t rows = 40, columns = 50;
  for (const Granularity granularity : {Granularity::per_channel, Granularity::per_tensor}) {
    const Grid grid{.bits = 4, .granularity = granularity};
    for (const double bad :
         {static_cast<double>(NAN), static_cast<double>(INFINITY), -static_cast<double>(INFINITY), 1e39}) {
      std::vector<double> w = weights_of<double>(rows * columns, 6);
      w[17 * columns + 49] = bad;
      w[35 * columns + 2] = bad;  // the later one must not win, whatever the order of the tasks
      const auto matrix = cbq::round_nearest(cbq::MatrixView<const double>{w.data(), rows, columns, columns}, grid,
                                             cbq::MseRange{}, BackwardThreads{});
      REQUIRE(!matrix);
      CHECK(matrix.error().code == Errc::not_finite);
      CHECK(std::string(matrix.error().where.c_str()) == "row 17, column 49");
    }
  }
}

TEST_CASE("running out of memory anywhere is an error") {
  const auto check = [](const auto& w, const Grid& grid) {
    std::size_t failures = 0;
    for (bool failed = true; failed; ++failures) {
      REQUIRE(failures < 100);
      support::fail_allocation_after(failures);
      const auto matrix = quantize(w, 40, grid);  // three tasks
      failed = support::stop_failing_allocations();
      CAPTURE(failures);
      REQUIRE(matrix.has_value() == !failed);
      if (failed) CHECK(matrix.error().code == Errc::out_of_memory);
    }
    return failures - 1;
  };
  const std::vector<float> floats = weights_of<float>(40 * 64, 7);
  const std::vector<cbq::half> halves = weights_of<cbq::half>(40 * 64, 7);
  // Codes, scales, zero points and two reports; rows of halves need memory in each task of both passes, too.
  CHECK(check(floats, make_grid(4, 32, Zero::affine)) == 5);
  CHECK(check(halves, make_grid(4, 32, Zero::symmetric)) == 4 + 6);
  CHECK(check(halves, {.bits = 4, .granularity = Granularity::per_tensor}) == 5 + 6);
}

TEST_CASE("symmetric scales take either sign, affine and min-max ones are positive") {
  const std::vector<float> w = weights_of<float>(64 * 96, 8);
  const auto negative = [&](const cbq::QuantizedMatrix& matrix) {
    std::size_t count = 0;
    for (std::size_t n = 0; n < 64; ++n) {
      for (std::size_t g = 0; g < 3; ++g) {
        if (cbq::row(matrix.view().scales, n)[g] < 0) ++count;
      }
    }
    return count;
  };
  const auto symmetric = quantize(w, 64, make_grid(4, 32, Zero::symmetric));
  const auto affine = quantize(w, 64, make_grid(4, 32, Zero::affine));
  const auto covering =
      cbq::round_nearest(cbq::matrix_view(w.data(), 64, 96), make_grid(4, 32, Zero::symmetric), cbq::MinMaxRange{});
  REQUIRE((symmetric && affine && covering));
  CHECK(negative(*symmetric) > 192 / 4);
  CHECK(negative(*symmetric) < 192 * 3 / 4);
  CHECK(negative(*affine) == 0);
  CHECK(negative(*covering) == 0);
}

TEST_CASE("empty matrices, impossible grids and shapes") {
  const std::vector<float> w(64, 1.0f);
  const auto code = [&](std::size_t rows, std::size_t columns, std::size_t stride, const Grid& grid) {
    const auto matrix = cbq::round_nearest(cbq::MatrixView<const float>{w.data(), rows, columns, stride}, grid,
                                           cbq::MinMaxRange{}, cbq::SerialExecutor{});
    REQUIRE(!matrix);
    return matrix.error().code;
  };
  CHECK(code(2, 32, 32, {.bits = 9}) == Errc::bad_argument);
  CHECK(code(2, 32, 32, {.bits = 16}) == Errc::bad_argument);
  CHECK(code(2, 32, 31, {.bits = 4}) == Errc::bad_shape);
  CHECK(code(std::size_t{1} << 40, std::size_t{1} << 40, std::size_t{1} << 40, {.bits = 4}) == Errc::bad_shape);
  for (const Granularity granularity : {Granularity::per_channel, Granularity::per_tensor}) {
    const Grid grid{.bits = 4, .granularity = granularity};
    CHECK(cbq::round_nearest(cbq::MatrixView<const float>{w.data(), 0, 32, 32}, grid, cbq::MseRange{},
                             cbq::SerialExecutor{}));
    CHECK(cbq::round_nearest(cbq::MatrixView<const float>{w.data(), 2, 0, 0}, grid, cbq::MseRange{},
                             cbq::SerialExecutor{}));
  }
  const auto matrix = quantize(w, 2, {.bits = 4});
  REQUIRE(matrix);
  CHECK(!cbq::quantization_error(cbq::MatrixView<const float>{w.data(), 2, 31, 32}, matrix->view(), {.bits = 4}));
}
