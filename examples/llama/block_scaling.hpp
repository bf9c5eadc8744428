// SPDX-License-Identifier: Apache-2.0
#pragma once

// The weights of one block, to be changed in place: truncated, or scaled by the channels of what its layers read, where
// the factor that a channel is divided by goes into what makes the input (a norm, value rows, up or fc1 rows).

#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <cbq/transform/layer_weights.hpp>

#include "changed_weights.hpp"
#include "model_layout.hpp"

namespace cbq_llama {

/// Factors that the channels of what `reader` reads are divided by, and columns of its `readers` multiplied; empty: the
/// input stays as it is. Query heads of a value head then share the largest of theirs.
using InputFactors = std::function<cbq::Result<std::vector<float>>(std::size_t reader,
                                                                   std::span<const cbq::LinearWeights<float>> readers)>;

class BlockWeights {
 public:
  /// Linear layers and norms of block `layer`. Errors of reading the model.
  [[nodiscard]] static cbq::Result<BlockWeights> read(const ChangedWeights& weights, std::size_t layer);

  /// In the order of block_modules().
  [[nodiscard]] std::span<const cbq::LinearWeights<float>> linears() const { return linears_; }

  /// Scales the inputs that `factors` says. Where an activation function that is not linear in each channel makes the
  /// last input (GELU), nobody is asked about it. Errors of `factors` and of cbq::scale_channels().
  [[nodiscard]] cbq::Status scale_inputs(const InputFactors& factors);

  void store(ChangedWeights& weights) &&;

 private:
  cbq::Status add(const ChangedWeights& weights, const std::string& name, std::size_t rows, std::size_t columns);
  [[nodiscard]] std::span<float> vector(const std::string& name);

  ModelConfig config_;
  std::map<std::string, FloatMatrix> tensors_;
  std::vector<cbq::LinearWeights<float>> linears_;
  std::vector<cbq::NormWeights<float>> norms_;  // before attention and before the MLP
};

/// Whether the last linear layer of a block reads channels that can be scaled.
[[nodiscard]] bool scales_last_input(const ModelConfig& config);

}  // namespace cbq_llama
