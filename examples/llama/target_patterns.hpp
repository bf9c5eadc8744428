// SPDX-License-Identifier: Apache-2.0
#pragma once

// compressed-tensors lets the targets of a group be patterns, "re:EXPRESSION", which match names of modules where they
// begin. The library's parsers know names only, so patterns become the names that they match.

#include <span>
#include <string_view>

#include <cbq/core/result.hpp>
#include <cbq/io/json.hpp>

namespace cbq_llama {

/// Puts names of `modules`, those that are stored as codes, in place of the patterns among the targets of a
/// config.json. A module that a group names belongs to that group, whatever patterns match it. What is no list of
/// targets is left to the parser. Errc::bad_file: an expression that does not compile, patterns of two groups that
/// match one module. Errc::unsupported: more than 256 patterns, an expression that takes too many steps.
[[nodiscard]] cbq::Status resolve_target_patterns(cbq::Json& config, std::span<const std::string_view> modules);

}  // namespace cbq_llama
