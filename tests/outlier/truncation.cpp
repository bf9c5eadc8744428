// SPDX-License-Identifier: Apache-2.0
#include <cbq/outlier/truncation.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <cbq/outlier/omse.hpp>

#include "support/nn.hpp"

using cbq::Errc;
using cbq::ErrorGuard;
using cbq::Granularity;
using cbq::Grid;
using cbq::TruncationOptions;
using cbq::TruncationTarget;
using cbq::Zero;

namespace {

constexpr std::size_t inputs = 2000;
constexpr Grid four_bits = {.bits = 4};
constexpr TruncationOptions as_in_the_paper = {.largest_share = 1, .smallest_gap = 1, .error_guard = ErrorGuard::none};

// Normally distributed up to three standard deviations.
template <class T>
std::vector<T> random_rows(std::size_t rows, unsigned seed) {
  std::vector<float> values = support::normal(rows * inputs, seed, 0.02f);
  for (float& v : values) v = std::fabs(v) > 0.06f ? v / 2 : v;
  return {values.begin(), values.end()};
}

template <class T>
TruncationTarget<T> target_of(std::vector<T>& weights, const Grid& grid = four_bits) {
  return {cbq::matrix_view(weights.data(), weights.size() / inputs, inputs), grid, {}};
}

// Error of quantizing values to their min-max grid, against `wanted`, from the definition.
double min_max_error(const std::vector<double>& values, const std::vector<double>& wanted, int bits, bool affine) {
  double low = 0, high = 0;
  for (const double v : values) {
    low = std::fmin(low, v);
    high = std::fmax(high, v);
  }
  const double levels = std::pow(2.0, bits) - 1;
  const double scale = affine ? (high - low) / levels : std::fmax(-low, high) / (std::pow(2.0, bits - 1) - 1);
  const double zero = affine ? std::nearbyint(-low / scale) : std::pow(2.0, bits - 1);
  double error = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double code = std::fmin(std::fmax(std::nearbyint(values[i] / scale) + zero, 0.0), levels);
    error += std::pow(wanted[i] - scale * (code - zero), 2);
  }
  return error;
}

}  // namespace

TEMPLATE_TEST_CASE("a lone outlier is truncated to the largest other weight, in its row only", "", float, double) {
  std::vector<TestType> weights = random_rows<TestType>(3, 1);
  weights[inputs + 77] = TestType(-0.3);
  const std::vector<TestType> before = weights;
  const auto done = cbq::truncate_weights(target_of(weights));
  REQUIRE(done);
  CHECK(done->rows == 1);
  CHECK(done->elements == 1);
  // With the outlier the step is so large that most other weights become 0.
  CHECK(done->error_after < 0.5 * done->error_before);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (i != inputs + 77) CHECK(weights[i] == before[i]);
  }
  CHECK(weights[inputs + 77] < 0);
  CHECK(-weights[inputs + 77] < TestType(0.12));
  CHECK(-weights[inputs + 77] >= TestType(0.04));
}

TEST_CASE("rows without outliers are left alone by the guards and cut without them") {
  std::vector<float> weights = random_rows<float>(8, 2);
  const std::vector<float> before = weights;
  const auto guarded = cbq::truncate_weights(target_of(weights));
  REQUIRE(guarded);
  CHECK(guarded->rows == 0);
  CHECK(weights == before);
  const auto done = cbq::truncate_weights(target_of(weights), cbq::Iqr{}, as_in_the_paper);
  REQUIRE(done);
  CHECK(done->rows == 8);
  CHECK(done->elements > 8 * inputs / 100);  // 1.6 % of a normal distribution lie above the fence
  CHECK(weights != before);
}

TEST_CASE("each guard by itself keeps a row as it is") {
  const auto truncated = [](std::vector<float> weights, const TruncationOptions& options) {
    const auto done = cbq::truncate_weights(target_of(weights), cbq::CoarseToFine<>{}, options);
    REQUIRE(done);
    return done->elements;
  };
  // (b): three outliers among 2000 weights are more than 0.1 %, two are not.
  std::vector<float> weights(inputs, 0.5f);
  for (std::size_t i = 0; i < inputs; i += 2) weights[i] = 0.1f;
  weights[1] = weights[3] = 0.7f * 3;
  weights[5] = 0.7f * 3.1f;
  weights[7] = 1.3f;  // a candidate that stays
  const TruncationOptions only_share = {.smallest_gap = 1, .error_guard = ErrorGuard::none};
  CHECK(truncated(weights, as_in_the_paper) == 3);
  CHECK(truncated(weights, only_share) == 0);
  weights[5] = 0.5f;
  CHECK(truncated(weights, only_share) == 2);
  // (c): an outlier that exceeds the threshold by less than a fifth.
  weights.assign(inputs, 0.5f);
  for (std::size_t i = 0; i < inputs; i += 2) weights[i] = 0.1f;
  weights[1] = 1.101f * 1.19f;
  const TruncationOptions only_gap = {.largest_share = 1, .error_guard = ErrorGuard::none};
  CHECK(truncated(weights, as_in_the_paper) == 1);
  CHECK(truncated(weights, only_gap) == 0);
  weights[1] = 1.101f * 1.21f;
  CHECK(truncated(weights, only_gap) == 1);
  // (a): 8 bits represent the row well enough as it is, and the outlier itself would be lost.
  weights[1] = 2;
  const TruncationOptions only_error = {.largest_share = 1, .smallest_gap = 1};
  std::vector<float> copy = weights;
  const auto eight_bits = cbq::truncate_weights(target_of(copy, {.bits = 8}), cbq::CoarseToFine<>{}, only_error);
  REQUIRE(eight_bits);
  CHECK(eight_bits->rows == 0);
  CHECK(copy == weights);
}

TEST_CASE("the error is that of the definition, weighed by second moments") {
  for (const bool affine : {false, true}) {
    for (const int group : {0, 128}) {
      CAPTURE(affine, group);
      const Grid grid = {.bits = 3,
                         .granularity = group == 0 ? Granularity::per_channel : Granularity::per_group,
                         .group = group,
                         .zero = affine ? Zero::affine : Zero::symmetric};
      std::vector<double> weights = random_rows<double>(1, 3);
      weights[500] = 0.3;
      const std::vector<double> before = weights;
      const auto done =
          cbq::truncate_weights(target_of(weights, grid), cbq::CoarseToFine<>{}, {.error_guard = ErrorGuard::none});
      REQUIRE(done);
      REQUIRE(done->rows == 1);
      double error_before = 0, error_after = 0;
      const std::size_t length = group == 0 ? inputs : 128;
      for (std::size_t first = 0; first < inputs; first += length) {
        const auto part = [&](const std::vector<double>& v) {
          const std::size_t last = std::min(inputs, first + length);
          return std::vector<double>(v.begin() + static_cast<std::ptrdiff_t>(first),
                                     v.begin() + static_cast<std::ptrdiff_t>(last));
        };
        error_before += min_max_error(part(before), part(before), 3, affine);
        error_after += min_max_error(part(weights), part(before), 3, affine);
      }
      CHECK(done->error_before == Catch::Approx(error_before).epsilon(1e-4));
      CHECK(done->error_after == Catch::Approx(error_after).epsilon(1e-4));
    }
  }
  // An input that is never large is worth losing; one that is always large is not.
  std::vector<double> moments(inputs, 1.0);
  for (const double moment : {0.0, 1e6}) {
    moments[500] = moment;
    std::vector<double> weights = random_rows<double>(1, 3);
    weights[500] = 0.3;
    TruncationTarget<double> target = target_of(weights);
    target.second_moments = moments;
    const auto done = cbq::truncate_weights(target);
    REQUIRE(done);
    CHECK(done->rows == (moment == 0 ? 1 : 0));
  }
}

TEST_CASE("OMSE finds the ratio that an exhaustive search finds, and the range stays where it was put") {
  for (const bool affine : {false, true}) {
    const Grid grid = {.bits = 2, .zero = affine ? Zero::affine : Zero::symmetric};
    std::vector<double> weights = random_rows<double>(2, 4);
    const std::vector<double> before = weights;
    const auto done = cbq::clip_weights(target_of(weights, grid));
    REQUIRE(done);
    CHECK(done->rows == 2);
    double total = 0;
    for (std::size_t r = 0; r < 2; ++r) {
      const std::vector<double> row(before.begin() + static_cast<std::ptrdiff_t>(r * inputs),
                                    before.begin() + static_cast<std::ptrdiff_t>((r + 1) * inputs));
      const auto [low, high] = std::minmax_element(row.begin(), row.end());
      const double size = std::fmax(-*low, *high);
      double best = INFINITY;
      for (int i = 0; i <= 25; ++i) {
        const double ratio = 1 - 0.02 * i;
        std::vector<double> clipped = row;
        for (double& v : clipped) {
          v = affine ? std::clamp(v, ratio * *low, ratio * *high) : std::clamp(v, -ratio * size, ratio * size);
        }
        best = std::fmin(best, min_max_error(clipped, row, 2, affine));
      }
      total += best;
    }
    CHECK(done->error_after == Catch::Approx(total).epsilon(1e-4));
    CHECK(done->error_after < 0.9 * done->error_before);
  }
  std::vector<float> weights = random_rows<float>(1, 4);
  CHECK(cbq::clip_weights(target_of(weights), {.smallest_ratio = 0}).error().code == Errc::bad_argument);
  CHECK(cbq::clip_weights(target_of(weights), {.step = 0}).error().code == Errc::bad_argument);
  const std::vector<float> before = weights;
  REQUIRE(cbq::clip_weights(target_of(weights), {.smallest_ratio = 1}));
  CHECK(weights == before);
}

TEST_CASE("truncation and clipping do not depend on the executor") {
  std::vector<float> weights = random_rows<float>(50, 6);
  for (std::size_t r = 0; r < 50; r += 3) weights[r * inputs + r] = 0.3f;
  std::vector<float> threaded = weights;
  const auto one = cbq::truncate_weights(target_of(weights));
  const auto many =
      cbq::truncate_weights(target_of(threaded), cbq::CoarseToFine<>{}, TruncationOptions{}, support::ThreadExecutor{});
  REQUIRE(one);
  REQUIRE(many);
  CHECK(one->rows == 17);
  CHECK(one->error_after == many->error_after);
  CHECK(weights == threaded);
  REQUIRE(cbq::clip_weights(target_of(weights)));
  REQUIRE(cbq::clip_weights(target_of(threaded), {}, support::ThreadExecutor{}));
  CHECK(weights == threaded);
}

TEST_CASE("zeros, constants and empty matrices pass through; bad input is named and changes nothing") {
  for (const float value : {0.0f, -3.0f}) {
    std::vector<float> weights(2 * inputs, value);
    REQUIRE(cbq::truncate_weights(target_of(weights), cbq::CoarseToFine<>{}, as_in_the_paper));
    REQUIRE(cbq::clip_weights(target_of(weights)));
    if (value == 0) CHECK(weights == std::vector<float>(2 * inputs, 0.0f));
  }
  std::vector<float> none;
  CHECK(cbq::truncate_weights(TruncationTarget<float>{})->rows == 0);
  CHECK(cbq::truncate_weights(target_of(none))->rows == 0);
  std::vector<float> weights = random_rows<float>(3, 7);
  weights[5] = 1;
  weights[2 * inputs + 9] = std::nanf("");
  const std::vector<float> before(weights.begin(), weights.begin() + inputs);
  const auto failed = cbq::truncate_weights(target_of(weights));
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
  CHECK(std::string(failed.error().where.c_str()) == "row 2, column 9");
  CHECK(std::vector<float>(weights.begin(), weights.begin() + inputs) == before);
  std::vector<double> large(inputs, 1e300);
  CHECK(cbq::truncate_weights(target_of(large)).error().code == Errc::not_finite);
  CHECK(cbq::truncate_weights(target_of(large, {.bits = 16})).error().code == Errc::bad_argument);
  TruncationTarget<double> target = target_of(large);
  target.second_moments = std::span<const double>(large).first(3);
  CHECK(cbq::truncate_weights(target).error().code == Errc::bad_shape);
}
