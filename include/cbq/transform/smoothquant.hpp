// SPDX-License-Identifier: Apache-2.0
#pragma once

// SmoothQuant's scaling factors (Xiao et al., arXiv 2211.10438), a baseline for CFP: every channel is scaled, so that
// activations and weights share the difficulty of quantization,
//
//   s_j = max |X_j|^alpha / max |W_j|^(1 - alpha)
//
// with W_j the columns of all consumers of the channel. alpha = 0.5 makes both maxima equal; 1 moves everything into
// the weights. Channels without activations or without weights get 1. Fold with scale_channels() as CFP's factors.

#include <cmath>
#include <cstddef>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/quant/scale.hpp>
#include <cbq/transform/layer_weights.hpp>

namespace cbq {

struct SmoothQuantOptions {
  double alpha = 0.5;
  double largest_factor = 1e5;  ///< factors are cut to [1 / largest_factor, largest_factor]
};

inline namespace CBQ_ABI {

/// factors[j] from the largest magnitudes of the activations and the weights that read them. Errc::bad_shape,
/// Errc::bad_argument (alpha outside [0, 1]), Errc::not_finite naming the channel, Errc::out_of_memory.
template <std::floating_point T>
[[nodiscard]] Status smoothquant_factors(std::span<const T> magnitudes, std::span<const LinearWeights<T>> consumers,
                                         std::span<T> factors, const SmoothQuantOptions& options = {}) noexcept {
  const std::size_t channels = magnitudes.size();
  if (factors.size() != channels) {
    return Error{Errc::bad_shape, "there is one factor for each channel", "factors", factors.size(), channels};
  }
  if (!(options.alpha >= 0 && options.alpha <= 1 && options.largest_factor >= 1)) {
    return Error{Errc::bad_argument, "alpha lies in [0, 1] and the largest factor is at least 1", "SmoothQuant"};
  }
  if (const Status valid = layer_weights::check_consumers(consumers, channels); !valid) return valid;
  Result<AlignedBuffer<T>> largest = AlignedBuffer<T>::allocate(channels);
  if (!largest) return largest.error();
  for (T& value : *largest) value = 0;
  for (const LinearWeights<T>& consumer : consumers) {
    for (std::size_t r = 0; r < consumer.weights.rows; ++r) {
      const T* weights = row(consumer.weights, r);
      for (std::size_t c = 0; c < channels; ++c) {
        const T size = weights[c] < 0 ? -weights[c] : weights[c];
        if (size > (*largest)[c] || !is_finite(size)) (*largest)[c] = size;  // NaN stays: nothing is above it
      }
    }
  }
  for (std::size_t c = 0; c < channels; ++c) {
    const auto x = static_cast<double>(magnitudes[c]), w = static_cast<double>((*largest)[c]);
    if (!is_finite(x) || !is_finite(w)) {
      return Error{Errc::not_finite, "an activation or weight is not finite", ErrorText("channel ") << c};
    }
    double factor = x > 0 && w > 0 ? std::pow(x, options.alpha) / std::pow(w, 1 - options.alpha) : 1.0;
    factor = factor > options.largest_factor ? options.largest_factor : factor;
    factors[c] = static_cast<T>(factor < 1 / options.largest_factor ? 1 / options.largest_factor : factor);
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
