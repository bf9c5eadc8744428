// SPDX-License-Identifier: Apache-2.0
#include "comparison_chart.hpp"

#include <algorithm>
#include <cmath>

#include "svg.hpp"

namespace cbq_llama {

namespace {

constexpr double width = 920;
constexpr double height = 496;

// Activations in floating point and quantized ones look different.
bool float_activations(const std::string& scheme) {
  return scheme.find("a16") != std::string::npos;
}

void draw_marker(std::string& out, const std::string& scheme, double x, double y) {
  if (float_activations(scheme)) {
    append_format(out, "<circle class=\"float\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"/>\n", x, y);
  } else {
    append_format(out, "<rect class=\"integer marker\" x=\"%.1f\" y=\"%.1f\" width=\"9.5\" height=\"9.5\"/>\n",
                  x - 4.75, y - 4.75);
  }
}

struct Place {
  double x = 0;
  double y = 0;
};

struct Box {
  double left = 0;
  double right = 0;
  double top = 0;
  double bottom = 0;
  [[nodiscard]] bool meets(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

// Where a label may stand beside its point, best first: dx, dy of the text's near end, and on which side it lies.
struct LabelOffset {
  double dx = 0;
  double dy = 0;
  const char* anchor = "start";
};
constexpr LabelOffset label_offsets[] = {{9, 4, "start"},  {-9, 4, "end"},  {7, -9, "start"},  {-7, -9, "end"},
                                         {7, 17, "start"}, {-7, 17, "end"}, {7, -23, "start"}, {-7, -23, "end"},
                                         {7, 31, "start"}, {-7, 31, "end"}, {7, 45, "start"},  {-7, 45, "end"}};

Box label_box(const Place& point, const LabelOffset& offset, std::size_t characters) {
  const double length = 6.6 * static_cast<double>(characters);
  const double near = point.x + offset.dx;
  const bool left = offset.dx < 0;
  return {left ? near - length : near, left ? near : near + length, point.y + offset.dy - 10, point.y + offset.dy + 3};
}

// Each label takes the first offset at which it lies on no other label and on no marker.
void draw_labels(std::string& out, const std::vector<Place>& places, const Chart& chart, const Panel& panel) {
  std::vector<Box> taken;
  for (const Place& place : places) taken.push_back({place.x - 6, place.x + 6, place.y - 6, place.y + 6});
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::string& scheme = chart.points[i].scheme;
    const LabelOffset* chosen = label_offsets;
    for (const LabelOffset& offset : label_offsets) {
      const Box box = label_box(places[i], offset, scheme.size());
      const bool free = std::none_of(taken.begin(), taken.end(), [&](const Box& other) { return other.meets(box); });
      if (!free || box.left < panel.left || box.bottom > panel.bottom) continue;
      chosen = &offset;
      break;
    }
    taken.push_back(label_box(places[i], *chosen, scheme.size()));
    append_format(out, "<text class=\"point\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n",
                  places[i].x + chosen->dx, places[i].y + chosen->dy, chosen->anchor, xml_escaped(scheme).c_str());
  }
}

void draw_divergence(std::string& out, const Chart& chart, double x_limit) {
  Panel panel{.left = 76, .right = 470, .top = 106, .bottom = 412, .x_limit = x_limit};
  double low = 1e300;
  double high = 0;
  for (const ChartPoint& point : chart.points) {
    const double value = std::max(point.divergence, 1e-7);
    low = std::min(low, value);
    high = std::max(high, value);
  }
  panel.y_low = std::floor(std::log10(low));
  panel.y_high = std::max(std::ceil(std::log10(high)), panel.y_low + 1);
  for (double exponent = panel.y_low; exponent <= panel.y_high + 1e-9; exponent += 1) {
    append_format(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", panel.left, panel.y(exponent), panel.right);
    append_format(out, "<text class=\"number\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", panel.left - 8,
                  panel.y(exponent) + 4, std::pow(10.0, exponent));
  }
  draw_frame(out, panel, "bits per weight", "mean KL to the float model, nats per token (log)");
  draw_x_ticks(out, panel, 2);
  std::vector<Place> places;
  for (const ChartPoint& point : chart.points) {
    const double x = panel.x(point.bits_per_weight);
    const double y = panel.y(std::log10(std::max(point.divergence, 1e-7)));
    draw_marker(out, point.scheme, x, y);
    places.push_back({x, y});
  }
  draw_labels(out, places, chart, panel);
}

// Bars: the file sizes, with the perplexity written at their ends.
void draw_sizes(std::string& out, const Chart& chart) {
  Panel panel{.left = 650, .right = 850, .top = 106, .bottom = 412};
  double largest = chart.float_megabytes;
  for (const ChartPoint& point : chart.points) largest = std::max(largest, point.file_megabytes);
  const double magnitude = std::pow(10.0, std::floor(std::log10(largest)));
  double step = magnitude;
  for (const double factor : {0.2, 0.5, 1.0, 2.0}) {
    if (largest / (factor * magnitude) <= 5) {
      step = factor * magnitude;
      break;
    }
  }
  panel.x_limit = std::ceil(largest / step) * step;
  const std::size_t rows = chart.points.size() + 1;
  const double pitch = (panel.bottom - panel.top) / static_cast<double>(rows);
  const auto bar = [&](std::size_t index, const std::string& name, double megabytes, double perplexity) {
    const double y = panel.top + pitch * (static_cast<double>(index) + 0.5);
    const double thickness = std::min(16.0, 0.6 * pitch);
    const char* kind = index == 0 ? "reference" : float_activations(name) ? "float" : "integer";
    append_format(out, "<text class=\"point\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", panel.left - 8,
                  y + 4, xml_escaped(name).c_str());
    append_format(out, "<rect class=\"%s\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n", kind, panel.left,
                  y - thickness / 2, panel.x(megabytes) - panel.left, thickness);
    append_format(out, "<text class=\"number\" x=\"%.1f\" y=\"%.1f\">%.4g</text>\n", panel.x(megabytes) + 6, y + 4,
                  perplexity);
  };
  bar(0, "float", chart.float_megabytes, chart.float_perplexity);
  for (std::size_t i = 0; i < chart.points.size(); ++i) {
    const ChartPoint& point = chart.points[i];
    bar(i + 1, point.scheme, point.file_megabytes, point.perplexity);
  }
  draw_frame(out, panel, "file size, MB", "");
  append_format(out, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\">file size, and perplexity beside it</text>\n",
                panel.left - 120, panel.top - 14);
  draw_x_ticks(out, panel, step);
}

}  // namespace

std::string draw(const Chart& chart) {
  std::string out = open_svg({width, height}, chart.title, chart.subtitle);
  double most_bits = 8;
  for (const ChartPoint& point : chart.points) most_bits = std::max(most_bits, point.bits_per_weight);
  draw_divergence(out, chart, 2 * std::ceil(most_bits / 2 + 0.4));
  draw_sizes(out, chart);
  append_format(out, "<rect class=\"integer\" x=\"76\" y=\"%.1f\" width=\"9.5\" height=\"9.5\"/>\n", height - 25);
  append_format(out, "<text class=\"legend\" x=\"92\" y=\"%.1f\">activations quantized per token</text>\n",
                height - 16);
  append_format(out, "<circle class=\"float\" cx=\"306\" cy=\"%.1f\" r=\"5\"/>\n", height - 20);
  append_format(out, "<text class=\"legend\" x=\"317\" y=\"%.1f\">activations in floating point</text>\n", height - 16);
  out += "</svg>\n";
  return out;
}

}  // namespace cbq_llama
