// SPDX-License-Identifier: Apache-2.0
#pragma once

// Recipes: the options of a command in a JSON file, under their long names without dashes, and a list that gives single
// layers schemes of their own.

#include <string>
#include <vector>

#include <cbq/core/result.hpp>

#include "quantization.hpp"

namespace CLI {
class App;
}

namespace cbq_llama {

/// Gives the options of `app` that the command line did not name the values of the file, checked like those of a
/// command line, and appends what its list "schemes" says to `rules`. Errc::io; Errc::bad_file naming key and file for
/// what is no such object, unknown keys, values of the wrong type or that an option refuses; files above 1 MB.
[[nodiscard]] cbq::Status apply_recipe(const std::string& path, CLI::App& app, std::vector<SchemeRule>& rules);

}  // namespace cbq_llama
