// SPDX-License-Identifier: Apache-2.0
#pragma once

// A Scheme as a group of a compressed-tensors `config_groups` object, in both directions:
//
//   {"targets": ["Linear"], "format": "pack-quantized",
//    "weights": {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128, ...},
//    "input_activations": null or {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic":
//    true, ...}}
//
// Activations per group have the strategy "group" and the group_size of the weights, those per tensor "tensor", with
// "dynamic": false where calibration fixed their grid (stored_input_grid.hpp). Targets are module names or the class
// "Linear"; patterns ("re:...") are refused, not interpreted.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/io/json.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// Whether ranges of activations are found as a model runs, or one grid for all tokens was fixed by calibration.
enum class ActivationRanges : unsigned char { dynamic, fixed };

inline namespace CBQ_ABI {
namespace io_detail {

inline Error wrong_config(const char* what, ErrorText where, ErrorText got = {}, ErrorText wanted = {}) {
  return Error{Errc::bad_file, what, where, got, wanted};
}

inline Json weight_arguments(const Grid& grid) {
  const bool grouped = grid.granularity == Granularity::per_group;
  return {{"num_bits", grid.bits},
          {"type", "int"},
          {"symmetric", grid.zero == Zero::symmetric},
          {"strategy", grouped ? "group" : "channel"},
          {"group_size", grouped ? Json(grid.group) : Json(nullptr)},
          {"dynamic", false},
          {"actorder", nullptr},
          {"block_structure", nullptr},
          {"observer", "minmax"},
          {"observer_kwargs", Json::object()}};
}

inline Json activation_arguments(const Grid& grid, ActivationRanges ranges) {
  if (grid.bits == 16) return nullptr;
  const bool grouped = grid.granularity == Granularity::per_group;
  const bool tensor = grid.granularity == Granularity::per_tensor;
  const bool fixed = ranges == ActivationRanges::fixed;
  return {{"num_bits", grid.bits},
          {"type", "int"},
          {"symmetric", grid.zero == Zero::symmetric},
          {"strategy", grouped  ? "group"
                       : tensor ? "tensor"
                                : "token"},
          {"group_size", grouped ? Json(grid.group) : Json(nullptr)},
          {"dynamic", !fixed},
          {"actorder", nullptr},
          {"block_structure", nullptr},
          {"observer", fixed ? Json("minmax") : Json(nullptr)},
          {"observer_kwargs", Json::object()}};
}

// What a group says of its modules.
struct GroupScheme {
  Scheme scheme;
  ActivationRanges ranges = ActivationRanges::dynamic;
  bool int_quantized = false;  // its own "format"; not all files have one
};

// A group without targets.
inline Json scheme_group(const Scheme& scheme, ActivationRanges ranges) {
  return {{"targets", Json::array()},
          {"format", "pack-quantized"},
          {"weights", weight_arguments(scheme.weight)},
          {"input_activations", activation_arguments(scheme.activation, ranges)},
          {"output_activations", nullptr}};
}

// Bits and zero point of one "weights" or "input_activations" object of a foreign file.
inline Result<Grid> parse_codes(const Json& arguments) {
  Grid grid;
  const Result<std::uint64_t> bits = json_unsigned(arguments, "num_bits");
  if (!bits) return bits.error();
  const Result<std::string_view> type = json_string(arguments, "type");
  if (!type) return type.error();
  if (*type != "int" || *bits < 2 || *bits > 8) {
    return Error{Errc::unsupported, "a number type that cbq does not read", "type", *type, "int of 2 to 8 bits"};
  }
  grid.bits = static_cast<int>(*bits);
  const Result<bool> symmetric = json_boolean(arguments, "symmetric");
  if (!symmetric) return symmetric.error();
  grid.zero = *symmetric ? Zero::symmetric : Zero::affine;
  if (const Json* order = json_find(arguments, "actorder"); order != nullptr && json_is(*order, "group")) {
    return Error{Errc::unsupported, "groups in activation order", "actorder", "group"};
  }
  return grid;
}

// The same with what shares a scale: a group, or what the strategy `whole` names.
inline Result<Grid> parse_arguments(const Json& arguments, std::string_view whole, Granularity granularity) {
  Result<Grid> grid = parse_codes(arguments);
  if (!grid) return grid;
  const Result<std::string_view> strategy = json_string(arguments, "strategy");
  if (!strategy) return strategy.error();
  grid->granularity = granularity;
  if (*strategy == whole) return grid;
  if (*strategy != "group") return Error{Errc::unsupported, "a strategy that cbq does not read", "strategy", *strategy};
  const Result<std::uint64_t> group = json_unsigned(arguments, "group_size");
  if (!group) return group.error();
  if (*group == 0 || *group > (std::uint64_t{1} << 24)) return wrong_config("not a group size", "group_size", *group);
  grid->granularity = Granularity::per_group;
  grid->group = static_cast<int>(*group);
  return grid;
}

// Whether "dynamic" is missing or `wanted`.
inline bool is_dynamic(const Json& arguments, bool wanted) {
  const Json* dynamic = json_find(arguments, "dynamic");
  return dynamic == nullptr || *dynamic == Json(wanted);
}

inline Result<GroupScheme> parse_activations(const Json& inputs, GroupScheme group) {
  const Json* strategy = json_find(inputs, "strategy");
  const bool tensor = strategy != nullptr && json_is(*strategy, "tensor");
  const bool fixed = tensor && is_dynamic(inputs, false);
  if (!fixed && !is_dynamic(inputs, true)) {
    return Error{Errc::unsupported, "static activations that are not per tensor", "input_activations.dynamic"};
  }
  const Result<Grid> activation = tensor ? parse_arguments(inputs, "tensor", Granularity::per_tensor)
                                         : parse_arguments(inputs, "token", Granularity::per_token);
  if (!activation) return in_context(activation.error(), "input_activations");
  const Scheme& scheme = group.scheme;
  if (activation->granularity == Granularity::per_group && *activation != with_activation_groups(scheme).activation) {
    return Error{Errc::unsupported, "groups of activations that are not the weights'", "input_activations",
                 ErrorText(activation->bits) << " bits in groups of " << activation->group,
                 ErrorText("8 bits, symmetric, in groups of ") << scheme.weight.group};
  }
  group.scheme.activation = *activation;
  if (fixed) group.ranges = ActivationRanges::fixed;
  return group;
}

inline Result<GroupScheme> parse_group(const Json& group) {
  const Json* weights = json_find(group, "weights");
  if (weights == nullptr) return wrong_config("a group without weights", "config_groups");
  GroupScheme parsed;
  if (const Json* format = json_find(group, "format"); format != nullptr && !format->is_null()) {
    parsed.int_quantized = json_is(*format, "int-quantized");
    if (!parsed.int_quantized && !json_is(*format, "pack-quantized")) {
      return Error{Errc::unsupported, "a compression format that cbq does not read", "format", format->dump(),
                   "pack-quantized or int-quantized"};
    }
  }
  if (!is_dynamic(*weights, false)) return Error{Errc::unsupported, "dynamic weights", "weights.dynamic"};
  const Result<Grid> weight = parse_arguments(*weights, "channel", Granularity::per_channel);
  if (!weight) return in_context(weight.error(), "weights");
  parsed.scheme.weight = *weight;
  const Json* inputs = json_find(group, "input_activations");
  if (inputs == nullptr || inputs->is_null()) return parsed;
  return parse_activations(*inputs, parsed);
}

// Which scheme each target of a file's groups has.
class GroupTargets {
 public:
  Status read(const Json& groups) {
    if (!groups.is_object())
      return wrong_config("the groups are no object", "config_groups", groups.type_name(), "object");
    for (const auto& [name, group] : groups.items()) {
      if (const Status added = add(group); !added) return in_context(added.error(), name);
    }
    std::sort(targets_.begin(), targets_.end(), [](const Target& a, const Target& b) { return a.first < b.first; });
    for (std::size_t i = 1; i < targets_.size(); ++i) {
      if (targets_[i].first == targets_[i - 1].first) {
        return wrong_config("the same target in two groups", "config_groups", targets_[i].first);
      }
    }
    return {};
  }

  // Names win over the class; nullptr when neither is there.
  [[nodiscard]] const GroupScheme* find(std::string_view module) const noexcept {
    const GroupScheme* named = find_target(module);
    return named != nullptr ? named : find_target("Linear");
  }

 private:
  using Target = std::pair<std::string, GroupScheme>;

  Status add(const Json& group) {
    const Result<GroupScheme> scheme = parse_group(group);
    if (!scheme) return scheme.error();
    const Json* targets = json_find(group, "targets");
    if (targets == nullptr || !targets->is_array()) return wrong_config("a group without a list of targets", "targets");
    for (const Json& target : *targets) {
      const std::string* name = target.get_ptr<const std::string*>();
      if (name == nullptr) return wrong_config("a target that is no text", "targets", target.type_name(), "text");
      if (name->starts_with("re:")) {
        return Error{Errc::unsupported, "a target given as a pattern", "targets", *name, "names of modules, or Linear"};
      }
      targets_.emplace_back(*name, *scheme);
    }
    return {};
  }

  [[nodiscard]] const GroupScheme* find_target(std::string_view name) const noexcept {
    const auto at = std::lower_bound(targets_.begin(), targets_.end(), name,
                                     [](const Target& target, std::string_view key) { return target.first < key; });
    return at != targets_.end() && at->first == name ? &at->second : nullptr;
  }

  std::vector<Target> targets_;
};

}  // namespace io_detail
}  // namespace CBQ_ABI
}  // namespace cbq
