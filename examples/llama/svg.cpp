// SPDX-License-Identifier: Apache-2.0
#include "svg.hpp"

#include <cstdarg>
#include <cstdio>

namespace cbq_llama {

void append_format(std::string& out, const char* format, ...) {
  char text[512] = {};
  std::va_list arguments;
  va_start(arguments, format);
  (void)std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  out += text;
}

std::string xml_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string open_svg(const SvgSize& size, const std::string& title, const std::string& subtitle) {
  std::string out;
  append_format(out,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" "
                "font-family=\"system-ui, sans-serif\">\n",
                size.width, size.height, size.width, size.height);
  // Mid tones and no background: they stand out on white and on black alike.
  out +=
      "<style>\n"
      "text { fill: #444 } .title { font-size: 17px; font-weight: 600 } .number { font-size: 11px }\n"
      ".label, .legend, .subtitle { font-size: 12px } .point { font-size: 11.5px }\n"
      "circle, .marker { stroke: #fff; stroke-width: 1 }\n"
      ".axis, .tick { stroke: #888; fill: none } .grid { stroke: #8885; stroke-dasharray: 2 3 }\n"
      ".float { fill: #d97706 } .integer { fill: #2f7fd1 } .reference { fill: #8a8a8a }\n";
  constexpr const char* colours[svg_series] = {"#2f7fd1", "#d97706", "#3f9d5a", "#c0435a",
                                               "#8a63c9", "#2a9d9d", "#a07c28", "#8a8a8a"};
  for (std::size_t i = 0; i < svg_series; ++i) {
    append_format(out, ".series%zu { fill: %s } path.series%zu { fill: none; stroke: %s; stroke-width: 1.6 }\n", i,
                  colours[i], i, colours[i]);
  }
  out +=
      "@media (prefers-color-scheme: dark) { text { fill: #ccc } }\n"
      "</style>\n";
  out += "<text class=\"title\" x=\"32\" y=\"30\">" + xml_escaped(title) + "</text>\n";
  out += "<text class=\"subtitle\" x=\"32\" y=\"50\">" + xml_escaped(subtitle) + "</text>\n";
  return out;
}

void draw_frame(std::string& out, const Panel& panel, const char* x_title, const char* y_title) {
  append_format(out, "<path class=\"axis\" d=\"M%.1f %.1fV%.1fH%.1f\"/>\n", panel.left, panel.top, panel.bottom,
                panel.right);
  append_format(out, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
                (panel.left + panel.right) / 2, panel.bottom + 40, x_title);
  append_format(out, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", panel.left - 44, panel.top - 14,
                y_title);
}

void draw_x_ticks(std::string& out, const Panel& panel, double step) {
  for (double value = 0; value <= panel.x_limit + 1e-9; value += step) {
    append_format(out, "<path class=\"tick\" d=\"M%.1f %.1fv5\"/>\n", panel.x(value), panel.bottom);
    append_format(out, "<text class=\"number\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%g</text>\n",
                  panel.x(value), panel.bottom + 19, value);
  }
}

}  // namespace cbq_llama
