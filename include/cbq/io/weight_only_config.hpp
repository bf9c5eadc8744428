// SPDX-License-Identifier: Apache-2.0
#pragma once

// The "quantization_config" of folders in the forms of GPTQ (gptq.hpp) and AWQ (awq.hpp), written for other programs
// and read from theirs:
//
//   {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true, "desc_act": false, "checkpoint_format": "gptq",
//    "dynamic": {"+:^model\\.layers\\.0\\.mlp\\.down_proj$": {"bits": 8, ...}, "-:^lm_head$": {}}, ...}
//   {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm", ...}
//
// A group_size of -1 is one group per output. "dynamic" has what a module has of its own; programs match its patterns
// against module names. Reading takes the common values only: bits and groups of a module follow from its tensors.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/config.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/gptq.hpp>
#include <cbq/io/json.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// What a GPTQ or AWQ folder says of all its modules.
struct WeightOnlyConfig {
  int group = 0;  ///< 0: one group per output
  GptqZeros zeros = GptqZeros::v1;
};

inline namespace CBQ_ABI {
namespace io_detail {

inline Json group_size(const Grid& grid) {
  return grid.granularity == Granularity::per_group ? grid.group : -1;
}

// The pattern that is this name and nothing else.
inline std::string exact_pattern(std::string_view sign, std::string_view name) {
  std::string pattern(sign);
  pattern += ":^";
  for (const char c : name) {
    const bool plain = c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern + "$";
}

// The grid that most matrices have.
inline Grid common_grid(std::span<const QuantizedMatrixPlan> matrices) {
  std::vector<std::pair<Grid, std::size_t>> counts;
  for (const QuantizedMatrixPlan& matrix : matrices) {
    const auto found =
        std::find_if(counts.begin(), counts.end(), [&](const auto& e) { return e.first == matrix.grid; });
    if (found != counts.end()) {
      ++found->second;
    } else {
      counts.emplace_back(matrix.grid, 1);
    }
  }
  const auto most =
      std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == counts.end() ? Grid{.bits = 4} : most->first;
}

}  // namespace io_detail

/// The description of a GPTQ folder, for config.json and quantize_config.json. `floats` are the linear modules in
/// floating point, but for lm_head, which the form leaves out by itself.
[[nodiscard]] inline Json gptq_config(std::span<const QuantizedMatrixPlan> matrices,
                                      std::span<const std::string> floats, GptqZeros zeros) {
  const Grid common = io_detail::common_grid(matrices);
  Json dynamic = Json::object();
  for (const std::string& module : floats) {
    if (module != "lm_head") dynamic[io_detail::exact_pattern("-", module)] = Json::object();
  }
  for (const QuantizedMatrixPlan& matrix : matrices) {
    const Grid& grid = matrix.grid;
    if (grid == common) continue;
    dynamic[io_detail::exact_pattern("+", matrix.module)] = {
        {"bits", grid.bits}, {"group_size", io_detail::group_size(grid)}, {"sym", grid.zero == Zero::symmetric}};
  }
  const std::string version = std::to_string(CBQ_VERSION_MAJOR) + "." + std::to_string(CBQ_VERSION_MINOR) + "." +
                              std::to_string(CBQ_VERSION_PATCH);
  Json config = {{"quant_method", "gptq"},
                 {"bits", common.bits},
                 {"group_size", io_detail::group_size(common)},
                 {"desc_act", false},
                 {"static_groups", false},
                 {"sym", common.zero == Zero::symmetric},
                 {"lm_head", false},
                 {"checkpoint_format", zeros == GptqZeros::v1 ? "gptq" : "gptq_v2"},
                 {"pack_dtype", "int32"},
                 {"meta", {{"quantizer", {"cbq:" + version}}}}};
  if (!dynamic.empty()) config["dynamic"] = std::move(dynamic);
  return config;
}

/// The description of an AWQ folder whose modules all have groups of `group`. `floats` are the linear modules in
/// floating point.
[[nodiscard]] inline Json awq_config(int group, std::span<const std::string> floats) {
  const bool others = std::any_of(floats.begin(), floats.end(), [](const std::string& m) { return m != "lm_head"; });
  return {{"quant_method", "awq"},
          {"bits", 4},
          {"group_size", group},
          {"zero_point", true},
          {"version", "gemm"},
          {"modules_to_not_convert",
           others ? Json(std::vector<std::string>(floats.begin(), floats.end())) : Json(nullptr)}};
}

namespace io_detail {

inline Result<int> parse_group_size(const Json& config) {
  const Json* group = json_find(config, "group_size");
  if (group == nullptr || !group->is_number_integer()) {
    return Error{Errc::bad_file, "no whole number", "group_size", group == nullptr ? "nothing" : group->type_name()};
  }
  const bool channel = *group == -1;
  if (!channel && (*group <= 0 || *group > (1 << 24))) {
    return Error{Errc::bad_file, "not a group size", "group_size", group->dump(), "-1 or a positive number"};
  }
  return channel ? 0 : group->get<int>();
}

}  // namespace io_detail

/// Reads the description of a GPTQ folder. Errc::bad_file, Errc::unsupported (another checkpoint_format or pack_dtype).
[[nodiscard]] inline Result<WeightOnlyConfig> parse_gptq_config(const Json& config) {
  const Result<int> group = io_detail::parse_group_size(config);
  if (!group) return group.error();
  WeightOnlyConfig parsed{*group, GptqZeros::v1};
  if (const Json* words = json_find(config, "pack_dtype"); words != nullptr && !json_is(*words, "int32")) {
    return Error{Errc::unsupported, "words of another width", "pack_dtype", words->dump(), "int32"};
  }
  const Json* format = json_find(config, "checkpoint_format");
  if (format == nullptr || format->is_null() || json_is(*format, "gptq")) return parsed;
  if (!json_is(*format, "gptq_v2")) {
    return Error{Errc::unsupported, "a GPTQ layout that cbq does not read", "checkpoint_format", format->dump(),
                 "gptq or gptq_v2"};
  }
  parsed.zeros = GptqZeros::v2;
  return parsed;
}

/// Reads the description of an AWQ folder. Errc::bad_file, Errc::unsupported (another version or other bits).
[[nodiscard]] inline Result<WeightOnlyConfig> parse_awq_config(const Json& config) {
  const Result<int> group = io_detail::parse_group_size(config);
  if (!group) return group.error();
  const Result<std::uint64_t> bits = json_unsigned(config, "bits");
  if (!bits) return bits.error();
  if (*bits != 4) return Error{Errc::unsupported, "AWQ has 4 bits", "bits", *bits, "4"};
  const Json* version = json_find(config, "version");
  const bool gemm = version == nullptr || version->is_null() || json_is(*version, "gemm") || json_is(*version, "GEMM");
  if (!gemm)
    return Error{Errc::unsupported, "an AWQ layout that cbq does not read", "version", version->dump(), "gemm"};
  return WeightOnlyConfig{*group, GptqZeros::v2};
}

}  // namespace CBQ_ABI
}  // namespace cbq
