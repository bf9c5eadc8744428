// SPDX-License-Identifier: Apache-2.0
#pragma once

// Online rotations of linear layers' inputs in a checkpoint's config.json, in both directions:
//
//   "cbq": {"input_rotations": {module: {"type": "hadamard", "block": 512}, ...}}       what cbq reads
//   "quantization_config": {"transform_config": {"config_groups": {"hadamard_512": {"type": "hadamard", "head_dim":
//   512,
//     "apply": [{"targets": [module, ...], "location": "input"},
//               {"targets": [module, ...], "location": "weight_input", "inverse": true}]}}}}
//                                                                      the same in compressed-tensors' words
//
// Blocks of Sylvester's Hadamard matrix over the square root of their size, on the diagonal.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <cbq/io/json.hpp>

namespace cbq {

/// A linear module, quantized or not, whose weights expect its input transformed as InputRotation::hadamard does.
struct ModuleRotation {
  std::string module;
  std::size_t block = 0;  ///< a power of two: hadamard_size() of the module's inputs
};

inline namespace CBQ_ABI {
namespace io_detail {

inline Json rotations_json(const std::vector<ModuleRotation>& rotations) {
  Json json = Json::object();
  for (const ModuleRotation& entry : rotations) json[entry.module] = {{"type", "hadamard"}, {"block", entry.block}};
  return json;
}

inline Json transform_config(const std::vector<ModuleRotation>& rotations) {
  std::map<std::size_t, Json> targets;
  for (const ModuleRotation& entry : rotations) targets[entry.block].push_back(entry.module);
  Json groups = Json::object();
  for (const auto& [block, modules] : targets) {
    groups["hadamard_" + std::to_string(block)] = {
        {"type", "hadamard"},
        {"head_dim", block},
        {"apply",
         {{{"targets", modules}, {"location", "input"}},
          {{"targets", modules}, {"location", "weight_input"}, {"inverse", true}}}}};
  }
  return {{"config_groups", groups}};
}

/// Errc::bad_file, and Errc::unsupported for another type of rotation.
inline Result<std::vector<ModuleRotation>> parse_rotations(const Json& json) {
  std::vector<ModuleRotation> rotations;
  if (!json.is_object()) {
    return Error{Errc::bad_file, "rotations are no object", "cbq.input_rotations", json.type_name(), "object"};
  }
  for (const auto& [module, rotation] : json.items()) {
    const Result<std::string_view> type = json_string(rotation, "type");
    if (!type) return in_context(type.error(), module);
    if (*type != "hadamard") {
      return Error{Errc::unsupported, "an input rotation that cbq does not know", module, *type, "hadamard"};
    }
    const Result<std::uint64_t> block = json_unsigned(rotation, "block");
    if (!block) return in_context(block.error(), module);
    if (*block == 0 || (*block & (*block - 1)) != 0) {
      return Error{Errc::bad_file, "a Hadamard block is a power of two", module, *block};
    }
    rotations.push_back({module, static_cast<std::size_t>(*block)});
  }
  return rotations;
}

/// Errc::unsupported where another program's quantization_config asks for transforms: they would be left out.
inline Status refuse_transforms(const Json& quantization) {
  const Json* transforms = json_find(quantization, "transform_config");
  if (transforms == nullptr || transforms->is_null() || transforms->empty()) return {};
  const Json* groups = json_find(*transforms, "config_groups");
  if (groups != nullptr && groups->is_object() && groups->empty()) return {};
  return Error{Errc::unsupported, "transforms of another program", "transform_config"};
}

}  // namespace io_detail
}  // namespace CBQ_ABI
}  // namespace cbq
