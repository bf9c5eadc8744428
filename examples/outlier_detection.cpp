// SPDX-License-Identifier: Apache-2.0

// Uses the outlier detector by itself, on the worked example of docs/outliers.md: the coarse fence, the fine split, and
// the factors that would scale the outlier channels.

#include <cbq/outlier.hpp>
#include <cstddef>
#include <cstdio>
#include <span>
#include <vector>

int main() {
  // The largest magnitude of each of 16 activation channels.
  const std::vector<float> maxima = {1, 1.1f, 0.9f, 1.2f, 1.05f, 0.95f, 1.15f, 1, 1.3f, 0.8f, 1.1f, 1, 3, 3.2f, 12, 30};
  const std::span<const float> channels(maxima);

  const auto coarse = cbq::find_outliers(channels, cbq::Iqr{});
  const auto fine = cbq::find_outliers(channels, cbq::CoarseToFine<cbq::Iqr, cbq::InterIntra>{});
  if (!coarse || !fine) return 1;
  std::printf("coarse fence  T  = %.4f, %zu candidates\n", coarse->threshold, coarse->count);
  std::printf("fine split    T* = %.4f, %zu outliers\n", fine->threshold, fine->count);

  std::vector<float> factors(maxima.size());
  if (!cbq::find_scaling_factors<float>(maxima, factors)) return 1;
  for (std::size_t i = 0; i < factors.size(); ++i) {
    if (factors[i] != 1) {
      std::printf("channel %zu: maximum %g, factor %.6f, scaled %.4f\n", i, static_cast<double>(maxima[i]),
                  static_cast<double>(factors[i]), static_cast<double>(maxima[i] / factors[i]));
    }
  }
  return 0;
}
