// SPDX-License-Identifier: Apache-2.0
#pragma once

// Draws the next token from logits: the likeliest one at temperature 0, otherwise one of all tokens with its
// probability (nothing is cut off). The same seed gives the same tokens on every machine whose logits are the same.

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace cbq_llama {

class Sampler {
 public:
  /// temperature >= 0.
  Sampler(double temperature, std::uint64_t seed) : generator_(seed), temperature_(temperature) {}

  /// Index of the token drawn; logits must not be empty.
  [[nodiscard]] std::int32_t draw(std::span<const float> logits);

 private:
  std::mt19937_64 generator_;
  double temperature_;
  std::vector<double> sums_;
};

}  // namespace cbq_llama
