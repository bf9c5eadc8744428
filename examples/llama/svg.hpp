// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pieces of plots: SVG without scripts, fonts or background, readable on light and dark pages. Coordinates are pixels,
// y downwards. Classes of the style sheet: `title`, `subtitle`, `label`, `legend`, `point` and `number` for text,
// `axis`, `tick` and `grid` for lines, `reference`, `float` and `integer` for filled shapes, `series0` .. `series7` for
// lines and markers of several series.

#include <cstddef>
#include <string>

namespace cbq_llama {

struct SvgSize {
  double width = 0;
  double height = 0;
};

/// Number of the classes `series0`, `series1`, ...
inline constexpr std::size_t svg_series = 8;

/// A rectangle with a linear x axis from 0 and a linear y axis, upwards.
struct Panel {
  double left = 0;
  double right = 0;
  double top = 0;
  double bottom = 0;
  double x_limit = 1;
  double y_low = 0;
  double y_high = 1;

  [[nodiscard]] double x(double value) const { return left + (right - left) * value / x_limit; }
  [[nodiscard]] double y(double value) const { return bottom - (bottom - top) * (value - y_low) / (y_high - y_low); }
};

/// Appends formatted text, at most 511 characters.
[[gnu::format(printf, 2, 3)]] void append_format(std::string& out, const char* format, ...);

/// Text as XML has it.
[[nodiscard]] std::string xml_escaped(const std::string& text);

/// The document up to its title and subtitle; "</svg>\n" ends it.
[[nodiscard]] std::string open_svg(const SvgSize& size, const std::string& title, const std::string& subtitle);

/// Left and lower edge with a title below and one above.
void draw_frame(std::string& out, const Panel& panel, const char* x_title, const char* y_title);

/// Numbers below the lower edge: 0, step, 2 step, ...
void draw_x_ticks(std::string& out, const Panel& panel, double step);

}  // namespace cbq_llama
