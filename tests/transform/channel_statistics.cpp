// SPDX-License-Identifier: Apache-2.0
#include <cbq/transform/channel_statistics.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/nn.hpp"

using cbq::ChannelStatistics;
using cbq::Errc;

namespace {

template <class T>
cbq::MatrixView<const T> matrix(const std::vector<T>& values, std::size_t columns) {
  return cbq::matrix_view(values.data(), values.size() / columns, columns);
}

}  // namespace

TEMPLATE_TEST_CASE("statistics are those of all tokens of all batches", "", float, double) {
  for (const std::size_t channels : {1u, 63u, 64u, 65u, 200u}) {
    const std::vector<float> random = support::normal(37 * channels, 1);
    std::vector<TestType> x(random.begin(), random.end());
    for (TestType& v : x) v -= TestType(3);  // some channels stay negative
    auto statistics = ChannelStatistics<TestType>::create(channels);
    REQUIRE(statistics);
    CHECK(statistics->second_moment(0) == 0);
    CHECK(statistics->magnitude(0) == 0);
    const auto view = matrix(x, channels);
    REQUIRE(statistics->add(cbq::rows(view, 0, 5), "layer"));
    REQUIRE(statistics->add(cbq::rows(view, 5, 0), "layer"));
    REQUIRE(statistics->add(cbq::rows(view, 5, 32), "layer", support::ThreadExecutor{}));
    CHECK(statistics->tokens() == 37);
    CHECK(statistics->channels() == channels);
    auto at_once = ChannelStatistics<TestType>::create(channels);
    REQUIRE(at_once->add(view, "layer"));
    for (std::size_t c = 0; c < channels; ++c) {
      TestType low = x[c], high = x[c];
      double squares = 0;
      for (std::size_t t = 0; t < 37; ++t) {
        low = std::min(low, x[t * channels + c]);
        high = std::max(high, x[t * channels + c]);
        squares += std::pow(static_cast<double>(x[t * channels + c]), 2);
      }
      REQUIRE(statistics->minima()[c] == low);
      REQUIRE(statistics->maxima()[c] == high);
      REQUIRE(statistics->magnitude(c) == std::max(std::fabs(low), std::fabs(high)));
      REQUIRE(statistics->second_moment(c) == Catch::Approx(squares / 37));
      REQUIRE(statistics->second_moment(c) == at_once->second_moment(c));  // the same bits
    }
  }
}

TEMPLATE_TEST_CASE("an activation that is not finite is named, and its batch is not counted", "", float, double) {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    auto statistics = ChannelStatistics<TestType>::create(70);
    std::vector<TestType> x(10 * 70, TestType{1});
    REQUIRE(statistics->add(matrix(x, 70), "layer 3, down_proj"));
    x[4 * 70 + 66] = x[8 * 70 + 66] = x[2 * 70 + 69] = static_cast<TestType>(bad);
    const auto failed = statistics->add(matrix(x, 70), "layer 3, down_proj");
    REQUIRE_FALSE(failed);
    CHECK(failed.error().code == Errc::not_finite);
    CHECK(std::string(failed.error().where.c_str()) == "layer 3, down_proj, channel 66, token 14");
    CHECK(statistics->tokens() == 10);
    CHECK(statistics->second_moment(66) == 1);
  }
}

TEST_CASE("activations of another width are refused") {
  auto statistics = ChannelStatistics<float>::create(8);
  const std::vector<float> x(9);
  CHECK(statistics->add(matrix(x, 9), "q").error().code == Errc::bad_shape);
}
