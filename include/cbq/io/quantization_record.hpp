// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a checkpoint was quantized, as a host has it and as its config.json says it (quantization_config.hpp): modules
// with their schemes, what they expect of their inputs, notes.

#include <string>
#include <string_view>
#include <vector>

#include <cbq/io/config_groups.hpp>
#include <cbq/io/config_rotations.hpp>
#include <cbq/io/json.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// What a quantized module is; embeddings are looked up, linear modules multiply.
enum class ModuleKind : unsigned char { linear, embedding };

inline namespace CBQ_ABI {

/// A quantized module and its scheme.
struct ModuleScheme {
  std::string module;  ///< as in the checkpoint, for example "model.layers.0.mlp.up_proj"
  Scheme scheme;
  ModuleKind kind = ModuleKind::linear;
  ActivationRanges ranges = ActivationRanges::dynamic;
};

/// A quantized linear module whose activations' ranges are shrunk by a learned multiplier in (0, 1].
struct ModuleClip {
  std::string module;
  float clip = 1.0f;
};

/// How a checkpoint was quantized.
struct QuantizationRecord {
  std::vector<ModuleScheme> modules;
  std::vector<std::string> ignore;  ///< linear modules that stayed in floating point
  std::vector<ModuleRotation> rotations = {};
  std::vector<ModuleClip> clips = {};
  std::string method = "rtn";
  int head_bits = 16;
  Json notes = Json::object();  ///< further members of the "cbq" object
};

/// The scheme of `module`, or nullptr when it is not quantized.
[[nodiscard]] inline const ModuleScheme* find_module(const QuantizationRecord& record,
                                                     std::string_view module) noexcept {
  for (const ModuleScheme& entry : record.modules) {
    if (entry.module == module) return &entry;
  }
  return nullptr;
}

/// The clip multiplier of `module`'s activations, or nullptr when it has none.
[[nodiscard]] inline const ModuleClip* find_clip(const QuantizationRecord& record, std::string_view module) noexcept {
  for (const ModuleClip& entry : record.clips) {
    if (entry.module == module) return &entry;
  }
  return nullptr;
}

/// The rotation of `module`'s input, or nullptr when it has none.
[[nodiscard]] inline const ModuleRotation* find_rotation(const QuantizationRecord& record,
                                                         std::string_view module) noexcept {
  for (const ModuleRotation& entry : record.rotations) {
    if (entry.module == module) return &entry;
  }
  return nullptr;
}

}  // namespace CBQ_ABI
}  // namespace cbq
