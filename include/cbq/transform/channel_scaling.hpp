// SPDX-License-Identifier: Apache-2.0
#pragma once

// Equivalent channel scaling: moves the size of activation channels into the weights that read them,
//
//   x W^T = (x diag(1/s)) (W diag(s))^T,      s > 0, one factor per channel of x
//
// so an activation outlier wants s > 1. The division happens where x is made: in the gains and biases of a norm (inputs
// of q, k, v and of gate, up), in the rows of a linear layer (inputs of down_proj: rows of up_proj; of OPT's fc2: rows
// of fc1, ReLU being homogeneous), or in the rows of the value projection (inputs of o_proj), where query heads that
// read the same value head must share their factors. Nothing is left to do at run time. Factors come from
// find_scaling_factors() or smoothquant_factors(). Nothing is written when an argument is wrong. Exact up to one
// rounding per weight; cost: one pass over the weights.

#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

#include <cbq/transform/layer_weights.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace channel_scaling {

/// Errc::bad_shape for another number of factors than channels, Errc::bad_argument for one that is not positive and
/// finite.
template <std::floating_point T>
[[nodiscard]] Status check_factors(std::span<const T> factors, std::size_t channels) {
  if (factors.size() != channels) {
    return Error{Errc::bad_shape, "there is one factor for each channel", "factors", factors.size(), channels};
  }
  for (std::size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] > 0 && factors[i] <= std::numeric_limits<T>::max())) {
      return Error{Errc::bad_argument, "a scaling factor must be positive and finite", ErrorText("channel ") << i};
    }
  }
  return {};
}

template <std::floating_point T>
void multiply_columns(const MatrixView<T>& weights, std::span<const T> factors) {
  for (std::size_t r = 0; r < weights.rows; ++r) {
    T* w = row(weights, r);
    for (std::size_t c = 0; c < weights.columns; ++c) w[c] *= factors[c];
  }
}

template <std::floating_point T>
void divide(std::span<T> values, std::span<const T> factors) {
  for (std::size_t i = 0; i < values.size(); ++i) values[i] /= factors[i];
}

template <std::floating_point T>
void divide_rows(const LinearWeights<T>& linear, std::span<const T> factors) {
  for (std::size_t r = 0; r < linear.weights.rows; ++r) {
    T* w = row(linear.weights, r);
    for (std::size_t c = 0; c < linear.weights.columns; ++c) w[c] /= factors[r];
  }
  divide(linear.bias, factors);
}

}  // namespace channel_scaling

/// Divides gains and biases of `producer` and multiplies the columns of all `consumers`, which must be everything that
/// reads the norm. Errc::bad_shape, Errc::bad_argument.
template <std::floating_point T>
[[nodiscard]] Status scale_channels(const NormWeights<T>& producer,
                                    std::type_identity_t<std::span<const LinearWeights<T>>> consumers,
                                    std::type_identity_t<std::span<const T>> factors) {
  if (const Status valid = layer_weights::check(producer, factors.size()); !valid) return valid;
  if (const Status valid = layer_weights::check_consumers<T>(consumers, factors.size()); !valid) return valid;
  if (const Status valid = channel_scaling::check_factors<T>(factors, factors.size()); !valid) return valid;
  channel_scaling::divide(producer.gain, factors);
  channel_scaling::divide(producer.bias, factors);
  for (const LinearWeights<T>& consumer : consumers) channel_scaling::multiply_columns(consumer.weights, factors);
  return {};
}

/// Divides rows and biases of `producer` and multiplies the columns of all `consumers`. Right where the way between
/// them is linear in each channel: a product with another activation (SwiGLU), ReLU; not GELU. Errc::bad_shape,
/// Errc::bad_argument.
template <std::floating_point T>
[[nodiscard]] Status scale_channels(const LinearWeights<T>& producer,
                                    std::type_identity_t<std::span<const LinearWeights<T>>> consumers,
                                    std::type_identity_t<std::span<const T>> factors) {
  const Status shape = layer_weights::check(producer, "producer", factors.size(), producer.weights.columns);
  if (!shape) return shape;
  if (const Status valid = layer_weights::check_consumers<T>(consumers, factors.size()); !valid) return valid;
  if (const Status valid = channel_scaling::check_factors<T>(factors, factors.size()); !valid) return valid;
  channel_scaling::divide_rows(producer, factors);
  for (const LinearWeights<T>& consumer : consumers) channel_scaling::multiply_columns(consumer.weights, factors);
  return {};
}

/// Gives all query heads of a value head the largest of their factors, channel by channel. `factors` [heads x width].
/// Errc::bad_shape.
template <std::floating_point T>
[[nodiscard]] Status share_factors(const ValueHeads& heads, std::span<T> factors) {
  if (const Status valid = layer_weights::check(heads); !valid) return valid;
  if (factors.size() != heads.heads * heads.width) {
    return Error{Errc::bad_shape, "there is one factor for each channel", "factors", factors.size(),
                 heads.heads * heads.width};
  }
  const std::size_t group = heads.heads / heads.kv_heads * heads.width;
  for (std::size_t first = 0; first < factors.size(); first += group) {
    for (std::size_t i = 0; i < heads.width; ++i) {
      T largest = factors[first + i];
      for (std::size_t j = i; j < group; j += heads.width) {
        if (factors[first + j] > largest) largest = factors[first + j];
      }
      for (std::size_t j = i; j < group; j += heads.width) factors[first + j] = largest;
    }
  }
  return {};
}

/// Scales the inputs of the output projection: shares `factors` [heads x width] among the query heads of each value
/// head (they are changed), divides the rows and biases of `value` and multiplies the columns of `output`.
/// Errc::bad_shape, Errc::bad_argument.
template <std::floating_point T>
[[nodiscard]] Status scale_value_channels(const LinearWeights<T>& value, const LinearWeights<T>& output,
                                          const ValueHeads& heads, std::type_identity_t<std::span<T>> factors) {
  if (const Status valid = layer_weights::check(heads); !valid) return valid;
  const std::size_t channels = heads.kv_heads * heads.width;
  Status shape = layer_weights::check(value, "value projection", channels, value.weights.columns);
  if (!shape) return shape;
  shape = layer_weights::check(output, "output projection", output.weights.rows, heads.heads * heads.width);
  if (!shape) return shape;
  const Status valid = channel_scaling::check_factors(std::span<const T>(factors), heads.heads * heads.width);
  if (!valid) return valid;
  if (const Status shared = share_factors(heads, factors); !shared) return shared;
  const std::size_t group = heads.heads / heads.kv_heads * heads.width;
  for (std::size_t h = 0; h < heads.kv_heads; ++h) {
    const std::size_t first = h * heads.width;
    const LinearWeights<T> head = {rows(value.weights, first, heads.width),
                                   value.bias.empty() ? value.bias : value.bias.subspan(first, heads.width)};
    channel_scaling::divide_rows(head, std::span<const T>(factors.subspan(h * group, heads.width)));
  }
  channel_scaling::multiply_columns(output.weights, std::span<const T>(factors));
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
