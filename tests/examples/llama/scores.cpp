// SPDX-License-Identifier: Apache-2.0
#include "scores.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

using namespace cbq_llama;

namespace {

std::vector<float> random_logits(std::size_t count, double spread, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<float> logits(count);
  for (float& logit : logits)
    logit = static_cast<float>((static_cast<double>(generator()) / 4294967296.0 - 0.5) * spread);
  return logits;
}

double log_sum(const std::vector<float>& logits) {
  const double most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
  return most + std::log(sum);
}

double plain_divergence(const std::vector<float>& p, const std::vector<float>& q) {
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double log_p = static_cast<double>(p[i]) - log_sum(p);
    const double log_q = static_cast<double>(q[i]) - log_sum(q);
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum;
}

}  // namespace

TEST_CASE("scores agree with plain double sums") {
  const std::size_t count = GENERATE(1u, 2u, 3u, 15u, 16u, 17u, 511u, 512u, 513u, 1031u);
  const double spread = GENERATE(0.01, 4.0, 60.0);
  CAPTURE(count, spread);
  const std::vector<float> reference = random_logits(count, spread, 1);
  std::vector<float> logits = random_logits(count, 0.1 * spread, 2);
  for (std::size_t i = 0; i < count; ++i) logits[i] += reference[i];
  const std::size_t target = count / 2;
  const TokenScore score = score_token(logits, target);
  const TokenScore wanted = score_token(reference, target);
  CHECK_THAT(score.log_sum, Catch::Matchers::WithinAbs(log_sum(logits), 2e-6 * (1 + spread)));
  CHECK_THAT(score.nll,
             Catch::Matchers::WithinAbs(log_sum(logits) - static_cast<double>(logits[target]), 2e-6 * (1 + spread)));
  CHECK(score.top == static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  CHECK_THAT(divergence(reference, wanted, logits, score),
             Catch::Matchers::WithinAbs(plain_divergence(reference, logits), 1e-6 * (1 + spread)));
}

TEST_CASE("a model does not diverge from itself, nor from itself shifted") {
  std::vector<float> logits = random_logits(1000, 20, 3);
  const TokenScore score = score_token(logits, 0);
  CHECK(divergence(logits, score, logits, score) == 0.0);
  std::vector<float> shifted = logits;
  for (float& logit : shifted) logit += 8.0f;  // exact: the spread is small
  CHECK_THAT(divergence(logits, score, shifted, score_token(shifted, 0)), Catch::Matchers::WithinAbs(0, 1e-6));
}

TEST_CASE("logits that are no numbers make scores that are none") {
  std::vector<float> logits = random_logits(100, 5, 4);
  logits[37] = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(std::isfinite(score_token(logits, 0).nll));
  logits[37] = std::numeric_limits<float>::infinity();
  CHECK_FALSE(std::isfinite(score_token(logits, 0).nll));
  logits[37] = -std::numeric_limits<float>::infinity();  // an impossible token is fine
  CHECK(std::isfinite(score_token(logits, 0).nll));
}

TEST_CASE("the first of equal favourites counts") {
  CHECK(likeliest(std::vector<float>{1, 3, 2, 3}) == 1);
  CHECK(likeliest(std::vector<float>(40, -2.0f)) == 0);
}
