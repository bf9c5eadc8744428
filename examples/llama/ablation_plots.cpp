// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "ablation_report.hpp"
#include "svg.hpp"

namespace cbq_llama {

using cbq::Json;

namespace {

constexpr double row_height = 17;

// Numbers `key` of a list of objects `list` in a result.
std::vector<double> numbers(const Json& run, const char* list, const char* key) {
  std::vector<double> values;
  const Json* const entries = cbq::json_find(run, list);
  if (entries == nullptr || !entries->is_array()) return values;
  for (const Json& entry : *entries) {
    const cbq::Result<double> value = cbq::json_number(entry, key);
    values.push_back(value ? *value : std::nan(""));
  }
  return values;
}

// Means over runs, element by element.
std::vector<double> mean_numbers(const AblationOutcome& outcome, const char* list, const char* key) {
  std::vector<double> sum;
  for (const Json& run : outcome.runs) {
    const std::vector<double> values = numbers(run, list, key);
    sum.resize(std::max(sum.size(), values.size()), 0);
    for (std::size_t i = 0; i < values.size(); ++i) sum[i] += values[i] / static_cast<double>(outcome.runs.size());
  }
  return sum;
}

void draw_legend(std::string& out, double x, double y, const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    append_format(out, "<circle class=\"series%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"/>\n", i % svg_series, x, y - 4);
    out += "<text class=\"legend\" x=\"" + std::to_string(x + 10) + "\" y=\"" + std::to_string(y) + "\">" +
           xml_escaped(names[i]) + "</text>\n";
    x += 34 + 6.6 * static_cast<double>(names[i].size());
  }
}

// Vertical lines at 1, 2, 5, 10, ... with numbers below.
void draw_logarithmic_ticks(std::string& out, const Panel& panel, double low, double high) {
  for (double decade = std::pow(10.0, std::floor(low)); decade <= std::pow(10.0, high); decade *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double at = std::log10(factor * decade);
      if (at < low - 1e-9 || at > high + 1e-9) continue;
      append_format(out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", panel.x(at - low), panel.top, panel.bottom);
      append_format(out, "<text class=\"number\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%g</text>\n",
                    panel.x(at - low), panel.bottom + 15, factor * decade);
    }
  }
}

// A line of the perplexity plot: a scheme's name, or an outcome.
struct PerplexityLine {
  std::string title;
  std::vector<double> perplexities;
};

std::vector<PerplexityLine> perplexity_lines(const std::vector<AblationOutcome>& outcomes) {
  std::vector<PerplexityLine> lines;
  const auto add = [&](const AblationOutcome& outcome) {
    lines.push_back({outcome.name, mean_numbers(outcome, "texts", "perplexity")});
  };
  for (const AblationOutcome& outcome : outcomes) {
    if (outcome.scheme.empty()) add(outcome);
  }
  for (const std::string& scheme : schemes_of(outcomes)) {
    lines.push_back({scheme, {}});
    for (const AblationOutcome& outcome : outcomes) {
      if (outcome.scheme == scheme) add(outcome);
    }
  }
  return lines;
}

std::string text_at(double x, double y, const char* attributes, const std::string& text) {
  std::string out;
  append_format(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, attributes);
  return out + xml_escaped(text) + "</text>\n";
}

}  // namespace

std::string perplexity_plot(const std::vector<AblationOutcome>& outcomes, const std::string& model) {
  const std::vector<PerplexityLine> lines = perplexity_lines(outcomes);
  double low = 1e300;
  double high = 0;
  for (const PerplexityLine& line : lines) {
    for (const double value : line.perplexities) {
      if (!(value > 0) || !std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  if (high == 0) low = high = 1;
  low = std::log10(low) - 0.03;
  high = std::max(std::log10(high), low + 0.1) + 0.03;
  Panel panel{.left = 230, .right = 880, .top = 84, .bottom = 0, .x_limit = high - low};
  panel.bottom = panel.top + row_height * static_cast<double>(lines.size());
  std::string out =
      open_svg({920, panel.bottom + 44}, model + ": perplexity by method", "of the packed model; logarithmic");
  draw_legend(out, panel.left, 70, text_names(outcomes));
  draw_logarithmic_ticks(out, panel, low, high);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const double y = panel.top + row_height * (static_cast<double>(i) + 0.5);
    const bool heading = lines[i].perplexities.empty();
    out += text_at(heading ? 32 : panel.left - 8, y + 4,
                   heading ? "class=\"label\" font-weight=\"600\"" : "class=\"point\" text-anchor=\"end\"",
                   lines[i].title);
    for (std::size_t text = 0; text < lines[i].perplexities.size(); ++text) {
      const double value = lines[i].perplexities[text];
      if (!(value > 0) || !std::isfinite(value)) continue;
      append_format(out, "<circle class=\"series%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"/>\n", text % svg_series,
                    panel.x(std::log10(value) - low), y);
    }
  }
  return out + "</svg>\n";
}

namespace {

// Rows of one scheme that trained windows, as many as there are colours.
std::vector<const AblationOutcome*> with_windows(const std::vector<AblationOutcome>& outcomes,
                                                 const std::string& scheme) {
  std::vector<const AblationOutcome*> found;
  for (const AblationOutcome& outcome : outcomes) {
    if (outcome.scheme != scheme || found.size() == svg_series) continue;
    if (!mean_numbers(outcome, "reconstruction", "loss_after").empty()) found.push_back(&outcome);
  }
  return found;
}

void draw_window_lines(std::string& out, const Panel& panel, const std::vector<const AblationOutcome*>& rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::vector<double> before = mean_numbers(*rows[i], "reconstruction", "loss_before");
    const std::vector<double> after = mean_numbers(*rows[i], "reconstruction", "loss_after");
    std::string path;
    for (std::size_t w = 0; w < after.size(); ++w) {
      const double share = before[w] > 0 ? std::min(after[w] / before[w], 1.0) : 1.0;
      const double x = panel.x(static_cast<double>(w)), y = panel.y(std::isfinite(share) ? share : 1.0);
      append_format(path, "%s%.1f %.1f", w == 0 ? "M" : "L", x, y);
      append_format(out, "<circle class=\"series%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"/>\n", i, x, y);
    }
    append_format(out, "<path class=\"series%zu\" d=\"", i);
    out += path + "\"/>\n";
    out += text_at(panel.right + 26, panel.top + 10 + 16 * static_cast<double>(i), "class=\"legend\"", rows[i]->name);
    append_format(out, "<circle class=\"series%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\"/>\n", i, panel.right + 16,
                  panel.top + 6 + 16 * static_cast<double>(i));
  }
}

}  // namespace

std::string window_plot(const std::vector<AblationOutcome>& outcomes, const std::string& model) {
  constexpr double pitch = 216;
  std::string body;
  double top = 96;
  for (const std::string& scheme : schemes_of(outcomes)) {
    const std::vector<const AblationOutcome*> rows = with_windows(outcomes, scheme);
    if (rows.empty()) continue;
    std::size_t windows = 2;
    for (const AblationOutcome* row : rows) {
      windows = std::max(windows, mean_numbers(*row, "reconstruction", "loss_after").size());
    }
    const Panel panel{
        .left = 76, .right = 660, .top = top, .bottom = top + 130, .x_limit = static_cast<double>(windows - 1)};
    for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      append_format(body, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", panel.left, panel.y(share), panel.right);
      append_format(body, "<text class=\"number\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                    panel.left - 8, panel.y(share) + 4, share);
    }
    draw_frame(body, panel, "window", scheme.c_str());
    draw_x_ticks(body, panel, std::ceil(static_cast<double>(windows - 1) / 12));
    draw_window_lines(body, panel, rows);
    top += pitch;
  }
  if (body.empty()) return {};
  return open_svg({920, top - 20}, model + ": loss per window",
                  "share that training leaves of the loss before it, with hard codes") +
         body + "</svg>\n";
}

namespace {

// Channels at least twice the row's median, darker the farther they stand out; bins of channels where there are many.
void draw_outliers(std::string& out, const Panel& panel, const std::vector<ChannelSizes>& rows, const char* title) {
  constexpr std::size_t most_bins = 160;
  draw_frame(out, panel, "channel", title);
  const double height = (panel.bottom - panel.top) / static_cast<double>(std::max<std::size_t>(1, rows.size()));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::vector<float> sorted = rows[r].magnitudes;
    if (sorted.empty()) continue;
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2), sorted.end());
    const double median = std::max(1e-30, static_cast<double>(sorted[sorted.size() / 2]));
    const std::size_t bins = std::min(most_bins, sorted.size());
    const double y = panel.top + height * static_cast<double>(r);
    for (std::size_t bin = 0; bin < bins; ++bin) {
      const std::size_t first = bin * sorted.size() / bins, last = (bin + 1) * sorted.size() / bins;
      double most = 0;
      for (std::size_t c = first; c < last; ++c) most = std::max(most, static_cast<double>(rows[r].magnitudes[c]));
      const double doublings = std::log2(most / median);
      if (!(doublings >= 1)) continue;
      append_format(
          out, "<rect class=\"integer\" x=\"%.1f\" y=\"%.1f\" width=\"%.2f\" height=\"%.2f\" opacity=\"%.2f\"/>\n",
          panel.left + (panel.right - panel.left) * static_cast<double>(bin) / static_cast<double>(bins), y,
          (panel.right - panel.left) / static_cast<double>(bins), 0.85 * height, std::min(1.0, doublings / 5));
    }
  }
}

}  // namespace

std::string outlier_plot(const std::vector<ChannelSizes>& before, const std::vector<ChannelSizes>& after,
                         const std::string& model) {
  const double height = std::max(40.0, 14 * static_cast<double>(before.size()));
  Panel left{.left = 230, .right = 550, .top = 96, .bottom = 96 + height};
  Panel right{.left = 570, .right = 890, .top = 96, .bottom = 96 + height};
  std::string out =
      open_svg({920, left.bottom + 56}, model + ": outlier channels before and after CFP",
               "largest magnitude of what each layer reads, over the median of its channels: 2 pale, 32 and more dark");
  draw_outliers(out, left, before, "before");
  draw_outliers(out, right, after, "after");
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double y = left.top + height * (static_cast<double>(i) + 0.75) / static_cast<double>(before.size());
    out += text_at(left.left - 8, y, "class=\"number\" text-anchor=\"end\"", before[i].module);
  }
  return out + "</svg>\n";
}

}  // namespace cbq_llama
