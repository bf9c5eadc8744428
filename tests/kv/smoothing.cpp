// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/smoothing.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <cbq/kv/affine_refinement.hpp>

#include "support/nn.hpp"

using cbq::Errc;
using cbq::find_kv_smoothing;
using cbq::KvChannelStatistics;
using cbq::KvSmoothing;
using cbq::matrix_view;

namespace {

// Two tokens of one head of four channels.
KvChannelStatistics example() {
  const std::vector<float> queries = {1, 2, 3, 0, 1, -2, 3, 0};
  const std::vector<float> keys = {5, 1, 0, 2, 3, -7, 32, 2};    // means 4, -3, 16, 2; deviations 1, 4, 16, 0
  const std::vector<float> values = {1, 10, 0, -4, 3, 2, 0, 4};  // means 2, 6, 0, 0; deviations 1, 4, 0, 4
  KvChannelStatistics statistics = KvChannelStatistics::create({.heads = 1, .width = 4}).value();
  REQUIRE(statistics.add(matrix_view(queries.data(), 2, 4), matrix_view(keys.data(), 2, 4),
                         matrix_view(values.data(), 2, 4), "layer 0"));
  return statistics;
}

void check_factors(const cbq::AlignedBuffer<float>& got, const std::vector<double>& wanted) {
  REQUIRE(got.size() == wanted.size());
  for (std::size_t c = 0; c < wanted.size(); ++c) {
    INFO("channel " << c);
    CHECK(got[c] == Catch::Approx(wanted[c]).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("smoothing of a worked example", "[kv]") {
  const KvSmoothing smoothing = find_kv_smoothing(example()).value();
  check_factors(smoothing.key_offsets, {4, -3, 16, 2});
  check_factors(smoothing.key_scales, {0.5, 1, 2, 1});  // roots of 1, 4, 16 divided by their geometric mean 2; dead: 1
  check_factors(smoothing.value_offsets, {2, 6, 0, 0});
  const double values = std::cbrt(4.0);  // geometric mean of 1, 2, 2
  check_factors(smoothing.value_scales, {1 / values, 2 / values, 1, 2 / values});
  // Squares of queries 1, 4, 9, 0 times squares of scales: 0.25, 4, 36, 0, of mean 10.0625.
  check_factors(smoothing.key_weights, {0.25 / 10.0625, 4 / 10.0625, 36 / 10.0625, 0});
}

TEST_CASE("for rotated heads queries share in the scales", "[kv]") {
  const cbq::KvScheme scheme = {.smoothed = true, .hadamard = true};
  const KvSmoothing smoothing = find_kv_smoothing(example(), cbq::kv_smoothing_options(scheme)).value();
  // Roots of 1/1, 4/2, 16/3; channel 3 has no deviation.
  const double middle = std::pow(1.0 * 2.0 * 16.0 / 3.0, 1.0 / 6.0);
  check_factors(smoothing.key_scales, {1 / middle, std::sqrt(2.0) / middle, std::sqrt(16.0 / 3.0) / middle, 1});
  const cbq::RowTransform transform = smoothing.transform(scheme);
  CHECK(transform.hadamard);
  CHECK(transform.key_scales == smoothing.key_scales.data());
  CHECK(transform.key_weights == nullptr);
  CHECK(transform.refinements == 2);
}

TEST_CASE("what a cache is told follows its scheme", "[kv]") {
  const KvSmoothing smoothing = find_kv_smoothing(example()).value();
  const cbq::RowTransform smoothed = smoothing.transform({.smoothed = true});
  CHECK(smoothed.key_scales == smoothing.key_scales.data());
  CHECK(smoothed.key_offsets == smoothing.key_offsets.data());
  CHECK(smoothed.key_weights == smoothing.key_weights.data());
  CHECK(smoothed.value_scales == smoothing.value_scales.data());
  CHECK(smoothed.value_offsets == smoothing.value_offsets.data());
  CHECK(smoothed.refinements == 2);
  CHECK(cbq::check_row_transform(smoothed, {.heads = 1, .width = 4}));
  const cbq::RowTransform plain = smoothing.transform({});
  CHECK(plain.key_scales == nullptr);
  CHECK(plain.value_offsets == nullptr);
  CHECK(plain.refinements == 0);
  CHECK(smoothing.transform({.hadamard = true}).refinements == 2);
}

TEST_CASE("scales have limits and dead heads scale 1", "[kv]") {
  const std::vector<float> keys = {0, 0, 0, 0, 1e-12f, 1e12f, 0, 0};  // head 1 never varies
  const std::vector<float> none(8, 0.0f);
  KvChannelStatistics statistics = KvChannelStatistics::create({.heads = 2, .width = 2}).value();
  REQUIRE(statistics.add(matrix_view(none.data(), 2, 4), matrix_view(keys.data(), 2, 4), matrix_view(none.data(), 2, 4),
                         "layer 0"));
  const KvSmoothing smoothing = find_kv_smoothing(statistics, {.largest_factor = 100}).value();
  check_factors(smoothing.key_scales, {0.01, 100, 1, 1});
  check_factors(smoothing.key_weights, {1, 1, 1, 1});  // no query tells
  check_factors(smoothing.value_scales, {1, 1, 1, 1});
}

TEST_CASE("statistics that tell nothing are errors", "[kv]") {
  KvChannelStatistics statistics = KvChannelStatistics::create({.heads = 1, .width = 4}).value();
  CHECK(find_kv_smoothing(statistics).error().code == Errc::bad_argument);
  CHECK(find_kv_smoothing(example(), {.key_exponent = std::nan("")}).error().code == Errc::bad_argument);
  CHECK(find_kv_smoothing(example(), {.query_exponent = -0.1}).error().code == Errc::bad_argument);
  CHECK(find_kv_smoothing(example(), {.value_exponent = 2.5}).error().code == Errc::bad_argument);
  CHECK(find_kv_smoothing(example(), {.largest_factor = 0.5}).error().code == Errc::bad_argument);
  CHECK(find_kv_smoothing(example(), {.largest_factor = std::nan("")}).error().code == Errc::bad_argument);
}

TEST_CASE("scales that leave float are errors, not factors of 0 or infinity", "[kv]") {
  const auto spread = [](float low, float high) {
    const std::vector<float> rows = {low, high, -low, -high};
    const auto x = matrix_view(rows.data(), 2, 2);
    KvChannelStatistics statistics = KvChannelStatistics::create({.heads = 1, .width = 2}).value();
    REQUIRE(statistics.add(x, x, x, "layer 0"));
    return statistics;
  };
  const auto code = [](const KvChannelStatistics& statistics, const cbq::KvSmoothingOptions& options) {
    const auto found = find_kv_smoothing(statistics, options);
    REQUIRE_FALSE(found);
    return found.error().code;
  };
  const KvChannelStatistics wide = spread(1e-30f, 1e30f);  // squares are 60 digits apart from their geometric mean
  CHECK(code(wide, {.key_exponent = 2, .largest_factor = 1e300}) == Errc::bad_argument);
  CHECK(code(wide, {.value_exponent = 2, .largest_factor = INFINITY}) == Errc::bad_argument);
  const std::vector<float> rows = {1e-20f, 1e-20f, 1e-20f, 1e20f, -1e-20f, -1e-20f, -1e-20f, -1e20f};
  const auto x = matrix_view(rows.data(), 2, 4);
  KvChannelStatistics loud = KvChannelStatistics::create({.heads = 1, .width = 4}).value();
  REQUIRE(loud.add(x, x, x, "layer 0"));  // scales 1e-20, 1e60
  CHECK(code(loud, {.key_exponent = 2, .largest_factor = 1e300}) == Errc::not_finite);
  CHECK(find_kv_smoothing(wide, {.key_exponent = 2, .value_exponent = 2, .largest_factor = 1e30}).has_value());
}

TEST_CASE("smoothing lowers the error of the scores of keys with loud channels and of values", "[kv]") {
  // Keys of 64 channels of which four are loud and far from zero, queries of equal size: the sum of squared errors of
  // scores, quantized to 4 bits per token with and without the recipe.
  constexpr std::size_t tokens = 64, width = 64;
  std::vector<float> keys = support::normal(tokens * width, 11);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i % width % 16 == 3) keys[i] = 4 * keys[i] + 12;
  }
  const std::vector<float> queries = support::normal(tokens * width, 12);
  KvChannelStatistics statistics = KvChannelStatistics::create({.heads = 1, .width = width}).value();
  const auto view = matrix_view<const float>(keys.data(), tokens, width);
  REQUIRE(statistics.add(matrix_view<const float>(queries.data(), tokens, width), view, view, "layer 0"));
  const KvSmoothing smoothing = find_kv_smoothing(statistics).value();
  const auto loss = [&](const cbq::RowTransform& transform) {
    double total = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::vector<float> key(keys.begin() + static_cast<std::ptrdiff_t>(t * width),
                             keys.begin() + static_cast<std::ptrdiff_t>((t + 1) * width));
      cbq::transform_key<float>(transform, 0, key, cbq::Isa::scalar);
      const cbq::AffineGroup fit = cbq::refine_affine_group(key, cbq::fit_affine_group(cbq::min_max(key), 4).value(), 4,
                                                            cbq::key_refinement(transform, 0, width));
      std::vector<std::uint8_t> codes(width);
      cbq::affine_codes(key, fit, 4, codes.data());
      for (std::size_t c = 0; c < width; ++c) {
        const double off = key[c] - affine_value(codes[c], fit);
        const double scale = transform.key_scales == nullptr ? 1.0 : static_cast<double>(transform.key_scales[c]);
        total += off * scale * off * scale;
      }
    }
    return total;
  };
  const double plain = loss({}), smoothed = loss(smoothing.transform({.smoothed = true}));
  cbq::RowTransform not_refined = smoothing.transform({.smoothed = true});
  not_refined.refinements = 0;
  CHECK(loss(not_refined) < 0.5 * plain);
  CHECK(smoothed < 0.95 * loss(not_refined));
}
