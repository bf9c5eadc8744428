// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/range.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "oracle/quant.hpp"

using cbq::CodeGrid;
using cbq::Grid;
using cbq::ScalePrecision;
using cbq::Zero;

namespace {

oracle::Grid in_double(const CodeGrid& grid) {
  return {static_cast<double>(grid.scale), grid.zero, grid.max_code};
}

// What every finder promises.
void check_grid(const CodeGrid& found, const Grid& grid) {
  CHECK((grid.zero == Zero::affine ? found.scale > 0 : found.scale != 0));
  CHECK(cbq::is_finite(found.scale));
  CHECK(cbq::round_scale(found.scale) == found.scale);
  CHECK(found.max_code == (1 << grid.bits) - 1);
  CHECK(found.zero >= 0);
  CHECK(found.zero <= found.max_code);
  if (grid.zero == Zero::symmetric) CHECK(found.zero == 1 << (grid.bits - 1));
}

template <class Body>
void for_all_grids(Body body) {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const Zero zero : {Zero::symmetric, Zero::affine}) {
      CAPTURE(bits, zero == Zero::affine);
      body(Grid{.bits = bits, .zero = zero});
    }
  }
}

}  // namespace

TEST_CASE("min-max covers every value and no more") {
  for_all_grids([](const Grid& grid) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{31}, std::size_t{200}}) {
      const std::vector<float> x = oracle::random_weights(size, 2);
      const CodeGrid found = cbq::MinMaxRange{}.find(x, grid, ScalePrecision::half);
      check_grid(found, grid);
      CHECK(found.scale > 0);
      const double low = std::min(0.0, static_cast<double>(*std::min_element(x.begin(), x.end())));
      const double high = std::max(0.0, static_cast<double>(*std::max_element(x.begin(), x.end())));
      const double wanted = grid.zero == Zero::affine ? (high - low) / found.max_code
                                                      : std::max(-low, high) / ((1 << (grid.bits - 1)) - 1);
      CHECK(std::fabs(static_cast<double>(found.scale) - wanted) <= 0x1p-11 * wanted);
      if (grid.zero == Zero::affine)
        CHECK(found.zero == oracle::round_half_even(-low / static_cast<double>(found.scale)));
      // Half a step, and what rounding the scale and the zero point can cut off at the ends.
      for (const float v : x) {
        const double value = static_cast<double>(v);
        const double error = std::fabs(value - oracle::value(oracle::code(value, in_double(found)), in_double(found)));
        CHECK(error <= wanted * (grid.zero == Zero::affine ? 1.0 : 0.5) + std::fabs(value) * 0x1p-10);
      }
    }
  });
}

TEST_CASE("full precision keeps all bits of the scale") {
  const std::vector<float> x = {0.1f, -0.7123456f};
  CHECK(cbq::MinMaxRange{}.find(x, {.bits = 8}, ScalePrecision::full).scale == static_cast<float>(0.7123456f / 127.0));
  CHECK(cbq::MinMaxRange{}.find(x, {.bits = 8}, ScalePrecision::half).scale != static_cast<float>(0.7123456f / 127.0));
}

TEMPLATE_TEST_CASE("degenerate segments have defined grids", "", cbq::MinMaxRange, cbq::ClippedRange, cbq::MseRange) {
  const TestType finder{};
  const auto quantized = [&](const std::vector<float>& x, const Grid& grid, std::size_t i) {
    const CodeGrid found = finder.find(x, grid, ScalePrecision::half);
    check_grid(found, grid);
    const double v = static_cast<double>(x[i]);
    return oracle::value(oracle::code(v, in_double(found)), in_double(found));
  };
  for_all_grids([&](const Grid& grid) {
    for (const std::vector<float>& x :
         {std::vector<float>{}, std::vector<float>{0}, std::vector<float>(33, -0.0f),
          std::vector<float>{FLT_TRUE_MIN, -FLT_TRUE_MIN}, std::vector<float>{0x1p-120f}}) {
      CHECK(finder.find(x, grid, ScalePrecision::half).scale == 0);
    }
    // One value or a constant is kept to the precision of the scale, of either sign.
    for (const float v : {1.0f, -0.3f, 1e-20f, -1e20f, FLT_MAX / 2}) {
      CAPTURE(v);
      const double value = static_cast<double>(v);
      CHECK(std::fabs(quantized({v}, grid, 0) - value) <= std::fabs(value) * 0x1p-10);
      CHECK(std::fabs(quantized(std::vector<float>(50, v), grid, 17) - value) <= std::fabs(value) * 0x1p-10);
    }
    check_grid(finder.find(std::vector<float>{FLT_MAX, -FLT_MAX}, grid, ScalePrecision::half), grid);
  });
  // Zero belongs to an affine range that the values leave out.
  CHECK(finder.find(std::vector<float>{3, 4, 5}, {.bits = 4, .zero = Zero::affine}, ScalePrecision::half).zero == 0);
  CHECK(finder.find(std::vector<float>{-3, -4, -5}, {.bits = 4, .zero = Zero::affine}, ScalePrecision::half).zero ==
        15);
}

TEST_CASE("clipping cuts at the nearest rank") {
  std::vector<float> x = oracle::random_weights(1000, 8);
  std::vector<float> sorted = x, magnitudes = x;
  for (float& v : magnitudes) v = std::fabs(v);
  std::sort(sorted.begin(), sorted.end());
  std::sort(magnitudes.begin(), magnitudes.end());
  const Grid symmetric{.bits = 4}, affine{.bits = 4, .zero = Zero::affine};
  const auto symmetric_scale = [&](double keep) {
    return cbq::ClippedRange{keep}.find(x, symmetric, ScalePrecision::full).scale;
  };
  CHECK(symmetric_scale(0.99) == static_cast<float>(static_cast<double>(magnitudes[989]) / 7));
  CHECK(symmetric_scale(0.9895) == static_cast<float>(static_cast<double>(magnitudes[989]) / 7));
  CHECK(symmetric_scale(0.5) == static_cast<float>(static_cast<double>(magnitudes[499]) / 7));
  CHECK(symmetric_scale(1e-9) == static_cast<float>(static_cast<double>(magnitudes[0]) / 7));
  const CodeGrid cut = cbq::ClippedRange{0.98}.find(x, affine, ScalePrecision::full);
  const double width = static_cast<double>(sorted[989]) - static_cast<double>(sorted[10]);
  CHECK(cut.scale == static_cast<float>(width / 15));
  const float all = cbq::MinMaxRange{}.find(x, symmetric, ScalePrecision::full).scale;
  for (const double keep : {1.0, 2.0, 0.0, -1.0, static_cast<double>(NAN)}) CHECK(symmetric_scale(keep) == all);
}

TEST_CASE("the MSE search is never worse than min-max") {
  for_all_grids([](const Grid& grid) {
    for (std::uint32_t seed = 0; seed < 6; ++seed) {
      const std::vector<float> x = oracle::random_weights(seed % 2 == 0 ? 32 : 97, 40 + seed);
      const CodeGrid best = cbq::MseRange{}.find(x, grid, ScalePrecision::half);
      const CodeGrid covering = cbq::MinMaxRange{}.find(x, grid, ScalePrecision::half);
      check_grid(best, grid);
      CHECK(oracle::squared_error(x, in_double(best)) <= oracle::squared_error(x, in_double(covering)) * (1 + 1e-5));
    }
  });
}

TEST_CASE("the MSE search comes close to an exhaustive one") {
  for_all_grids([](const Grid& grid) {
    if (grid.zero == Zero::affine && grid.bits > 4) return;  // too many grids to try them all
    const int first = grid.zero == Zero::affine ? 0 : 1 << (grid.bits - 1);
    const int last = grid.zero == Zero::affine ? (1 << grid.bits) - 1 : first;
    constexpr std::uint32_t seeds = 6;
    double to_exhaustive = 0, to_positive = 0;  // mean ratios
    for (std::uint32_t seed = 0; seed < seeds; ++seed) {
      std::vector<float> x = oracle::random_weights(32, 60 + seed);
      if (seed == 5) x[3] = 40;  // an outlier that is worth clipping, or is not
      const CodeGrid best = cbq::MseRange{}.find(x, grid, ScalePrecision::half);
      const double error = oracle::squared_error(x, in_double(best));
      const double top = 1.2 * static_cast<double>(cbq::MinMaxRange{}.find(x, grid, ScalePrecision::full).scale);
      const auto least = [&](double end) {
        return oracle::best_squared_error(x, end, first, last, best.max_code, grid.bits > 4 ? 1500 : 500);
      };
      const double upright = least(top), mirrored = grid.zero == Zero::symmetric ? least(-top) : upright;
      to_exhaustive += error / std::min(upright, mirrored) / seeds;
      to_positive += error / upright / seeds;
    }
    // With many codes the best scale is the luckiest one, and may lie anywhere.
    CHECK(to_exhaustive <= (grid.bits > 4 ? 1.03 : 1.002));
    if (grid.zero == Zero::symmetric && grid.bits <= 4) CHECK(to_positive <= 0.95);
  });
}

TEST_CASE("the sign of a symmetric scale gives the extra code to the side that needs it") {
  const auto find = [](const std::vector<float>& x) {
    return cbq::MseRange{}.find(x, {.bits = 2}, ScalePrecision::half).scale;
  };
  CHECK(find({-2, -1, 0, 1}) == 1.0f);
  CHECK(find({2, 1, 0, -1}) == -1.0f);
  for (int bits = 2; bits <= 8; ++bits) {
    for (std::uint32_t seed = 0; seed < 20; ++seed) {
      CAPTURE(bits, seed);
      const Grid grid{.bits = bits};
      std::vector<float> x = oracle::random_weights(seed % 2 == 0 ? 32 : 45, 200 + seed), mirrored = x;
      for (float& v : mirrored) v = -v;
      const CodeGrid here = cbq::MseRange{}.find(x, grid, ScalePrecision::half);
      const CodeGrid there = cbq::MseRange{}.find(mirrored, grid, ScalePrecision::half);
      // The same values but for the sign have the same choice of grids, so the sums of both are equal.
      CHECK(oracle::squared_error(x, in_double(here)) ==
            Catch::Approx(oracle::squared_error(mirrored, in_double(there))).epsilon(1e-5));
      // Never worse than a fine grid of positive scales, to the tolerance of the search.
      const double covering = static_cast<double>(cbq::MinMaxRange{}.find(x, grid, ScalePrecision::full).scale);
      const int zero = 1 << (bits - 1);
      const double positive = oracle::best_squared_error(x, 1.1 * covering, zero, zero, here.max_code, 300);
      CHECK(oracle::squared_error(x, in_double(here)) <= 1.05 * positive);
    }
  }
}

TEST_CASE("clipping bounds the error of every smaller scale from below") {
  for_all_grids([](const Grid& grid) {
    const std::vector<float> x = oracle::random_weights(40, 91);
    const cbq::Interval extremes = cbq::min_max(x);
    const CodeGrid covering = cbq::MinMaxRange{}.find(x, grid, ScalePrecision::full);
    CHECK(cbq::ranges::clipping_error(extremes, covering, grid.zero) <= 1e-9 * static_cast<double>(covering.scale));
    for (const float sign : {1.0f, -1.0f}) {
      if (sign < 0 && grid.zero == Zero::affine) continue;
      double before = 0;
      for (int i = 1; i <= 40; ++i) {
        CodeGrid at = covering;
        at.scale = sign * covering.scale * (1.0f - 0.02f * static_cast<float>(i));
        const double bound = cbq::ranges::clipping_error(extremes, at, grid.zero);
        CHECK(bound >= before);
        CHECK(bound <= oracle::squared_error(x, in_double(at)));
        before = bound;
      }
      CHECK(before > 0);
    }
  });
}

TEST_CASE("the search commutes with powers of two and does not depend on alignment") {
  for_all_grids([](const Grid& grid) {
    const std::vector<float> x = oracle::random_weights(61, 77);
    const CodeGrid base = cbq::MseRange{}.find(x, grid, ScalePrecision::half);
    std::vector<float> shifted(64, 1e30f);
    for (std::size_t i = 0; i < x.size(); ++i) shifted[i + 3] = x[i] * 0x1p-20f;
    const CodeGrid scaled = cbq::MseRange{}.find({shifted.data() + 3, 61}, grid, ScalePrecision::half);
    CHECK(scaled.scale == base.scale * 0x1p-20f);
    CHECK(scaled.zero == base.zero);
  });
}
