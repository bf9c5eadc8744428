// SPDX-License-Identifier: Apache-2.0
#pragma once

// Learned smoothing of keys and values in the files of a model: five vectors per layer beside its other tensors,
//
//   model.layers.3.self_attn.kv.key_scale, .key_offset, .key_weight, .value_scale, .value_offset
//
// all F32 [key/value heads * width]
//
// They belong to keys after rotary positions, and are applied at run time: see <cbq/kv/smoothing.hpp>.

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/kv/smoothing.hpp>

#include "model_source.hpp"

namespace cbq_llama {

/// A vector and the name it has in files.
struct SmoothingTensor {
  std::string name;
  cbq::AlignedBuffer<float> cbq::KvSmoothing::*values = nullptr;
};

/// Those of a layer.
[[nodiscard]] std::vector<SmoothingTensor> smoothing_tensors(const ModelConfig& config, std::size_t layer);

/// What the files of a model hold for all layers, or nothing. Errc::bad_file where some layers have none, or a factor
/// that is not positive; errors of ModelSource::read().
[[nodiscard]] cbq::Result<std::optional<std::vector<cbq::KvSmoothing>>> read_smoothing(const ModelSource& source);

}  // namespace cbq_llama
