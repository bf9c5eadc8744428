// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/head_gradient.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <vector>

#include <cbq/nn/norm_gradient.hpp>

#include "support/nn.hpp"

using namespace cbq;

TEST_CASE("The gradient through norm and head equals central differences") {
  constexpr std::size_t rows = 3, width = 12, vocabulary = 19;
  const auto gain = support::doubles(support::normal(width, 1));
  const auto weights = support::doubles(support::normal(vocabulary * width, 2));
  const auto slopes = support::doubles(support::normal(rows * vocabulary, 3));
  std::vector<double> hidden = support::doubles(support::normal(rows * width, 4));
  HeadGradient head(RmsNormGradient<double>(gain, 1e-5),
                    DenseGradient<double>(matrix_view(weights.data(), vocabulary, width)));
  CHECK(head.vocabulary() == vocabulary);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto loss = [&] {
    std::vector<double> logits(rows * vocabulary);
    REQUIRE(head.forward(matrix_view<const double>(hidden.data(), rows, width),
                         matrix_view(logits.data(), rows, vocabulary), context));
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) sum += logits[i] * slopes[i];
    return sum;
  };
  std::vector<double> gradient(hidden.size(), 0.5);  // added to what is there
  REQUIRE(head.backward(matrix_view<const double>(slopes.data(), rows, vocabulary),
                        matrix_view<const double>(hidden.data(), rows, width),
                        matrix_view(gradient.data(), rows, width), context));
  for (std::size_t i = 0; i < hidden.size(); ++i) {
    const double kept = hidden[i];
    hidden[i] = kept + 1e-5;
    const double above = loss();
    hidden[i] = kept - 1e-5;
    const double below = loss();
    hidden[i] = kept;
    CHECK(gradient[i] - 0.5 == Catch::Approx((above - below) / 2e-5).epsilon(1e-6).margin(1e-8));
  }
}
