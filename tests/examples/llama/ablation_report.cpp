// SPDX-License-Identifier: Apache-2.0
#include "ablation_report.hpp"

#include <catch2/catch_test_macros.hpp>

#include <limits>
#include <string>
#include <vector>

using namespace cbq_llama;
using cbq::Json;

namespace {

Json result(double perplexity, double divergence) {
  Json json = {{"texts",
                {{{"text", "/a/first.txt"}, {"perplexity", perplexity}, {"kl_mean", divergence}},
                 {{"text", "second"}, {"perplexity", 2 * perplexity}, {"kl_mean", 3 * divergence}}}},
               {"bits_per_weight", 2.5},
               {"seconds", 4.0},
               {"peak_memory_bytes", 23'800'000},
               {"trained_parameters", 1234},
               {"reconstruction", {{{"loss_before", 2.0}, {"loss_after", 1.0}}}}};
  return json;
}

std::vector<AblationOutcome> outcomes() {
  Json reference = result(10, 0);
  for (Json& text : reference["texts"]) text.erase("kl_mean");
  const std::vector<AblationRow> rows = {{"float", "", {}, 0},
                                         {"cbq", "w4a16", {}, 0},
                                         {"cbq", "w4a16", {}, 1},
                                         {"failed", "w4a16", {}, 0},
                                         {"<&>", "w4a4", {}, 0}};
  return gather(rows, {reference, result(11, 0.1), result(13, 0.2), nullptr, result(20, 0.5)});
}

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace

TEST_CASE("the table has means over seeds and their deviation, and no row that failed") {
  const std::string table = ablation_table(outcomes());
  CHECK(count(table, "### ") == 2);
  CHECK(count(table, "| float | 10.00 | - | 20.00 | - | - | - | 2.500 | - |") == 2);
  // Of 11 and 13: 12, sample deviation sqrt 2.
  CHECK(table.find("| cbq | 12.00 ± 1.41 | 0.1500 ± 0.0707 | 24.00 ± 2.83 | 0.4500 ± 0.2121 | 0.3000 ± 0.1414 | - | "
                   "2.500 ± 0.000 | - | 1234 | 4.0 | 23.8 MB |") != std::string::npos);
  CHECK(table.find("perplexity, first | KL, first | perplexity, second") != std::string::npos);
  CHECK(table.find("failed") == std::string::npos);
  CHECK(ablation_table({}).find('|') == std::string::npos);
}

TEST_CASE("rows of the model as it is have a table of their own, with the bytes of their caches") {
  std::vector<AblationOutcome> all = outcomes();
  Json cached = result(12, 0.3);
  cached["kv_bytes_per_token"] = 720;
  all.push_back({"kv/kv4", "", {cached}});
  const std::string table = ablation_table(all);
  CHECK(count(table, "### ") == 3);
  CHECK(count(table, "| float |") == 3);
  CHECK(count(table, "| kv/kv4 | 12.00 | 0.3000 | 24.00 | 0.9000 | 0.6000 | - | 2.500 | 720 |") == 1);
}

TEST_CASE("plots are SVG with every row, whatever the figures") {
  std::vector<AblationOutcome> all = outcomes();
  all.push_back({"broken", "w4a4", {result(std::numeric_limits<double>::quiet_NaN(), 0)}});
  all.push_back({"empty", "w4a4", {Json::object()}});
  for (const std::string& svg : {perplexity_plot(all, "a <model>"), window_plot(all, "a <model>")}) {
    CHECK(svg.starts_with("<svg"));
    CHECK(svg.ends_with("</svg>\n"));
    CHECK(svg.find("a &lt;model&gt;") != std::string::npos);
    CHECK(svg.find("&lt;&amp;&gt;") != std::string::npos);
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(count(svg, "<text") == count(svg, "</text>"));
  }
  CHECK(count(perplexity_plot(outcomes(), "m"), "<circle") == 2 + 3 * 2);  // two of the legend
  CHECK(window_plot({}, "m").empty());
  CHECK(perplexity_plot({}, "m").ends_with("</svg>\n"));
}

TEST_CASE("the outlier map shows channels that stand out, and no others") {
  std::vector<ChannelSizes> before = {{"q_proj", std::vector<float>(64, 1.0f)}, {"down_proj", {}}};
  before[0].magnitudes[3] = 40;
  before[0].magnitudes[9] = 1.9f;
  std::vector<ChannelSizes> after = before;
  after[0].magnitudes[3] = 1.5f;
  CHECK(count(outlier_plot(before, after, "m"), "<rect") == 1);
  CHECK(outlier_plot(before, after, "m").find(">q_proj<") != std::string::npos);
  CHECK(outlier_plot({}, {}, "m").ends_with("</svg>\n"));
}
