// SPDX-License-Identifier: Apache-2.0
#pragma once

// Scaling factors of CBQ's pre-processing (CFP; arXiv 2312.07950) from the sizes of activation channels over
// calibration tokens. A detector finds the channels that stand out; with T* the largest size among the others,
//
//   s_i = (max |X_i| / T*)^p   where max |X_i| > T*,   else 1                    p = 1/2; published code uses 0.7
//
// The factor is 1 just above T*, and a scaled channel ends at sqrt(max |X_i| T*), between T* and where it was. (Read
// literally, reviews of the paper put the largest outlier in the denominator; that would enlarge outliers.) Fold the
// factors with scale_channels() or scale_value_channels(). Channels of zeros and constant ones get 1, and so does
// everything where the outliers do not stand off by `smallest_gap`.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include <cbq/outlier/coarse_to_fine.hpp>

namespace cbq {

struct ScalingOptions {
  double exponent = 0.5;        ///< p
  double smallest_gap = 1.2;    ///< smallest outlier / largest other channel; below it nothing is scaled
  double largest_factor = 1e4;  ///< factors are cut here, so that scaled weights stay in range
};

/// Signed extremes of the channels, for factors of both signs.
template <std::floating_point T>
struct ChannelExtremes {
  std::span<const T> minima = {};
  std::span<const T> maxima = {};
};

inline namespace CBQ_ABI {
namespace activation_scaling {

[[nodiscard]] inline Status check(const ScalingOptions& options) noexcept {
  if (options.exponent >= 0 && options.exponent <= 1 && options.largest_factor >= 1) return {};
  return Error{Errc::bad_argument, "a scaling exponent lies in [0, 1] and the largest factor is at least 1", "scaling"};
}

/// factors[i] = max(factors[i], factor of sizes[i]). Sizes may be negative; what the detector makes of them counts only
/// where its threshold is positive.
template <std::floating_point T, OutlierDetector<T> Detector>
[[nodiscard]] Status raise_factors(std::span<const T> sizes, const Detector& detector, const ScalingOptions& options,
                                   std::span<T> factors) noexcept {
  Result<AlignedBuffer<T>> sorted = AlignedBuffer<T>::allocate(sizes.size());
  if (!sorted) return sorted.error();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (!is_finite(sizes[i])) {
      return Error{Errc::not_finite, "the size of an activation channel is not finite", ErrorText("channel ") << i};
    }
    (*sorted)[i] = sizes[i];
  }
  std::sort(sorted->begin(), sorted->end());
  const std::span<const T> ascending(sorted->data(), sorted->size());
  const Cut cut = detector.detect(ascending);
  if (cut.count == 0 || !(cut.threshold > 0) || relative_gap(ascending, cut) < options.smallest_gap) return {};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const auto size = static_cast<double>(sizes[i]);
    if (!(size > cut.threshold)) continue;
    const double factor = std::min(std::pow(size / cut.threshold, options.exponent), options.largest_factor);
    factors[i] = std::max(factors[i], static_cast<T>(factor));
  }
  return {};
}

template <std::floating_point T>
[[nodiscard]] Status check_sizes(std::size_t channels, std::span<T> factors) noexcept {
  if (channels != factors.size()) {
    return Error{Errc::bad_shape, "there is one factor for each channel", "factors", factors.size(), channels};
  }
  std::fill(factors.begin(), factors.end(), T{1});
  return {};
}

}  // namespace activation_scaling

/// Factors of channels with the largest magnitudes `magnitudes`: one-sided, the default, because what linear layers of
/// a LLaMA read is about symmetric. factors.size() == magnitudes.size(). Errc::bad_shape, Errc::bad_argument,
/// Errc::not_finite naming the channel, Errc::out_of_memory.
template <std::floating_point T, OutlierDetector<T> Detector = CoarseToFine<>>
[[nodiscard]] Status find_scaling_factors(std::span<const T> magnitudes, std::span<T> factors,
                                          const Detector& detector = {}, const ScalingOptions& options = {}) noexcept {
  if (const Status valid = activation_scaling::check(options); !valid) return valid;
  if (const Status valid = activation_scaling::check_sizes(magnitudes.size(), factors); !valid) return valid;
  return activation_scaling::raise_factors(magnitudes, detector, options, factors);
}

/// The same for each side by itself, upper outliers among the maxima and lower ones among the minima, and of two
/// factors the larger. A side whose ordinary channels do not reach beyond zero is ignored. Errors as the one-sided
/// form.
template <std::floating_point T, OutlierDetector<T> Detector = CoarseToFine<>>
[[nodiscard]] Status find_two_sided_scaling_factors(const ChannelExtremes<T>& extremes, std::span<T> factors,
                                                    const Detector& detector = {},
                                                    const ScalingOptions& options = {}) noexcept {
  if (const Status valid = activation_scaling::check(options); !valid) return valid;
  const std::size_t channels = extremes.maxima.size();
  if (extremes.minima.size() != channels) {
    return Error{Errc::bad_shape, "there are as many minima as maxima", "minima", extremes.minima.size(), channels};
  }
  if (const Status valid = activation_scaling::check_sizes(channels, factors); !valid) return valid;
  const Status upper = activation_scaling::raise_factors(extremes.maxima, detector, options, factors);
  if (!upper) return upper;
  Result<AlignedBuffer<T>> mirrored = AlignedBuffer<T>::allocate(channels);
  if (!mirrored) return mirrored.error();
  for (std::size_t i = 0; i < channels; ++i) (*mirrored)[i] = -extremes.minima[i];
  return activation_scaling::raise_factors(std::span<const T>(mirrored->data(), channels), detector, options, factors);
}

}  // namespace CBQ_ABI
}  // namespace cbq
