// SPDX-License-Identifier: Apache-2.0
#pragma once

// Channel smoothing of keys and values from statistics of a calibration text, without training (the static half of
// WKVQuant's two-dimensional quantization, arXiv 2402.12065, with other factors): per channel of a key/value head
//
//   offset = mean of the keys,     scale = deviation^a / (root mean square of the queries)^b
//   offset = mean of the values,   scale = deviation^a
//   weight = mean square of the transformed query: what a squared error of this key channel costs
//
// scales divided by their geometric mean over the head, weights by their mean. a = 1 makes all channels equally loud,
// which wastes codes on channels that hardly matter. After a rotation every channel has the noise of all, and the noise
// of scores, sum (deviation / scale)^2 * sum (query scale)^2, is least for a = b = 1/2; without one, loud channels keep
// their resolution and weighted least squares (affine_refinement.hpp) cuts the range of the others: a = 1/2, b = 0.
// Queries and keys are those after the rotary embedding. Linear in the channels.

#include <cmath>
#include <cstddef>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/result.hpp>
#include <cbq/kv/channel_statistics.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {

/// Exponents of the scales.
struct KvSmoothingOptions {
  double key_exponent = 0.5;
  double query_exponent = 0.0;
  double value_exponent = 0.5;
  double largest_factor = 1e3;  ///< scales are cut to [1 / largest_factor, largest_factor]
};

/// What suits a scheme: a query exponent of 1/2 for rotated heads.
[[nodiscard]] constexpr KvSmoothingOptions kv_smoothing_options(const KvScheme& scheme) noexcept {
  return {.query_exponent = scheme.hadamard ? 0.5 : 0.0};
}

/// Least-squares steps per group that suit a scheme: 2 where keys are smoothed or rotated, none for plain groups.
[[nodiscard]] constexpr int kv_refinements(const KvScheme& scheme) noexcept {
  return scheme.smoothed || scheme.hadamard ? 2 : 0;
}

inline namespace CBQ_ABI {

/// Factors of one layer, one per channel of all key/value heads.
struct KvSmoothing {
  AlignedBuffer<float> key_scales;
  AlignedBuffer<float> key_offsets;
  AlignedBuffer<float> key_weights;  ///< of squared errors of smoothed keys; may be empty: equal ones
  AlignedBuffer<float> value_scales;
  AlignedBuffer<float> value_offsets;

  /// Uninitialized factors. Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<KvSmoothing> allocate(std::size_t channels) noexcept {
    KvSmoothing smoothing;
    for (AlignedBuffer<float>* part : {&smoothing.key_scales, &smoothing.key_offsets, &smoothing.key_weights,
                                       &smoothing.value_scales, &smoothing.value_offsets}) {
      Result<AlignedBuffer<float>> memory = AlignedBuffer<float>::allocate(channels);
      if (!memory) return memory.error();
      *part = *std::move(memory);
    }
    return smoothing;
  }

  /// What a cache of `scheme` is told, pointing into this; weights count where heads are not rotated. Without `_2d`
  /// nothing is smoothed.
  [[nodiscard]] RowTransform transform(const KvScheme& scheme) const noexcept {
    RowTransform transform;
    transform.hadamard = scheme.hadamard;
    transform.refinements = kv_refinements(scheme);
    if (!scheme.smoothed) return transform;
    transform.key_scales = key_scales.data();
    transform.key_offsets = key_offsets.data();
    transform.key_weights = scheme.hadamard ? nullptr : key_weights.data();
    transform.value_scales = value_scales.data();
    transform.value_offsets = value_offsets.data();
    return transform;
  }
};

namespace smoothing {

/// Scales that suit channels of deviations sqrt(x.variance) and queries of root mean square `q` (null: 1).
struct ScaleRule {
  const RowMoments* x = nullptr;
  double exponent = 0.5;
  const RowMoments* q = nullptr;
  double query_exponent = 0;

  /// 0 for a channel that never varies, or that no query reads.
  [[nodiscard]] double raw(std::size_t channel) const noexcept {
    const double variance = x->variance(channel);
    const double read = query_exponent == 0 ? 1.0 : q->second_moment(channel);
    if (variance == 0 || read == 0) return 0;
    return std::pow(variance, exponent / 2) / std::pow(read, query_exponent / 2);
  }
};

/// scales[first .. first + width): rule divided by its geometric mean, 1 for dead channels.
inline void set_scales(const ScaleRule& rule, double largest, std::size_t first, std::size_t width,
                       AlignedBuffer<float>& scales) noexcept {
  double logs = 0;
  std::size_t live = 0;
  for (std::size_t c = first; c < first + width; ++c) {
    const double raw = rule.raw(c);
    if (raw == 0) continue;
    logs += std::log(raw);
    ++live;
  }
  const double middle = live == 0 ? 1.0 : std::exp(logs / static_cast<double>(live));
  for (std::size_t c = first; c < first + width; ++c) {
    const double raw = rule.raw(c);
    double scale = raw == 0 ? 1.0 : raw / middle;
    scale = scale > largest ? largest : scale;
    scales[c] = static_cast<float>(scale < 1 / largest ? 1 / largest : scale);
  }
}

/// weights[first .. first + width): mean squares of queries times scales, of mean 1; all 1 where no query reads.
inline void set_weights(const RowMoments& queries, std::size_t first, std::size_t width,
                        KvSmoothing& smoothing) noexcept {
  double total = 0;
  const auto weight = [&](std::size_t c) {
    const double scale = static_cast<double>(smoothing.key_scales[c]);
    return queries.second_moment(c) * scale * scale;
  };
  for (std::size_t c = first; c < first + width; ++c) total += weight(c);
  for (std::size_t c = first; c < first + width; ++c) {
    smoothing.key_weights[c] = total == 0 ? 1.0f : static_cast<float>(weight(c) * static_cast<double>(width) / total);
  }
}

/// Errc::not_finite naming the first channel whose moments overflow.
[[nodiscard]] inline Status check_moments(const RowMoments& moments, const char* what) noexcept {
  for (std::size_t c = 0; c < moments.channels(); ++c) {
    if (is_finite(static_cast<float>(moments.mean(c))) && is_finite(moments.variance(c))) continue;
    return Error{Errc::not_finite, "statistics of a calibration text overflow", ErrorText(what) << " channel " << c};
  }
  return {};
}

/// Whether a cache takes them: scales that were not cut far enough leave float.
[[nodiscard]] inline Status check_factors(const KvSmoothing& smoothing, const KvHeads& heads) noexcept {
  return check_row_transform({.key_scales = smoothing.key_scales.data(),
                              .key_offsets = smoothing.key_offsets.data(),
                              .value_scales = smoothing.value_scales.data(),
                              .value_offsets = smoothing.value_offsets.data(),
                              .key_weights = smoothing.key_weights.data()},
                             heads);
}

}  // namespace smoothing

/// Scales, offsets and weights from statistics. Channels that never vary get scale 1. Errc::bad_argument (no tokens,
/// exponents outside [0, 2], a largest factor below 1), Errc::not_finite naming the channel, Errc::out_of_memory; with
/// a largest factor beyond float also Errc::bad_argument for a scale that became 0, Errc::not_finite for an infinite
/// one.
[[nodiscard]] inline Result<KvSmoothing> find_kv_smoothing(const KvChannelStatistics& statistics,
                                                           const KvSmoothingOptions& options = {}) noexcept {
  if (statistics.tokens() == 0) return Error{Errc::bad_argument, "smoothing needs a token", "calibration tokens", 0};
  for (const double exponent : {options.key_exponent, options.query_exponent, options.value_exponent}) {
    if (!(exponent >= 0 && exponent <= 2)) {
      return Error{Errc::bad_argument, "exponents of smoothing lie in [0, 2]", "smoothing"};
    }
  }
  if (!(options.largest_factor >= 1)) {
    return Error{Errc::bad_argument, "the largest factor is at least 1", "smoothing"};
  }
  if (const Status ok = smoothing::check_moments(statistics.queries(), "query"); !ok) return ok.error();
  if (const Status ok = smoothing::check_moments(statistics.keys(), "key"); !ok) return ok.error();
  if (const Status ok = smoothing::check_moments(statistics.values(), "value"); !ok) return ok.error();
  const std::size_t width = statistics.heads().width, channels = statistics.keys().channels();
  Result<KvSmoothing> result = KvSmoothing::allocate(channels);
  if (!result) return result;
  const smoothing::ScaleRule keys{&statistics.keys(), options.key_exponent, &statistics.queries(),
                                  options.query_exponent};
  const smoothing::ScaleRule values{&statistics.values(), options.value_exponent};
  for (std::size_t first = 0; first < channels; first += width) {
    smoothing::set_scales(keys, options.largest_factor, first, width, result->key_scales);
    smoothing::set_scales(values, options.largest_factor, first, width, result->value_scales);
    smoothing::set_weights(statistics.queries(), first, width, *result);
  }
  for (std::size_t c = 0; c < channels; ++c) {
    result->key_offsets[c] = static_cast<float>(statistics.keys().mean(c));
    result->value_offsets[c] = static_cast<float>(statistics.values().mean(c));
  }
  if (const Status usable = smoothing::check_factors(*result, statistics.heads()); !usable) return usable.error();
  return result;
}

}  // namespace CBQ_ABI
}  // namespace cbq
