// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/rows.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <span>
#include <vector>

#include "oracle/quant.hpp"

namespace {

// Around the block of 16, the piece of 1024, and primes.
constexpr std::size_t sizes[] = {0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 64, 127, 577, 1023, 1024, 1025, 2049};

// A row at an odd address between NaNs: a load beyond either end shows in the result.
struct GuardedRow {
  explicit GuardedRow(const std::vector<float>& values) : size(values.size()), memory(17, NAN) {
    memory.insert(memory.end(), values.begin(), values.end());
    memory.insert(memory.end(), 17, NAN);
  }
  [[nodiscard]] std::span<const float> span() const { return {memory.data() + 17, size}; }
  std::size_t size;
  std::vector<float> memory;
};

std::vector<double> doubles(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

}  // namespace

TEST_CASE("magnitudes, ranges and sums match plain loops at every length") {
  for (const std::size_t size : sizes) {
    CAPTURE(size);
    const std::vector<float> x = oracle::random_weights(size, static_cast<std::uint32_t>(size) + 5);
    const GuardedRow row(x);
    float largest = 0;
    double sum = 0, squares = 0, magnitudes = 0;
    for (const double v : doubles(x)) {
      largest = std::max(largest, static_cast<float>(std::fabs(v)));
      sum += v;
      squares += v * v;
      magnitudes += std::fabs(v);
    }
    CHECK(cbq::max_abs(row.span()) == largest);
    CHECK(std::fabs(cbq::sum(row.span()) - sum) <= 1e-6 * magnitudes);
    CHECK(std::fabs(cbq::sum_of_squares(row.span()) - squares) <= 1e-6 * squares);
    const cbq::Interval range = cbq::min_max(row.span());
    CHECK(range.low == (size == 0 ? 0.0f : *std::min_element(x.begin(), x.end())));
    CHECK(range.high == (size == 0 ? 0.0f : *std::max_element(x.begin(), x.end())));
  }
}

TEST_CASE("one NaN or infinity anywhere is seen") {
  for (const std::size_t size : {std::size_t{1}, std::size_t{17}, std::size_t{40}}) {
    for (std::size_t at = 0; at < size; ++at) {
      for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        CAPTURE(size, at, bad);
        std::vector<float> x(size, 1.0f);
        x[at] = bad;
        CHECK(!cbq::is_finite(cbq::max_abs(x)));
        const cbq::Interval range = cbq::min_max(x);
        CHECK((!cbq::is_finite(range.low) || !cbq::is_finite(range.high)));
      }
    }
  }
  CHECK(cbq::max_abs(std::vector<float>{-FLT_MAX, 1}) == FLT_MAX);
  CHECK(cbq::max_abs(std::vector<float>{FLT_TRUE_MIN, -0.0f}) == FLT_TRUE_MIN);
}

TEST_CASE("codes and fake-quantized values match the definition for all bits and zero points") {
  for (int bits = 2; bits <= 8; ++bits) {
    const int max_code = (1 << bits) - 1;
    for (const int zero : {0, 1, 1 << (bits - 1), max_code}) {
      for (const std::size_t size :
           {std::size_t{0}, std::size_t{1}, std::size_t{19}, std::size_t{64}, std::size_t{1025}}) {
        CAPTURE(bits, zero, size);
        std::vector<float> x = oracle::random_weights(size, 3, 2.0);
        const float scale = 0.1875f;  // exact products: ties occur and are exact
        for (std::size_t i = 0; i < size; i += 3) x[i] = scale * (std::round(x[i] / scale) + 0.5f);
        const GuardedRow row(x);
        std::vector<std::uint8_t> codes(size + 1, 0xee);
        std::vector<float> values(size + 1, -77.0f);
        cbq::quantize_row(row.span(), {scale, zero, max_code}, codes.data());
        cbq::fake_quantize_row(row.span(), {scale, zero, max_code}, values.data());
        const oracle::Grid grid{static_cast<double>(scale), zero, max_code};
        int wrong = 0;
        for (std::size_t i = 0; i < size; ++i) {
          const int expected = oracle::code(static_cast<double>(x[i]), grid);
          wrong += codes[i] == expected && static_cast<double>(values[i]) == oracle::value(expected, grid) ? 0 : 1;
        }
        CHECK(wrong == 0);
        CHECK(codes[size] == 0xee);
        CHECK(values[size] == -77.0f);
      }
    }
  }
}

TEST_CASE("extreme quotients stay on the grid") {
  const std::vector<float> x = {FLT_MAX, -FLT_MAX, FLT_TRUE_MIN, -FLT_TRUE_MIN, 0.0f, -0.0f};
  std::vector<std::uint8_t> codes(x.size());
  cbq::quantize_row(x, {0x1p-120f, 8, 15}, codes.data());
  CHECK(codes == std::vector<std::uint8_t>{15, 0, 8, 8, 8, 8});
  cbq::quantize_row(x, {0x1p120f, 100, 255}, codes.data());
  CHECK(codes == std::vector<std::uint8_t>{255, 0, 100, 100, 100, 100});
}

TEST_CASE("measure gives the error and moments of a grid") {
  for (const std::size_t size : sizes) {
    const std::vector<float> x = oracle::random_weights(size, 9);
    const GuardedRow row(x);
    const oracle::Grid grid{0.40625, 5, 15};
    double xd = 0, dd = 0, magnitudes = 0;
    for (const double v : doubles(x)) {
      const int d = oracle::code(v, grid) - grid.zero;
      xd += v * d;
      dd += d * d;
      magnitudes += std::fabs(v * d);
    }
    CAPTURE(size);
    const cbq::GridFit fit = cbq::measure(row.span(), {0.40625f, 5, 15});
    CHECK(std::fabs(fit.squared_error - oracle::squared_error(x, grid)) <=
          1e-5 * oracle::squared_error(x, grid) + 1e-12);
    CHECK(std::fabs(fit.x_dot_d - xd) <= 1e-6 * magnitudes);
    CHECK(fit.d_dot_d == dd);
  }
}

TEST_CASE("order statistics are exact") {
  for (const std::size_t size : {std::size_t{1}, std::size_t{5}, std::size_t{16}, std::size_t{99}}) {
    std::vector<float> x = oracle::random_weights(size, 21);
    if (size > 4) x[1] = x[3] = -x[0];  // ties
    if (size > 16) x[7] = -0.0f, x[8] = FLT_TRUE_MIN, x[9] = -FLT_MAX;
    const GuardedRow row(x);
    std::vector<float> values = x, magnitudes = x;
    for (float& v : magnitudes) v = std::fabs(v);
    std::sort(values.begin(), values.end());
    std::sort(magnitudes.begin(), magnitudes.end());
    for (std::size_t rank = 1; rank <= size; ++rank) {
      CAPTURE(size, rank);
      CHECK(cbq::order_statistic(row.span(), cbq::Compare::values, rank) == values[rank - 1]);
      CHECK(cbq::order_statistic(row.span(), cbq::Compare::magnitudes, rank) == magnitudes[rank - 1]);
    }
  }
}

TEST_CASE("the row's gradient is the double one at every length, ties included") {
  for (const std::size_t size : sizes) {
    for (const int zero : {0, 3, 8, 15}) {
      CAPTURE(size, zero);
      const float scale = 0.375f;
      std::vector<float> x = oracle::random_weights(size, 31, 1.5);
      for (std::size_t i = 0; i < size; i += 4) x[i] = scale * (std::round(x[i] / scale) + 0.5f);
      const std::vector<float> upstream = oracle::random_weights(size, 32);
      const GuardedRow row(x);
      std::vector<float> dx(size + 1, 55.0f);
      const cbq::RowGradient gradient = cbq::backward_row(row.span(), {scale, zero, 15}, upstream.data(), dx.data());
      double ds = 0, dz = 0, bound = 1e-9;
      int wrong = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const double g = static_cast<double>(upstream[i]), u = static_cast<double>(x[i]) / 0.375;
        const double v = oracle::round_half_even(u) + zero;
        const bool inside = v >= 0 && v <= 15;
        const double d = std::clamp(v, 0.0, 15.0) - zero;
        ds += g * (inside ? d - u : d);
        dz -= inside ? 0.0 : g * 0.375;
        bound += 1e-6 * std::fabs(g) * (1 + std::fabs(d));
        wrong += dx[i] == (inside ? upstream[i] : 0.0f) ? 0 : 1;
      }
      CHECK(wrong == 0);
      CHECK(dx[size] == 55.0f);
      CHECK(std::fabs(gradient.scale - ds) <= bound);
      CHECK(std::fabs(gradient.zero - dz) <= bound);
    }
  }
}
