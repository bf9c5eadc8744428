// SPDX-License-Identifier: Apache-2.0
#include "kv_smoothing_files.hpp"

#include <span>
#include <utility>

#include "model_layout.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

std::vector<SmoothingTensor> smoothing_tensors(const ModelConfig& config, std::size_t layer) {
  const std::string prefix = block_name(config, layer) + ".self_attn.kv.";
  return {{prefix + "key_scale", &cbq::KvSmoothing::key_scales},
          {prefix + "key_offset", &cbq::KvSmoothing::key_offsets},
          {prefix + "key_weight", &cbq::KvSmoothing::key_weights},
          {prefix + "value_scale", &cbq::KvSmoothing::value_scales},
          {prefix + "value_offset", &cbq::KvSmoothing::value_offsets}};
}

Result<std::optional<std::vector<cbq::KvSmoothing>>> read_smoothing(const ModelSource& source) {
  const ModelConfig& config = source.config();
  if (!source.find(smoothing_tensors(config, 0).front().name)) return std::optional<std::vector<cbq::KvSmoothing>>();
  std::vector<cbq::KvSmoothing> layers;
  for (std::size_t i = 0; i < config.layers; ++i) {
    Result<cbq::KvSmoothing> layer = cbq::KvSmoothing::allocate(config.kv_heads * config.head_width);
    if (!layer) return layer.error();
    for (const SmoothingTensor& tensor : smoothing_tensors(config, i)) {
      cbq::AlignedBuffer<float>& values = *layer.*tensor.values;
      const Status done = source.read(tensor.name, std::span<float>(values.data(), values.size()));
      if (!done) return done.error();
      const bool scale = tensor.name.ends_with("_scale"), weight = tensor.name.ends_with("_weight");
      for (const float value : values) {
        if ((scale && !(value > 0)) || (weight && !(value >= 0))) {
          return Error{Errc::bad_file, "a smoothing factor must be positive", tensor.name};
        }
      }
    }
    layers.push_back(*std::move(layer));
  }
  return std::optional(std::move(layers));
}

}  // namespace cbq_llama
