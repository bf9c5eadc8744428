// SPDX-License-Identifier: Apache-2.0
#include "target_patterns.hpp"

#include <map>
#include <set>
#include <string>
#include <utility>

#include "unicode.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Json;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::string_view regex_prefix = "re:";
// Files have one or a few for each group; each is tried on every module.
constexpr std::size_t most_patterns = 256;

bool is_pattern(const Json& target) {
  const std::string* text = target.get_ptr<const std::string*>();
  return text != nullptr && text->starts_with(regex_prefix);
}

// The lists of targets by the names of their groups.
std::map<std::string, Json*> lists_of_targets(Json& config) {
  std::map<std::string, Json*> lists;
  Json* at = &config;
  for (const char* key : {"quantization_config", "config_groups"}) {
    if (!at->is_object() || !at->contains(key)) return lists;
    at = &(*at)[key];
  }
  if (!at->is_object()) return lists;
  for (auto& [name, group] : at->items()) {
    if (group.is_object() && group.contains("targets") && group["targets"].is_array()) {
      lists.emplace(name, &group["targets"]);
    }
  }
  return lists;
}

Error at_group(Error error, const std::string& group) {
  return cbq::in_context(cbq::in_context(std::move(error), group), "config_groups");
}

// Which of `modules` a pattern matches.
Result<std::vector<std::string_view>> matched(const std::string& pattern, std::span<const std::string_view> modules) {
  const Result<Regex> expression = Regex::compile(std::string_view(pattern).substr(regex_prefix.size()));
  if (!expression) return expression.error();
  std::vector<std::string_view> names;
  for (const std::string_view module : modules) {
    const Result<bool> found = expression->matches_start(module);
    if (!found) {
      return Error{Errc::unsupported, "a pattern that cannot be tried on a module", pattern, module, "fewer steps"};
    }
    if (*found) names.push_back(module);
  }
  return names;
}

}  // namespace

Status resolve_target_patterns(Json& config, std::span<const std::string_view> modules) {
  std::set<std::string, std::less<>> named;
  std::size_t patterns = 0;
  const std::map<std::string, Json*> lists = lists_of_targets(config);
  for (const auto& [group, targets] : lists) {
    for (const Json& target : *targets) {
      if (is_pattern(target)) {
        ++patterns;
      } else if (target.is_string()) {
        named.insert(target.get<std::string>());
      }
    }
  }
  if (patterns == 0) return {};
  if (patterns > most_patterns) {
    return Error{Errc::unsupported, "too many patterns among the targets", "config_groups", patterns, most_patterns};
  }
  std::map<std::string_view, std::string_view> groups;  // of modules that a pattern matched
  for (const auto& [group, targets] : lists) {
    Json resolved = Json::array();
    for (const Json& target : *targets) {
      if (!is_pattern(target)) {
        resolved.push_back(target);
        continue;
      }
      const std::string& pattern = target.get_ref<const std::string&>();
      const Result<std::vector<std::string_view>> names = matched(pattern, modules);
      if (!names) return at_group(names.error(), group);
      for (const std::string_view name : *names) {
        if (named.contains(name)) continue;
        const auto [at, added] = groups.emplace(name, group);
        if (added) resolved.push_back(name);
        if (at->second == group) continue;
        return at_group({Errc::bad_file, "patterns of two groups match one module", pattern, name, at->second}, group);
      }
    }
    *targets = std::move(resolved);
  }
  return {};
}

}  // namespace cbq_llama
