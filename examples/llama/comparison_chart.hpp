// SPDX-License-Identifier: Apache-2.0
#pragma once

// The picture of `cbq-llama compare`: bits per weight against the divergence from the float model, and against the size
// of the file. Plain SVG without scripts or fonts; readable on light and dark pages.

#include <string>
#include <vector>

namespace cbq_llama {

/// One quantized model in the picture.
struct ChartPoint {
  std::string scheme;
  double bits_per_weight = 0;
  double divergence = 0;  ///< mean KL to the float model in nats per token, > 0
  double perplexity = 0;
  double file_megabytes = 0;
};

struct Chart {
  std::string title;
  std::string subtitle;
  std::vector<ChartPoint> points;
  double float_perplexity = 0;
  double float_megabytes = 0;
};

/// The chart as the text of an SVG file.
[[nodiscard]] std::string draw(const Chart& chart);

}  // namespace cbq_llama
