// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/rectified_sigmoid.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <limits>

namespace h = cbq::rectified_sigmoid;
using Catch::Approx;

TEST_CASE("values, slope and inverse of h") {
  CHECK(h::value(-1) == Approx(0.22273).margin(5e-6));
  CHECK(h::value(0) == Approx(0.5));
  CHECK(h::value(0.5) == Approx(0.646951).margin(5e-7));
  CHECK((h::value(1e-6) - h::value(-1e-6)) / 2e-6 == Approx(0.3));
  CHECK(h::inverse(0.1) == Approx(-1.609438).margin(5e-7));
  CHECK(h::inverse(0.25) == Approx(-0.887303).margin(5e-7));
  CHECK(h::inverse(0) == Approx(-std::log(11.0)));
  CHECK(h::inverse(1) == Approx(std::log(11.0)));
  CHECK(h::value(-3) == 0.0);
  CHECK(h::value(3) == 1.0);
}

TEST_CASE("the exponent stands inside, and falls") {
  const double wanted[3][4] = {
      {0.988471, 1.0, 1.0, 0.988471}, {0.832228, 0.999345, 1, 0.832228}, {0.36, 0.84, 1, 0.36}};
  const double betas[3] = {20, 8, 2}, values[4] = {0.1, 0.3, 0.5, 0.9};
  for (int b = 0; b < 3; ++b) {
    for (int i = 0; i < 4; ++i) CHECK(h::penalty(values[i], betas[b]) == Approx(wanted[b][i]).margin(5e-7));
  }
  const cbq::PenaltyOptions options;
  CHECK(h::exponent(options, 0.0) == 20);
  CHECK(h::exponent(options, 0.2) == 20);
  CHECK(h::exponent(options, 0.6) == Approx(11));
  CHECK(h::exponent(options, 1.0) == Approx(2));
}

TEST_CASE("when the compensation loss counts, and how much") {
  struct Options {
    cbq::PenaltyOptions penalty;
  };
  const auto weight = [](cbq::PenaltyWeighting weighting, double progress) {
    return cbq::RectifiedSigmoidRule<float>(Options{{.weighting = weighting, .weight = 0.5}})
        .term({progress}, 100)
        .weight;
  };
  CHECK(weight(cbq::PenaltyWeighting::mean, 0.19) == 0);
  CHECK(weight(cbq::PenaltyWeighting::mean, 0.2) == Approx(0.005));
  CHECK(weight(cbq::PenaltyWeighting::sum, 0.9) == 0.5);
  CHECK(weight(cbq::PenaltyWeighting::relative, 0.4) == 0);
  CHECK(weight(cbq::PenaltyWeighting::relative, 0.7) == Approx(0.25));
  CHECK(weight(cbq::PenaltyWeighting::relative, 1.0) == Approx(0.5));
}
