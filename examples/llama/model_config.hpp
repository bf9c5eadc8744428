// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a checkpoint says of its model: sizes, norms, rotary positions, special tokens. Read from the config.json of a
// Hugging Face folder or from a GGUF file; every number is checked before anything is sized by it.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/gguf.hpp>
#include <cbq/io/json.hpp>
#include <cbq/nn/mlp.hpp>
#include <cbq/nn/rotary.hpp>

namespace cbq_llama {

enum class Architecture : unsigned char { llama, opt, bloom };

struct ModelConfig {
  Architecture architecture = Architecture::llama;
  std::size_t layers = 0;
  std::size_t hidden = 0;
  std::size_t intermediate = 0;
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t head_width = 0;
  std::size_t vocabulary = 0;
  std::size_t context = 0;  ///< longest sequence, in tokens
  double norm_epsilon = 1e-5;
  cbq::RotaryConfig rotary = {};
  cbq::Activation activation = cbq::Activation::relu;  ///< of OPT and BLOOM
  bool tied = false;                                   ///< the head is the embedding
  bool attention_bias = false;                         ///< Q, K, V and output projections have biases
  bool mlp_bias = false;
  std::optional<std::int64_t> bos;
  std::vector<std::int64_t> eos;  ///< any of them ends a text
};

/// "llama", "opt" or "bloom".
[[nodiscard]] const char* architecture_name(Architecture architecture);

/// From a config.json. Errc::bad_file naming the key, Errc::unsupported for other architectures and variants.
[[nodiscard]] cbq::Result<ModelConfig> read_config(const cbq::Json& json);

/// GGUF's tensor of what divides the frequency of each rotary pair, F32 [head_width / 2]. Llama 3's rule is in files as
/// these factors alone.
inline constexpr const char* rotary_factors_name = "rope_freqs.weight";

/// From the metadata of a GGUF file, and its rotary factors: those that Llama 3.1 to 3.3 have become their rule again
/// (RotaryScaling::llama3, any `factor`, low 1, high 4, 8192 positions; factors within 1e-5 of its),
/// others RotaryScaling::per_pair. Errors as above; of the factors Errc::bad_shape and Errc::not_finite too.
[[nodiscard]] cbq::Result<ModelConfig> read_config(const cbq::Gguf& file);

/// The config.json of a Hugging Face folder for this model. RotaryScaling::per_pair is Transformers' "longrope" with
/// the same factors for short and long texts and attention_factor 1.
[[nodiscard]] cbq::Json to_json(const ModelConfig& config);

}  // namespace cbq_llama
