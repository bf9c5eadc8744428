// SPDX-License-Identifier: Apache-2.0
#pragma once

// What `cbq-llama ablate` makes of its results: a Markdown table per scheme, means over seeds with their standard
// deviation, and plots.

#include <string>
#include <vector>

#include <cbq/io/json.hpp>

#include "ablation_rows.hpp"
#include "preprocessing.hpp"

namespace cbq_llama {

/// Results of the seeds of one row.
struct AblationOutcome {
  std::string name;
  std::string scheme;
  std::vector<cbq::Json> runs;
};

/// Puts results, those of `rows` in their order, together by name and scheme; null results are left out.
[[nodiscard]] std::vector<AblationOutcome> gather(const std::vector<AblationRow>& rows,
                                                  const std::vector<cbq::Json>& results);

/// Schemes in the order of their first row; the float model's is none.
[[nodiscard]] std::vector<std::string> schemes_of(const std::vector<AblationOutcome>& outcomes);

/// File names of the texts of the results, without folder and ".txt".
[[nodiscard]] std::vector<std::string> text_names(const std::vector<AblationOutcome>& outcomes);

/// Markdown. The float model's row heads every scheme's table.
[[nodiscard]] std::string ablation_table(const std::vector<AblationOutcome>& outcomes);

/// SVG: perplexity of every row on every text, by scheme, on a logarithmic axis.
[[nodiscard]] std::string perplexity_plot(const std::vector<AblationOutcome>& outcomes, const std::string& model);

/// SVG: the share of the starting loss that each window keeps, of the first rows with windows of each scheme; empty
/// without any.
[[nodiscard]] std::string window_plot(const std::vector<AblationOutcome>& outcomes, const std::string& model);

/// SVG: where channels of layers' inputs stand out, before and after CFP: a row per layer, magnitudes over the row's
/// median.
[[nodiscard]] std::string outlier_plot(const std::vector<ChannelSizes>& before, const std::vector<ChannelSizes>& after,
                                       const std::string& model);

}  // namespace cbq_llama
