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
#include <cbq/kv/kv_scheme.hpp>
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

/// What the files of a model hold for all layers, or nothing. Errc::bad_file where a vector of some layer is missing, a
/// factor is not positive or a weight negative; errors of ModelSource::read(), of numbers that are not finite too.
[[nodiscard]] cbq::Result<std::optional<std::vector<cbq::KvSmoothing>>> read_smoothing(const ModelSource& source);

/// Whether factors in the files of a model suit caches of `scheme`: those of rotated heads and of others differ, and
/// config.json says what they were trained for. Errc::bad_argument naming `--kv`; Errc::bad_file where config.json
/// names no cache.
[[nodiscard]] cbq::Status check_smoothing_scheme(const ModelSource& source, const cbq::KvScheme& scheme);

}  // namespace cbq_llama
