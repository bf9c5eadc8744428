// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/norm.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <limits>

#include "oracle/nn.hpp"
#include "support/nn.hpp"

using namespace cbq;

TEST_CASE("Norms equal their definitions for every width") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const std::size_t width : {1u, 2u, 3u, 4u, 5u, 15u, 16u, 17u, 64u, 1023u, 1024u, 1025u, 2053u}) {
    CAPTURE(width);
    const std::size_t tokens = 19;
    const auto x = support::normal(tokens * width, 1, 3.0f);
    const auto weight = support::normal(width, 2);
    const auto bias = support::normal(width, 3);
    std::vector<float> y(x.size());
    const auto rms = RmsNorm::create(weight, 1e-5f);
    REQUIRE(rms);
    REQUIRE(rms->forward(support::input(x, width), support::view(y, width), context));
    const oracle::Matrix reference(tokens, width, x);
    CHECK(oracle::distance(y, oracle::rms_norm(reference, support::doubles(weight), 1e-5)) < 5e-7);
    const auto layer = LayerNorm::create(weight, bias, 1e-5f);
    REQUIRE(layer);
    REQUIRE(layer->forward(support::input(x, width), support::view(y, width), context));
    // One element differs from its mean by nothing but rounding: 1 / sqrt(eps) magnifies it.
    const auto wanted = oracle::layer_norm(reference, support::doubles(weight), support::doubles(bias), 1e-5);
    CHECK(oracle::distance(y, wanted) < (width < 3 ? 1e-4 : 1e-6));
  }
}

TEST_CASE("A layer norm survives a mean far larger than the deviation") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::size_t width = 2000;
  auto x = support::normal(width, 4);
  for (float& v : x) v += 4096.0f;
  const std::vector<float> weight(width, 1.0f), bias(width, 0.0f);
  std::vector<float> y(width);
  REQUIRE(LayerNorm::create(weight, bias, 1e-5f)->forward(support::input(x, width), support::view(y, width), context));
  const std::vector<double> ones(width, 1.0), zeros(width, 0.0);
  CHECK(oracle::distance(y, oracle::layer_norm(oracle::Matrix(1, width, x), ones, zeros, 1e-5)) < 1e-4);
}

TEST_CASE("Norms work in place, on strided rows, and keep NaN in its row") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::size_t width = 37, tokens = 5;
  const auto weight = support::normal(width, 5);
  const auto norm = RmsNorm::create(weight, 1e-6f);
  const auto x = support::normal(tokens * width, 6);
  std::vector<float> whole(tokens * width);
  REQUIRE(norm->forward(support::input(x, width), support::view(whole, width), context));
  std::vector<float> strided(tokens * 64, 7.0f);
  for (std::size_t i = 0; i < x.size(); ++i) strided[i / width * 64 + i % width] = x[i];
  const MatrixView<float> rows{strided.data(), tokens, width, 64};
  REQUIRE(norm->forward(as_const(rows), rows, context));
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(strided[i / width * 64 + i % width] == whole[i]);
  CHECK(strided[width] == 7.0f);

  auto bad = x;
  bad[2 * width] = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> y(bad.size());
  REQUIRE(norm->forward(support::input(bad, width), support::view(y, width), context));
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(std::isnan(y[i]) == (i / width == 2));
}

TEST_CASE("Rows of zeros become zeros, and the same bits come from any executor") {
  const SerialExecutor serial;
  const support::ThreadExecutor threads;
  ExecutionContext<> context(serial);
  ExecutionContext<support::ThreadExecutor> threaded(threads);
  const std::size_t width = 50;
  auto x = support::normal(70 * width, 8);
  for (std::size_t i = 0; i < width; ++i) x[i] = 0.0f;
  const auto norm = RmsNorm::create(support::normal(width, 9), 1e-5f);
  std::vector<float> one(x.size()), many(x.size());
  REQUIRE(norm->forward(support::input(x, width), support::view(one, width), context));
  REQUIRE(norm->forward(support::input(x, width), support::view(many, width), threaded));
  CHECK(one == many);
  for (std::size_t i = 0; i < width; ++i) CHECK(one[i] == 0.0f);
}

TEST_CASE("Norms refuse what does not fit") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::vector<float> weight(8, 1.0f), bias(7, 0.0f);
  CHECK(RmsNorm::create({}, 1e-5f).error().code == Errc::bad_shape);
  CHECK(RmsNorm::create(weight, -1.0f).error().code == Errc::bad_argument);
  CHECK(RmsNorm::create(weight, std::numeric_limits<float>::quiet_NaN()).error().code == Errc::bad_argument);
  CHECK(LayerNorm::create(weight, bias, 1e-5f).error().code == Errc::bad_shape);
  std::vector<float> x(27), y(27);
  const auto norm = RmsNorm::create(weight, 1e-5f);
  CHECK(norm->forward(support::input(x, 9), support::view(y, 9), context).error().code == Errc::bad_shape);
}
