// SPDX-License-Identifier: Apache-2.0

// Recipes, for a command with an option of each kind.

#include "recipe.hpp"

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "targets.hpp"

namespace fuzz {

void recipe(Bytes bytes) {
  static const MemoryFile file;
  file.write(bytes);
  CLI::App app;
  std::string text, scheme;
  std::vector<std::string> texts;
  std::optional<double> number;
  std::size_t size = 0;
  int bits = 0;
  bool flag = false;
  app.add_option("--method", text)->check(CLI::IsMember({"rtn", "cbq"}));
  app.add_option("--scheme", scheme);
  app.add_option("--calibration", texts);
  app.add_option("--rate", number)->check(CLI::PositiveNumber);
  CLI::Option* steps = app.add_option("--steps", size);
  app.add_option("--epochs", bits)->check(CLI::Range(1, 100))->excludes(steps);
  app.add_flag("--explain", flag);
  std::vector<cbq_llama::SchemeRule> rules;
  (void)accepted(cbq_llama::apply_recipe(file.path(), app, rules));
}

}  // namespace fuzz
