// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/activation_range.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "oracle/quant.hpp"

using namespace cbq;

namespace {

MatrixView<const float> rows_of(const std::vector<float>& x, std::size_t channels) {
  return matrix_view(x.data(), x.size() / channels, channels);
}

/// The value that at least `percent` percent of x are not above.
float percentile(std::vector<float> x, double percent) {
  std::sort(x.begin(), x.end());
  std::size_t rank = 1;
  while (static_cast<double>(rank) * 100 < percent * static_cast<double>(x.size())) ++rank;
  return x[rank - 1];
}

}  // namespace

TEST_CASE("A range that is built of pieces is that of all rows, per tensor and per channel") {
  const std::size_t channels = 7;
  const std::vector<float> x = oracle::random_weights(100 * channels, 3);
  auto range = *ActivationRange::create(channels, 8);
  CHECK((range.tensor().low == 0.0f && range.channel(3).high == 0.0f && range.sample().rows == 0));
  for (const std::size_t piece : {1u, 0u, 39u, 60u}) {
    REQUIRE(range.add(rows(rows_of(x, channels), range.tokens(), piece)));
  }
  CHECK(range.tokens() == 100);
  CHECK(range.tensor().low == *std::min_element(x.begin(), x.end()));
  CHECK(range.tensor().high == *std::max_element(x.begin(), x.end()));
  for (std::size_t c = 0; c < channels; ++c) {
    std::vector<float> column;
    for (std::size_t t = 0; t < 100; ++t) column.push_back(x[t * channels + c]);
    CHECK(range.channel(c).low == *std::min_element(column.begin(), column.end()));
    CHECK(range.channel(c).high == *std::max_element(column.begin(), column.end()));
  }
  // All positive: zero is not added, that is for grids to do.
  auto positive = *ActivationRange::create(1);
  REQUIRE(positive.add(rows_of({2.0f, 3.0f}, 1)));
  CHECK(positive.tensor().low == 2.0f);
}

TEST_CASE("Percentiles are exact while all rows are in the sample") {
  const std::size_t channels = 5;
  std::vector<float> x = oracle::random_weights(200 * channels, 4);
  for (float& v : x) v = v * v * v + 0.1f;
  auto range = *ActivationRange::create(channels, 200);
  REQUIRE(range.add(rows_of(x, channels)));
  std::vector<float> magnitudes = x, column;
  for (float& v : magnitudes) v = std::fabs(v);
  for (std::size_t t = 0; t < 200; ++t) column.push_back(x[t * channels + 2]);
  for (const double percent : {0.01, 50.0, 90.0, 99.0, 99.9}) {
    CAPTURE(percent);
    const float limit = percentile(magnitudes, percent);
    CHECK(range.tensor(percent, Zero::symmetric)->high == limit);
    CHECK(range.tensor(percent, Zero::symmetric)->low == -limit);
    CHECK(range.tensor(percent, Zero::affine)->high == percentile(x, 50 + percent / 2));
    std::vector<float> negated = x;
    for (float& v : negated) v = -v;
    CHECK(range.tensor(percent, Zero::affine)->low == -percentile(negated, 50 + percent / 2));
    CHECK(range.channel(2, percent, Zero::affine)->high == percentile(column, 50 + percent / 2));
  }
  CHECK(range.tensor(100, Zero::affine)->low == range.tensor().low);
  CHECK(range.tensor(100, Zero::symmetric)->high == *std::max_element(magnitudes.begin(), magnitudes.end()));
}

TEST_CASE("Of more rows than the sample holds, every part of the text is sampled alike") {
  auto range = *ActivationRange::create(1, 512);
  std::vector<float> x(16384);
  for (std::size_t t = 0; t < x.size(); ++t) x[t] = static_cast<float>(t);
  for (std::size_t first = 0; first < x.size(); first += 128) REQUIRE(range.add(rows(rows_of(x, 1), first, 128)));
  const MatrixView<const float> sample = range.sample();
  REQUIRE(sample.rows == 512);
  std::vector<int> eighths(8), beginnings(1);
  for (std::size_t r = 0; r < 512; ++r) {
    const auto token = static_cast<std::size_t>(*row(sample, r));
    ++eighths[token / 2048];
    beginnings[0] += token % 128 == 0 ? 1 : 0;
  }
  for (const int count : eighths) CHECK(std::abs(count - 64) < 32);  // four standard deviations
  CHECK(beginnings[0] < 16);                                         // 4 wanted
  CHECK(std::set<float>(sample.data, sample.data + 512).size() == 512);
  CHECK(std::fabs(range.tensor(90, Zero::symmetric)->high / 16384 - 0.9f) < 0.05f);
  // The extremes are those of all rows.
  CHECK(range.tensor(100, Zero::affine)->high == 16383.0f);
}

TEST_CASE("Percentiles next to zero are the values in the middle") {
  for (const std::size_t count : {1u, 2u, 3u, 4u}) {
    auto range = *ActivationRange::create(1);
    std::vector<float> x;
    for (std::size_t i = 0; i < count; ++i) x.push_back(static_cast<float>(i));
    REQUIRE(range.add(rows_of(x, 1)));
    const auto cut = range.tensor(1e-20, Zero::affine);
    REQUIRE(cut);
    CHECK(cut->low == static_cast<float>((count - 1) / 2));
    CHECK(cut->high == static_cast<float>(count / 2));
  }
}

TEST_CASE("Percentiles outside (0, 100] and rows that do not fit are refused") {
  auto range = *ActivationRange::create(3);
  for (const double wrong : {0.0, -1.0, 100.5, std::nan("")}) {
    CHECK(range.tensor(wrong, Zero::symmetric).error().code == Errc::bad_argument);
    CHECK(range.channel(0, wrong, Zero::affine).error().code == Errc::bad_argument);
  }
  CHECK(range.channel(3, 99, Zero::affine).error().code == Errc::bad_argument);
  CHECK(ActivationRange::create(3, 0).error().code == Errc::bad_argument);
  CHECK(ActivationRange::create(~std::size_t{0}).error().code == Errc::bad_shape);
  CHECK(range.add(rows_of({1, 2, 3, 4}, 4)).error().code == Errc::bad_shape);
  std::vector<float> x(9, 1.0f);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    x[5] = bad;
    const Status refused = range.add(rows_of(x, 3));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::not_finite);
    CHECK(std::string(refused.error().where.c_str()) == "token 1");
  }
  CHECK(range.tokens() == 0);
}
