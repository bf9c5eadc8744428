// SPDX-License-Identifier: Apache-2.0
#pragma once

// Views of a decoder's weights, in memory of the host, that equivalent transformations rewrite in place. All matrices
// are outputs x inputs: y = x W^T + bias. Plain data; the functions check shapes.

#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {

/// A linear layer.
template <std::floating_point T>
struct LinearWeights {
  MatrixView<T> weights = {};  ///< outputs x inputs
  std::span<T> bias = {};      ///< outputs, or empty
};

/// RMSNorm (without bias) or LayerNorm.
template <std::floating_point T>
struct NormWeights {
  std::span<T> gain = {};
  std::span<T> bias = {};  ///< as many as gains, or empty
};

/// How the outputs of a value projection meet the inputs of an output projection: `heads` query heads of `width`
/// channels read `kv_heads` value heads, heads / kv_heads consecutive ones the same.
struct ValueHeads {
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t width = 0;
};

/// One layer: LLaMA's gated MLP, or a plain one (OPT), which has no gate and whose first matrix is `up`.
template <std::floating_point T>
struct DecoderLayerWeights {
  NormWeights<T> attention_norm = {};
  LinearWeights<T> query = {}, key = {}, value = {}, output = {};
  NormWeights<T> mlp_norm = {};
  LinearWeights<T> gate = {}, up = {}, down = {};
};

/// A whole decoder. Embedding and head are different memory: tied weights are untied before they are transformed.
template <std::floating_point T>
struct DecoderWeights {
  MatrixView<T> embedding = {};  ///< vocabulary x hidden
  MatrixView<T> positions = {};  ///< learned positions x hidden, or empty
  std::span<const DecoderLayerWeights<T>> layers = {};
  NormWeights<T> final_norm = {};
  LinearWeights<T> head = {};
  ValueHeads value_heads = {};
};

inline namespace CBQ_ABI {
namespace layer_weights {

/// Errc::bad_shape unless `linear` has `outputs` rows, `inputs` columns and a bias for each row or none.
template <std::floating_point T>
[[nodiscard]] Status check(const LinearWeights<T>& linear, const char* name, std::size_t outputs, std::size_t inputs) {
  const MatrixView<T>& w = linear.weights;
  if (w.rows != outputs || w.columns != inputs || w.stride < w.columns) {
    return Error{Errc::bad_shape, "a weight matrix has another shape than its neighbours need", name,
                 ErrorText(w.rows) << " x " << w.columns, ErrorText(outputs) << " x " << inputs};
  }
  if (!linear.bias.empty() && linear.bias.size() != outputs) {
    return Error{Errc::bad_shape, "a layer has as many biases as outputs, or none", name, linear.bias.size(), outputs};
  }
  return {};
}

/// Errc::bad_shape unless the norm has `width` gains and as many biases or none.
template <std::floating_point T>
[[nodiscard]] Status check(const NormWeights<T>& norm, std::size_t width) {
  if (norm.gain.size() != width || (!norm.bias.empty() && norm.bias.size() != width)) {
    return Error{Errc::bad_shape, "a norm has another width than its consumers", "norm",
                 ErrorText(norm.gain.size()) << ", " << norm.bias.size(), width};
  }
  return {};
}

/// Errc::bad_shape unless heads divide and nothing is zero.
[[nodiscard]] constexpr Status check(const ValueHeads& heads) {
  if (heads.heads == 0 || heads.kv_heads == 0 || heads.width == 0 || heads.heads % heads.kv_heads != 0) {
    return Error{Errc::bad_shape, "query heads must be a multiple of value heads", "value heads",
                 ErrorText(heads.heads) << ", " << heads.kv_heads << " of width " << heads.width};
  }
  return {};
}

/// Errc::bad_shape unless `consumers` are well formed and read `inputs` channels; names the index of the bad one.
template <std::floating_point T>
[[nodiscard]] Status check_consumers(std::span<const LinearWeights<T>> consumers, std::size_t inputs) {
  for (std::size_t i = 0; i < consumers.size(); ++i) {
    if (Status valid = check(consumers[i], "consumer", consumers[i].weights.rows, inputs); !valid) {
      Error error = valid.error();
      error.where << " " << i;
      return error;
    }
  }
  return {};
}

}  // namespace layer_weights
}  // namespace CBQ_ABI
}  // namespace cbq
