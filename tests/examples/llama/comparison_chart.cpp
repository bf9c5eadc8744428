// SPDX-License-Identifier: Apache-2.0
#include "comparison_chart.hpp"

#include <catch2/catch_test_macros.hpp>

#include <string>

using namespace cbq_llama;

namespace {

// Opened and closed tags pair up; nothing but one root element.
bool well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = xml.find('<'); at != std::string::npos; at = xml.find('<', at + 1)) {
    const std::size_t end = xml.find('>', at);
    if (end == std::string::npos) return false;
    const std::string tag = xml.substr(at + 1, end - at - 1);
    if (tag.empty()) return false;
    if (tag.back() == '/') continue;
    if (tag.front() == '/') {
      if (open.empty() || open.back() != tag.substr(1)) return false;
      open.pop_back();
      continue;
    }
    open.push_back(tag.substr(0, tag.find(' ')));
  }
  return open.empty();
}

}  // namespace

TEST_CASE("a chart names every scheme and is well-formed, whatever the figures") {
  Chart chart;
  chart.title = "a <model> & more";
  chart.float_perplexity = 10;
  chart.float_megabytes = 6.4;
  chart.points = {{"w8a8", 8.05, 0.005, 10.1, 3.2},    {"w4a8_g128", 4.45, 0.12, 11, 1.8},
                  {"w4a16_g128", 4.45, 0.12, 11, 1.8}, {"w4a8_g32", 4.79, 0.1, 10.9, 1.9},
                  {"w2a16", 2.5, 40, 900, 1},          {"w16a16", 16, 0, 10, 6.4}};
  const std::string svg = draw(chart);
  CHECK(well_formed(svg));
  CHECK(svg.find("a &lt;model&gt; &amp; more") != std::string::npos);
  for (const ChartPoint& point : chart.points) CHECK(svg.find(">" + point.scheme + "<") != std::string::npos);
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(svg.find("inf\"") == std::string::npos);
  chart.points.resize(1);
  CHECK(well_formed(draw(chart)));
}
