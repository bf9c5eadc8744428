// SPDX-License-Identifier: Apache-2.0
#pragma once

// The "quantization_config" of compressed-tensors for folders that other programs read or wrote: each linear module in
// the format that its activations ask for, `pack-quantized` (compressed_tensors.hpp) where they stay in floating point
// and `int-quantized` (int_quantized.hpp) where they are integers; "mixed-precision" where a folder has both.

#include <algorithm>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/io/config_groups.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/io/quantization_record.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Whether other programs expect a module of this scheme as `int-quantized`.
[[nodiscard]] constexpr bool is_int_quantized(const Scheme& scheme) noexcept {
  return scheme.activation.bits != 16;
}

/// The description of a folder whose quantized linear modules are those of `record`; rotations, clips and notes have no
/// place in it.
[[nodiscard]] inline Json compressed_tensors_config(const QuantizationRecord& record) {
  Json groups = io_detail::config_groups(record);
  std::string format;
  for (auto& group : groups) {
    const char* own = group["input_activations"].is_null() ? "pack-quantized" : "int-quantized";
    group["format"] = own;
    format = format.empty() || format == own ? own : "mixed-precision";
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"config_groups", std::move(groups)},
          {"ignore", record.ignore},
          {"kv_cache_scheme", nullptr},
          {"version", "0.20.0"}};  // of the compressed-tensors release whose form this is
}

/// The scheme of each module that is stored as codes: `packed` those with a `weight_packed` tensor, `integers` those
/// with an I8 `weight`. Errc::bad_file, Errc::unsupported.
[[nodiscard]] inline Result<QuantizationRecord> parse_compressed_tensors(const Json& quantization,
                                                                         std::span<const std::string_view> packed,
                                                                         std::span<const std::string_view> integers) {
  if (const Status plain = io_detail::refuse_transforms(quantization); !plain) return plain.error();
  const Json* listed = json_find(quantization, "config_groups");
  if (listed == nullptr) return io_detail::wrong_config("a JSON key is missing", "config_groups");
  io_detail::GroupTargets groups;
  if (const Status read = groups.read(*listed); !read) return read.error();
  QuantizationRecord record;
  record.method = "compressed-tensors";
  for (const auto& modules : {packed, integers}) {
    for (const std::string_view module : modules) {
      const io_detail::GroupScheme* group = groups.find(module);
      if (group == nullptr) return io_detail::wrong_config("no group for a quantized module", module);
      record.modules.push_back({std::string(module), group->scheme, ModuleKind::linear, group->ranges});
    }
  }
  return record;
}

}  // namespace CBQ_ABI
}  // namespace cbq
