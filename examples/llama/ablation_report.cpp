// SPDX-License-Identifier: Apache-2.0
#include "ablation_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <utility>

#include "commands.hpp"

namespace cbq_llama {

using cbq::Json;

namespace {

// Mean and standard deviation of what was measured.
struct Spread {
  std::size_t count = 0;
  double mean = 0;
  double deviation = 0;
};

using Figure = std::function<std::optional<double>(const Json&)>;

Spread spread_of(const AblationOutcome& outcome, const Figure& figure) {
  std::vector<double> values;
  for (const Json& run : outcome.runs) {
    if (const std::optional<double> value = figure(run)) values.push_back(*value);
  }
  Spread spread{.count = values.size()};
  for (const double value : values) spread.mean += value / static_cast<double>(values.size());
  if (values.size() < 2) return spread;
  double squares = 0;
  for (const double value : values) squares += (value - spread.mean) * (value - spread.mean);
  spread.deviation = std::sqrt(squares / static_cast<double>(values.size() - 1));
  return spread;
}

Figure member(const char* name) {
  return [name](const Json& run) -> std::optional<double> {
    const cbq::Result<double> value = cbq::json_number(run, name);
    return value ? std::optional<double>(*value) : std::nullopt;
  };
}

Figure of_text(std::size_t text, const char* name) {
  return [text, name](const Json& run) -> std::optional<double> {
    const Json* const texts = cbq::json_find(run, "texts");
    if (texts == nullptr || !texts->is_array() || texts->size() <= text) return std::nullopt;
    return member(name)((*texts)[text]);
  };
}

std::optional<double> mean_divergence(const Json& run) {
  const Json* const texts = cbq::json_find(run, "texts");
  if (texts == nullptr || !texts->is_array() || texts->empty()) return std::nullopt;
  double sum = 0;
  for (const Json& text : *texts) {
    const cbq::Result<double> value = cbq::json_number(text, "kl_mean");
    if (!value) return std::nullopt;
    sum += *value;
  }
  return sum / static_cast<double>(texts->size());
}

std::string text_name(const std::string& path) {
  const std::string name = base_name(path);
  return name.substr(0, name.rfind(".txt"));
}

std::string number_text(const Spread& spread, const char* format, double unit = 1) {
  if (spread.count == 0) return "-";
  char text[64] = {};
  (void)std::snprintf(text, sizeof text, format, spread.mean / unit);
  if (spread.count < 2) return text;
  std::string both = std::string(text) + " ± ";
  (void)std::snprintf(text, sizeof text, format, spread.deviation / unit);
  return both + text;
}

std::string table_row(const AblationOutcome& outcome, std::size_t texts) {
  std::string line = "| " + outcome.name;
  const auto cell = [&](const std::string& text) { line += " | " + text; };
  for (std::size_t i = 0; i < texts; ++i) {
    cell(number_text(spread_of(outcome, of_text(i, "perplexity")), "%.2f"));
    cell(number_text(spread_of(outcome, of_text(i, "kl_mean")), "%.4f"));
  }
  cell(number_text(spread_of(outcome, mean_divergence), "%.4f"));
  cell(number_text(spread_of(outcome, member("accuracy")), "%.1f %%", 0.01));
  cell(number_text(spread_of(outcome, member("bits_per_weight")), "%.3f"));
  cell(number_text(spread_of(outcome, member("kv_bytes_per_token")), "%.0f"));
  const Spread trained = spread_of(outcome, member("trained_parameters"));
  cell(trained.mean == 0 ? "-" : number_text({1, trained.mean, 0}, "%.0f"));
  const Spread seconds = spread_of(outcome, member("seconds"));
  cell(number_text({seconds.count == 0 ? 0u : 1u, seconds.mean, 0}, "%.1f"));
  const Spread memory = spread_of(outcome, member("peak_memory_bytes"));
  cell(memory.count == 0 ? "-" : size_text(static_cast<std::size_t>(memory.mean)));
  return line + " |\n";
}

}  // namespace

std::vector<std::string> text_names(const std::vector<AblationOutcome>& outcomes) {
  std::vector<std::string> names;
  for (const AblationOutcome& outcome : outcomes) {
    if (outcome.runs.empty()) continue;
    const Json* const texts = cbq::json_find(outcome.runs.front(), "texts");
    for (const Json& text : texts == nullptr ? Json::array() : *texts) {
      const auto path = cbq::json_string(text, "text");
      names.push_back(path ? text_name(std::string(*path)) : "?");
    }
    break;
  }
  return names;
}

std::vector<std::string> schemes_of(const std::vector<AblationOutcome>& outcomes) {
  std::vector<std::string> schemes;
  for (const AblationOutcome& outcome : outcomes) {
    if (outcome.scheme.empty()) continue;
    if (std::find(schemes.begin(), schemes.end(), outcome.scheme) == schemes.end()) schemes.push_back(outcome.scheme);
  }
  return schemes;
}

std::vector<AblationOutcome> gather(const std::vector<AblationRow>& rows, const std::vector<Json>& results) {
  std::vector<AblationOutcome> outcomes;
  for (std::size_t i = 0; i < rows.size() && i < results.size(); ++i) {
    if (results[i].is_null()) continue;
    const auto same = std::find_if(outcomes.begin(), outcomes.end(), [&](const AblationOutcome& outcome) {
      return outcome.name == rows[i].name && outcome.scheme == rows[i].scheme;
    });
    if (same != outcomes.end()) {
      same->runs.push_back(results[i]);
    } else {
      outcomes.push_back({rows[i].name, rows[i].scheme, {results[i]}});
    }
  }
  return outcomes;
}

std::string ablation_table(const std::vector<AblationOutcome>& outcomes) {
  const std::vector<std::string> texts = text_names(outcomes);
  std::string out;
  std::vector<std::string> schemes = schemes_of(outcomes);
  const bool as_is = std::any_of(outcomes.begin(), outcomes.end(), [](const AblationOutcome& outcome) {
    return outcome.scheme.empty() && outcome.name != float_row_name;
  });
  if (as_is) schemes.insert(schemes.begin(), "");
  for (const std::string& scheme : schemes) {
    out += (out.empty() ? "### " : "\n### ") + (scheme.empty() ? "the model as it is" : scheme) + "\n\n| row";
    for (const std::string& text : texts) out += " | perplexity, " + text + " | KL, " + text;
    out += " | mean KL | choices | bits | cache | trained | seconds | memory |\n|---";
    for (std::size_t i = 0; i < 2 * texts.size() + 7; ++i) out += "|---";
    out += "|\n";
    for (const AblationOutcome& outcome : outcomes) {
      if (outcome.name == float_row_name || outcome.scheme == scheme) out += table_row(outcome, texts.size());
    }
  }
  out +=
      "\nPerplexity and KL (nats per token, from the float model) of the packed model; choices: accuracy on "
      "multiple-choice items; bits per weight with scales and zero points, embedding and head; cache: bytes per token, "
      "of rows that name one; trained: parameters, of all blocks; seconds and peak memory of quantization; ±: standard "
      "deviation over seeds.\n";
  return out;
}

}  // namespace cbq_llama
