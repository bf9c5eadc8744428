// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `cbq-llama ablate` runs, as data: a row is a name, a scheme, options of `cbq-llama quantize`, and options of
// `cbq-llama perplexity` with which the result is run. Baselines are methods by themselves; an ablation is a setting
// (the default of `--method cbq`, or the paper's) with one thing changed; `--settings agile` and `kv` are the rows of
// Agile-Quant and of key/value caches instead. To add one, add a line to a table in ablation_rows.cpp.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace cbq_llama {

/// Names with options of `quantize`, separated by blanks.
struct NamedOptions {
  const char* name;
  const char* options;
};

/// A change to a setting, or to one of them only, and of all schemes or some.
struct AblationChange {
  const char* name;
  const char* options;
  const char* setting = nullptr;  ///< nullptr: of every setting
  const char* part = nullptr;     ///< of the names of its schemes; nullptr: of every scheme
};

[[nodiscard]] std::span<const NamedOptions> ablation_baselines();
[[nodiscard]] std::span<const NamedOptions> ablation_settings();
[[nodiscard]] std::span<const AblationChange> ablation_changes();

/// The model itself, which the other rows are compared with.
inline constexpr const char* float_row_name = "float";

struct AblationRow {
  std::string name;    ///< "gptq", "paper/window_3_1"
  std::string scheme;  ///< empty: the model as it is
  std::vector<std::string> options;
  std::uint64_t seed = 0;
  std::vector<std::string> run = {};  ///< cache, attention, bits of tokens; empty: as it is
};

/// Which rows; what is empty means a selection of its own.
struct AblationSelection {
  std::vector<std::string> only = {};      ///< patterns of names, in which `*` stands for any text
  std::vector<std::string> schemes = {};   ///< of all rows; default: six for baselines, two for ablations
  std::vector<std::string> settings = {};  ///< whose ablations; default: all but "agile" and "kv", which stand alone
  std::size_t seeds = 1;                   ///< 0, 1, ... of rows that have one
};

/// The rows in the order in which they are run: by scheme, then as in the tables, then by seed.
[[nodiscard]] std::vector<AblationRow> ablation_rows(const AblationSelection& selection);

/// The parts of a text between blanks.
[[nodiscard]] std::vector<std::string> split_options(const std::string& options);

}  // namespace cbq_llama
