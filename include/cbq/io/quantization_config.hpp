// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a quantized checkpoint's config.json says about its quantization, in two objects:
//
//   "quantization_config": the compressed-tensors description that vLLM and Transformers read. One group with target
//   "Linear"
//     when all linear modules share a scheme, else a group per scheme that lists its modules by name.
//   "cbq": {"version": 1, "method": ..., "head_bits": ..., "schemes": {module: scheme name}, "embeddings": [module,
//   ...]} with
//     what the former cannot say: the exact scheme of each module, embeddings stored as codes. cbq reads this one when
//     it is there and falls back to the other. Version 2 adds "input_rotations" (<cbq/io/config_rotations.hpp>)
//     and "activation_clips": {module: multiplier of the ranges of its activations}, and "static_activations":
//     [module, ...] whose grids are tensors (stored_input_grid.hpp); a host's note "attention_bits" (of queries, keys
//     and values) makes it 2 as well: whoever knows version 1 only must not run such a model.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/stat.h>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/config_groups.hpp>
#include <cbq/io/config_rotations.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/quantization_record.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace io_detail {

inline bool has_group_of(const ModuleScheme& module, const ModuleScheme& other) {
  return module.scheme == other.scheme && module.ranges == other.ranges;
}

// Both kinds of target at once would be ambiguous, so "Linear" stands alone for linear modules or not at all.
inline Json config_groups(const QuantizationRecord& record) {
  const ModuleScheme* first = nullptr;
  bool one_scheme = true;
  for (const ModuleScheme& entry : record.modules) {
    if (entry.kind != ModuleKind::linear) continue;
    if (first == nullptr) first = &entry;
    one_scheme = one_scheme && has_group_of(entry, *first);
  }
  Json groups = Json::object();
  std::vector<const ModuleScheme*> described;
  for (const ModuleScheme& entry : record.modules) {
    const auto same = [&entry, one_scheme](const ModuleScheme* other) {
      return has_group_of(*other, entry) && (!one_scheme || other->kind == entry.kind);
    };
    const auto found = std::find_if(described.begin(), described.end(), same);
    Json& group = groups["group_" + std::to_string(found - described.begin())];
    const bool by_class = one_scheme && entry.kind == ModuleKind::linear;
    if (found == described.end()) {
      described.push_back(&entry);
      group = scheme_group(entry.scheme, entry.ranges);
      if (by_class) group["targets"].push_back("Linear");
    }
    if (!by_class) group["targets"].push_back(entry.module);
  }
  return groups;
}

}  // namespace io_detail

/// Adds "quantization_config" and "cbq" to a model's config.json. Errc::unsupported for schemes that the form cannot
/// hold (weights only of 2..8 bits, per channel or per group; activations only in the groups of the weights).
[[nodiscard]] inline Status add_quantization(Json& config, const QuantizationRecord& record) {
  if (!config.is_object())
    return Error{Errc::bad_argument, "a model's config is an object", "", config.type_name(), "object"};
  Json schemes = Json::object();
  Json embeddings = Json::array();
  Json fixed = Json::array();
  for (const ModuleScheme& entry : record.modules) {
    const Grid& grid = entry.scheme.weight;
    const bool grouped = grid.granularity == Granularity::per_group && grid.group > 0;
    const bool grouped_activations = entry.scheme.activation.granularity == Granularity::per_group;
    if (grouped_activations && (!grouped || entry.scheme != with_activation_groups(entry.scheme))) {
      return Error{Errc::unsupported, "groups of activations that are not the weights'", entry.module,
                   scheme_name(entry.scheme).c_str()};
    }
    if (grid.bits < 2 || grid.bits > 8 || !(grouped || grid.granularity == Granularity::per_channel)) {
      return Error{Errc::unsupported, "pack-quantized cannot hold this scheme", entry.module,
                   scheme_name(entry.scheme).c_str(), "2 to 8 bits per channel or group"};
    }
    schemes[entry.module] = scheme_name(entry.scheme).c_str();
    if (entry.kind == ModuleKind::embedding) embeddings.push_back(entry.module);
    if (entry.ranges == ActivationRanges::dynamic) continue;
    if (entry.scheme.activation.granularity != Granularity::per_tensor) {
      return Error{Errc::unsupported, "static activations are per tensor", entry.module,
                   scheme_name(entry.scheme).c_str()};
    }
    fixed.push_back(entry.module);
  }
  if (schemes.size() != record.modules.size()) return Error{Errc::bad_argument, "the same module twice"};
  config["quantization_config"] = {{"quant_method", "compressed-tensors"},
                                   {"format", "pack-quantized"},
                                   {"quantization_status", "compressed"},
                                   {"config_groups", io_detail::config_groups(record)},
                                   {"ignore", record.ignore},
                                   {"kv_cache_scheme", nullptr},
                                   {"version", "0.20.0"}};  // of the compressed-tensors release whose form this is
  Json& own = config["cbq"];
  own = record.notes.is_object() ? record.notes : Json::object();
  const bool plain =
      record.rotations.empty() && record.clips.empty() && fixed.empty() && !own.contains("attention_bits");
  own["version"] = plain ? 1 : 2;
  if (!fixed.empty()) own["static_activations"] = std::move(fixed);
  for (const ModuleClip& entry : record.clips) own["activation_clips"][entry.module] = entry.clip;
  own["method"] = record.method;
  own["head_bits"] = record.head_bits;
  own["schemes"] = std::move(schemes);
  own["embeddings"] = std::move(embeddings);
  if (record.rotations.empty()) return {};
  own["input_rotations"] = io_detail::rotations_json(record.rotations);
  config["quantization_config"]["transform_config"] = io_detail::transform_config(record.rotations);
  return {};
}

/// Whether a config.json describes a checkpoint that cbq wrote.
[[nodiscard]] inline bool has_cbq_quantization(const Json& config) {
  const Json* own = json_find(config, "cbq");
  return own != nullptr && own->is_object();
}

/// Whether `folder` holds a checkpoint that cbq wrote, which may therefore be replaced by another. Errc::io when it
/// cannot be looked at, Errc::out_of_memory.
[[nodiscard]] inline Result<bool> is_quantized_folder(const std::string& folder) {
  return bad_alloc_as_error(folder, [&]() -> Result<bool> {
    const std::string path = folder + "/config.json";
    struct stat status = {};
    if (::stat(path.c_str(), &status) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) return false;
      return system_error("cannot look at the file", path, errno);
    }
    Result<Json> config = read_json_file(path);
    if (!config && (config.error().code == Errc::io || config.error().code == Errc::out_of_memory))
      return config.error();
    if (!config) return false;
    const io_detail::JsonRelease release(*config);
    return has_cbq_quantization(*config);
  });
}

namespace io_detail {

inline Result<std::vector<ModuleClip>> parse_clips(const Json& json) {
  if (!json.is_object()) return wrong_config("clips are no object", "cbq.activation_clips", json.type_name(), "object");
  std::vector<ModuleClip> clips;
  for (const auto& item : json.items()) {
    const Result<double> clip = json_number(json, item.key());
    if (!clip) return clip.error();
    if (!(*clip > 0 && *clip <= 1)) return wrong_config("a clip multiplier lies above 0 and at most at 1", item.key());
    clips.push_back({item.key(), static_cast<float>(*clip)});
  }
  return clips;
}

// A list of modules of the "cbq" object, sorted; each has a scheme.
inline Result<std::vector<std::string_view>> parse_modules(const Json& own, const Json& schemes, const char* key) {
  const Json* list = json_find(own, key);
  const ErrorText where = ErrorText("cbq.") << key;
  if (list == nullptr || !list->is_array()) return wrong_config("no list of modules", where);
  std::vector<std::string_view> modules;
  for (const Json& module : *list) {
    const std::string* name = module.get_ptr<const std::string*>();
    if (name == nullptr) return wrong_config("a module that is no text", where, module.type_name(), "text");
    if (!schemes.contains(*name)) return wrong_config("a module without a scheme", where, *name);
    modules.push_back(*name);
  }
  std::sort(modules.begin(), modules.end());
  return modules;
}

inline Result<QuantizationRecord> parse_own(const Json& own) {
  QuantizationRecord record;
  const Result<std::uint64_t> version = json_unsigned(own, "version");
  if (!version) return version.error();
  if (*version != 1 && *version != 2) {
    return Error{Errc::unsupported, "a later form of cbq checkpoint", "cbq.version", *version, "1 or 2"};
  }
  const Result<std::string_view> method = json_string(own, "method");
  if (!method) return method.error();
  record.method = *method;
  const Result<std::uint64_t> head_bits = json_unsigned(own, "head_bits");
  if (!head_bits) return head_bits.error();
  if (*head_bits < 2 || (*head_bits > 8 && *head_bits != 16)) {
    return wrong_config("head bits out of range", "cbq.head_bits", *head_bits, "2..8 or 16");
  }
  record.head_bits = static_cast<int>(*head_bits);
  const Json* schemes = json_find(own, "schemes");
  if (schemes == nullptr || !schemes->is_object()) return wrong_config("no object of schemes", "cbq.schemes");
  const Result<std::vector<std::string_view>> looked_up = parse_modules(own, *schemes, "embeddings");
  if (!looked_up) return looked_up.error();
  std::vector<std::string_view> fixed;
  if (json_find(own, "static_activations") != nullptr) {
    if (*version == 1) return wrong_config("static activations need version 2", "cbq.static_activations");
    Result<std::vector<std::string_view>> read = parse_modules(own, *schemes, "static_activations");
    if (!read) return read.error();
    fixed = *std::move(read);
  }
  for (const auto& item : schemes->items()) {
    const std::string& module = item.key();
    const Result<std::string_view> name = json_string(*schemes, module);
    if (!name) return name.error();
    const Result<Scheme> scheme = parse_scheme(std::string(*name).c_str());
    if (!scheme) return in_context(scheme.error(), module);
    if (scheme->weight.bits == 16) return wrong_config("a scheme whose weights are not quantized", module, *name);
    const auto is_in = [&](const std::vector<std::string_view>& list) {
      return std::binary_search(list.begin(), list.end(), std::string_view(module));
    };
    record.modules.push_back({module, *scheme, is_in(*looked_up) ? ModuleKind::embedding : ModuleKind::linear,
                              is_in(fixed) ? ActivationRanges::fixed : ActivationRanges::dynamic});
    if (is_in(fixed) && scheme->activation.granularity != Granularity::per_tensor) {
      return wrong_config("static activations are per tensor", module, *name);
    }
  }
  if (const Json* rotations = json_find(own, "input_rotations"); rotations != nullptr) {
    if (*version == 1) return wrong_config("rotations need version 2", "cbq.input_rotations");
    Result<std::vector<ModuleRotation>> read = parse_rotations(*rotations);
    if (!read) return read.error();
    record.rotations = *std::move(read);
  }
  if (const Json* clips = json_find(own, "activation_clips"); clips != nullptr) {
    if (*version == 1) return wrong_config("clips need version 2", "cbq.activation_clips");
    Result<std::vector<ModuleClip>> read = parse_clips(*clips);
    if (!read) return read.error();
    record.clips = *std::move(read);
  }
  record.notes = own;
  for (const char* key : {"version", "method", "head_bits", "schemes", "embeddings", "input_rotations",
                          "activation_clips", "static_activations"}) {
    record.notes.erase(key);
  }
  return record;
}

inline Result<QuantizationRecord> parse_foreign(const Json& quantization, std::span<const std::string_view> packed) {
  const Result<std::string_view> method = json_string(quantization, "quant_method");
  if (!method) return method.error();
  if (*method != "compressed-tensors") {
    return Error{Errc::unsupported, "a quantization method that cbq does not read", "quant_method", *method,
                 "compressed-tensors"};
  }
  if (const Status plain = refuse_transforms(quantization); !plain) return plain.error();
  const Json* listed = json_find(quantization, "config_groups");
  if (listed == nullptr) return wrong_config("a JSON key is missing", "config_groups");
  GroupTargets groups;
  if (const Status read = groups.read(*listed); !read) return read.error();
  QuantizationRecord record;
  record.method = "compressed-tensors";
  for (const std::string_view module : packed) {
    const GroupScheme* group = groups.find(module);
    if (group == nullptr) return wrong_config("no group for a packed module", module);
    if (group->int_quantized) {
      return Error{Errc::unsupported, "a compression format that cbq does not run", module, "int-quantized",
                   "pack-quantized"};
    }
    // Releases differ in whether codes of these widths straddle words; importing finds out.
    if (32 % group->scheme.weight.bits != 0) {
      return Error{Errc::unsupported, "codes of this width from another program", module, group->scheme.weight.bits,
                   "2, 4 or 8 bits"};
    }
    record.modules.push_back({std::string(module), group->scheme, ModuleKind::linear, group->ranges});
  }
  return record;
}

}  // namespace io_detail

namespace io_detail {

inline Status read_ignored(const Json& config, QuantizationRecord& record) {
  const Json* quantization = json_find(config, "quantization_config");
  const Json* ignore = quantization == nullptr ? nullptr : json_find(*quantization, "ignore");
  if (ignore == nullptr || ignore->is_null()) return {};
  if (!ignore->is_array()) return wrong_config("not a list", "ignore", ignore->type_name(), "array");
  for (const Json& module : *ignore) {
    const std::string* name = module.get_ptr<const std::string*>();
    if (name == nullptr) return wrong_config("a module that is no text", "ignore", module.type_name(), "text");
    record.ignore.push_back(*name);
  }
  return {};
}

}  // namespace io_detail

/// What config.json says about quantization; an empty record for a model in floating point. `packed` are the modules of
/// the checkpoint that have a `weight_packed` tensor; each must be described, and with cbq's own description also the
/// reverse. Errc::bad_file, Errc::unsupported.
[[nodiscard]] inline Result<QuantizationRecord> parse_quantization(const Json& config,
                                                                   std::span<const std::string_view> packed) {
  if (const Json* own = json_find(config, "cbq"); own != nullptr) {
    Result<QuantizationRecord> record = io_detail::parse_own(*own);
    if (!record) return in_context(record.error(), "config.json");
    if (const Status read = io_detail::read_ignored(config, *record); !read)
      return in_context(read.error(), "config.json");
    std::vector<std::string_view> described;
    for (const ModuleScheme& entry : record->modules) described.push_back(entry.module);
    std::vector<std::string_view> stored(packed.begin(), packed.end());
    std::sort(described.begin(), described.end());
    std::sort(stored.begin(), stored.end());
    const auto [a, b] = std::mismatch(described.begin(), described.end(), stored.begin(), stored.end());
    if (a == described.end() && b == stored.end()) return record;
    const bool lacks = a != described.end() && (b == stored.end() || *a < *b);
    return io_detail::wrong_config(
        lacks ? "the checkpoint lacks a quantized module" : "a packed module without a scheme", lacks ? *a : *b);
  }
  const Json* quantization = json_find(config, "quantization_config");
  if (quantization == nullptr || quantization->is_null()) {
    if (packed.empty()) return QuantizationRecord{};
    return io_detail::wrong_config("packed weights, but no quantization_config", packed.front());
  }
  Result<QuantizationRecord> record = io_detail::parse_foreign(*quantization, packed);
  if (!record) return in_context(record.error(), "quantization_config");
  if (const Status read = io_detail::read_ignored(config, *record); !read)
    return in_context(read.error(), "config.json");
  return record;
}

}  // namespace CBQ_ABI
}  // namespace cbq
