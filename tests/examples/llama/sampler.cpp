// SPDX-License-Identifier: Apache-2.0
#include "sampler.hpp"

#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cmath>
#include <vector>

using namespace cbq_llama;

TEST_CASE("temperature 0 takes the likeliest token") {
  Sampler sampler(0, 1);
  CHECK(sampler.draw(std::vector<float>{1, 5, 5, -2}) == 1);
  CHECK(sampler.draw(std::vector<float>{-3}) == 0);
}

TEST_CASE("tokens are drawn with their probabilities") {
  // Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 1.
  const auto half = static_cast<float>(std::log(0.5));
  const std::vector<float> logits = {half, 2 * half, 3 * half, 3 * half};
  const std::array<double, 4> once = {0.5, 0.25, 0.125, 0.125};
  // At temperature 1/2 probabilities are squared: 16, 4, 1, 1 of 22.
  const std::array<double, 4> cold = {16.0 / 22, 4.0 / 22, 1.0 / 22, 1.0 / 22};
  for (const bool warm : {true, false}) {
    Sampler sampler(warm ? 1.0 : 0.5, 42);
    std::array<int, 4> counts = {};
    constexpr int draws = 20000;
    for (int i = 0; i < draws; ++i) ++counts.at(static_cast<std::size_t>(sampler.draw(logits)));
    for (std::size_t i = 0; i < 4; ++i) {
      const double p = warm ? once.at(i) : cold.at(i);
      const double deviation = std::sqrt(p * (1 - p) / draws);
      CHECK(std::abs(counts.at(i) / static_cast<double>(draws) - p) < 4.5 * deviation);
    }
  }
}

TEST_CASE("the same seed draws the same tokens, another seed others") {
  const std::vector<float> logits(64, 0.0f);
  const auto sequence = [&](std::uint64_t seed) {
    Sampler sampler(1, seed);
    std::vector<std::int32_t> drawn(20);
    for (std::int32_t& token : drawn) token = sampler.draw(logits);
    return drawn;
  };
  CHECK(sequence(3) == sequence(3));
  CHECK(sequence(3) != sequence(4));
}
