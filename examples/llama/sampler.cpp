// SPDX-License-Identifier: Apache-2.0
#include "sampler.hpp"

#include <algorithm>
#include <cmath>

#include "scores.hpp"

namespace cbq_llama {

std::int32_t Sampler::draw(std::span<const float> logits) {
  const std::size_t top = likeliest(logits);
  if (temperature_ <= 0) return static_cast<std::int32_t>(top);
  sums_.resize(logits.size());
  double sum = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    sum += std::exp((static_cast<double>(logits[i]) - static_cast<double>(logits[top])) / temperature_);
    sums_[i] = sum;
  }
  // The library's distributions differ between implementations; 53 bits of the generator do not.
  const double at = static_cast<double>(generator_() >> 11) * 0x1p-53 * sum;
  const auto found = std::upper_bound(sums_.begin(), sums_.end(), at);
  return static_cast<std::int32_t>(found == sums_.end() ? top : static_cast<std::size_t>(found - sums_.begin()));
}

}  // namespace cbq_llama
