// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/input_moments.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "oracle/quant.hpp"
#include "support/rounding.hpp"

TEST_CASE("moments are sums over all tokens, in pieces or at once, for any executor") {
  constexpr std::size_t tokens = 300, channels = 259;  // three pieces, two strips
  const std::vector<float> x = oracle::random_weights(tokens * channels, 1, 3.0);
  auto once = cbq::InputMoments::create(channels), pieces = cbq::InputMoments::create(channels);
  REQUIRE((once && pieces));
  const cbq::MatrixView<const float> view{x.data(), tokens, channels, channels};
  REQUIRE(once->add(view));
  REQUIRE(pieces->add(cbq::rows(view, 0, 128), support::Backwards{}));
  REQUIRE(pieces->add(cbq::rows(view, 128, 172), support::Backwards{}));
  CHECK(once->tokens() == tokens);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < channels; ++i) {
    for (std::size_t j = 0; j < channels; ++j) {
      double sum = 0, magnitude = 0;
      for (std::size_t t = 0; t < tokens; ++t) {
        const double product = static_cast<double>(x[t * channels + i]) * static_cast<double>(x[t * channels + j]);
        sum += product;
        magnitude += std::fabs(product);
      }
      const bool near = std::fabs((*once)(i, j) - sum) < 2e-6 * magnitude;
      wrong += near && (*once)(i, j) == (*pieces)(i, j) ? 0u : 1u;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("inputs that are not finite or of other channels are refused") {
  std::vector<float> x(200 * 5, 1.0f);
  auto moments = cbq::InputMoments::create(5);
  REQUIRE(moments);
  CHECK(moments->add(cbq::MatrixView<const float>{x.data(), 200, 4, 5}).error().code == cbq::Errc::bad_shape);
  REQUIRE(moments->add(cbq::MatrixView<const float>{x.data(), 100, 5, 5}));
  x[150 * 5 + 3] = INFINITY;
  const cbq::Status added = moments->add(cbq::MatrixView<const float>{x.data(), 200, 5, 5});
  REQUIRE(!added);
  CHECK(added.error().code == cbq::Errc::not_finite);
  CHECK(std::string(added.error().where.c_str()) == "token 250, channel 3");
}

TEST_CASE("squares beyond float are refused") {
  std::vector<float> x(3 * 300, 1.0f);
  auto moments = cbq::InputMoments::create(300);
  REQUIRE(moments);
  x[300 + 270] = 1e30f;
  const cbq::Status added = moments->add(cbq::MatrixView<const float>{x.data(), 3, 300, 300});
  REQUIRE(!added);
  CHECK(added.error().code == cbq::Errc::not_finite);
  CHECK(std::string(added.error().where.c_str()) == "channel 270");
}
