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

namespace {

// The first name that the files do not have, of vectors of all layers; "" where they have all, nothing where they have
// none.
std::optional<std::string> first_missing(const ModelSource& source) {
  std::string missing;
  bool some = false;
  for (std::size_t i = 0; i < source.config().layers; ++i) {
    for (const SmoothingTensor& tensor : smoothing_tensors(source.config(), i)) {
      if (source.find(tensor.name)) {
        some = true;
      } else if (missing.empty()) {
        missing = tensor.name;
      }
    }
  }
  return some ? std::optional(missing) : std::nullopt;
}

Status check_values(const std::string& name, const cbq::AlignedBuffer<float>& values) {
  const bool scale = name.ends_with("_scale"), weight = name.ends_with("_weight");
  for (const float value : values) {
    if (scale && value <= 0) return Error{Errc::bad_file, "a smoothing factor must be positive", name};
    if (weight && value < 0) return Error{Errc::bad_file, "a weight of keys must not be negative", name};
  }
  return {};
}

}  // namespace

Result<std::optional<std::vector<cbq::KvSmoothing>>> read_smoothing(const ModelSource& source) {
  const ModelConfig& config = source.config();
  const std::optional<std::string> missing = first_missing(source);
  if (!missing) return std::optional<std::vector<cbq::KvSmoothing>>();
  if (!missing->empty()) {
    return Error{Errc::bad_file, "a model has the whole smoothing of all layers, or none", *missing};
  }
  std::vector<cbq::KvSmoothing> layers;
  for (std::size_t i = 0; i < config.layers; ++i) {
    Result<cbq::KvSmoothing> layer = cbq::KvSmoothing::allocate(config.kv_heads * config.head_width);
    if (!layer) return layer.error();
    for (const SmoothingTensor& tensor : smoothing_tensors(config, i)) {
      cbq::AlignedBuffer<float>& values = *layer.*tensor.values;
      const Status done = source.read(tensor.name, std::span<float>(values.data(), values.size()));
      if (!done) return done.error();
      if (const Status good = check_values(tensor.name, values); !good) return good.error();
    }
    layers.push_back(*std::move(layer));
  }
  return std::optional(std::move(layers));
}

Status check_smoothing_scheme(const ModelSource& source, const cbq::KvScheme& scheme) {
  const cbq::Json& config = source.json();
  if (!config.is_object() || !config.contains("cbq") || !config["cbq"].is_object()) return {};
  const cbq::Json& record = config["cbq"];
  if (!record.contains("kv_scheme")) return {};
  const std::string name = record["kv_scheme"].is_string() ? record["kv_scheme"].get<std::string>() : std::string();
  const Result<cbq::KvScheme> trained = cbq::parse_kv_scheme(name);
  if (!trained) return Error{Errc::bad_file, "a model was trained for an unknown cache", "kv_scheme in config.json"};
  if (trained->hadamard == scheme.hadamard) return {};
  return Error{Errc::bad_argument,
               "smoothing of rotated heads does not suit others, nor theirs them; --calibration TEXT finds it anew",
               "--kv", cbq::kv_scheme_name(scheme).c_str(), scheme.hadamard ? "without _hadamard" : "with _hadamard"};
}

}  // namespace cbq_llama
