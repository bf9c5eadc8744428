// SPDX-License-Identifier: Apache-2.0
#include "scores.hpp"

#include <xsimd/xsimd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace cbq_llama {

namespace {

using Floats = xsimd::batch<float>;

// Pieces short enough that float sums of numbers in [0, 1] keep their last digits.
constexpr std::size_t piece_length = 512;

// Largest element; NaNs are left to the sums that follow.
float largest(std::span<const float> x) {
  float most = -std::numeric_limits<float>::infinity();
  std::size_t i = 0;
  Floats lanes(most);
  for (; x.size() - i >= Floats::size; i += Floats::size) {
    lanes = xsimd::max(lanes, Floats::load_unaligned(x.data() + i));
  }
  most = xsimd::reduce_max(lanes);
  for (; i < x.size(); ++i) most = std::max(most, x[i]);
  return most;
}

}  // namespace

std::size_t likeliest(std::span<const float> logits) {
  const auto found = std::find(logits.begin(), logits.end(), largest(logits));
  return found == logits.end() ? 0 : static_cast<std::size_t>(found - logits.begin());
}

TokenScore score_token(std::span<const float> logits, std::size_t target) {
  const float most = largest(logits);
  double sum = 0;
  for (std::size_t first = 0; first < logits.size(); first += piece_length) {
    const auto part = logits.subspan(first, std::min(piece_length, logits.size() - first));
    Floats lanes(0.0f);
    std::size_t i = 0;
    for (; part.size() - i >= Floats::size; i += Floats::size) {
      lanes += xsimd::exp(Floats::load_unaligned(part.data() + i) - most);
    }
    float rest = 0;
    for (; i < part.size(); ++i) rest += std::exp(part[i] - most);
    sum += static_cast<double>(xsimd::reduce_add(lanes)) + static_cast<double>(rest);
  }
  TokenScore score;
  score.log_sum = static_cast<double>(most) + std::log(sum);
  score.nll = score.log_sum - static_cast<double>(logits[target]);
  score.top = likeliest(logits);
  return score;
}

double divergence(std::span<const float> reference, const TokenScore& reference_score, std::span<const float> logits,
                  const TokenScore& score) {
  const auto log_sum = static_cast<float>(reference_score.log_sum);
  double weight = 0;
  double difference = 0;
  for (std::size_t first = 0; first < logits.size(); first += piece_length) {
    const std::size_t last = std::min(first + piece_length, logits.size());
    Floats weights(0.0f);
    Floats differences(0.0f);
    std::size_t i = first;
    for (; last - i >= Floats::size; i += Floats::size) {
      const Floats x = Floats::load_unaligned(reference.data() + i);
      const Floats probability = xsimd::exp(x - log_sum);
      weights += probability;
      differences += probability * (x - Floats::load_unaligned(logits.data() + i));
    }
    weight += static_cast<double>(xsimd::reduce_add(weights));
    difference += static_cast<double>(xsimd::reduce_add(differences));
    for (; i < last; ++i) {
      const float probability = std::exp(reference[i] - log_sum);
      weight += static_cast<double>(probability);
      difference += static_cast<double>(probability * (reference[i] - logits[i]));
    }
  }
  // The probabilities were rounded: their sum is 1 only to seven digits.
  return difference / weight - (reference_score.log_sum - score.log_sum);
}

}  // namespace cbq_llama
