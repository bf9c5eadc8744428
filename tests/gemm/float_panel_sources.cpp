// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/float_panel_sources.hpp>

#include <bit>
#include <cmath>
#include <vector>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

bool same(float left, float right) {
  return std::isnan(left) ? std::isnan(right)
                          : std::bit_cast<std::uint32_t>(left) == std::bit_cast<std::uint32_t>(right);
}

}  // namespace

TEMPLATE_TEST_CASE("All 65536 codes become the float of to_float", "", half, bfloat16) {
  const std::size_t inputs = (1u << 16) / 16;
  const support::Guarded<TestType> panel(inputs * 16, support::Edge::end);
  for (std::size_t i = 0; i < panel.size(); ++i) panel.data()[i].bits = static_cast<std::uint16_t>(i);
  const FloatPanelsView<TestType> view{panel.data(), 16, inputs};
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::size_t wrong = 0;
    for (std::size_t first = 0; first < inputs; first += 256) {
      const support::Guarded<float> scratch(256 * 16, support::Edge::end);
      const float* decoded =
          float_panel(view, PanelBlock{.panel = 0, .first = first, .count = 256}, scratch.data(), isa);
      for (std::size_t i = 0; i < 256 * 16; ++i) {
        if (!same(decoded[i], to_float(panel.data()[first * 16 + i]))) ++wrong;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("Unpacked operands give panels with zeros beyond the last output and read nothing outside") {
  const std::size_t outputs = GENERATE(std::size_t{1}, std::size_t{15}, std::size_t{16}, std::size_t{33});
  const std::size_t inputs =
      GENERATE(std::size_t{1}, std::size_t{15}, std::size_t{16}, std::size_t{17}, std::size_t{53});
  const std::size_t extra = GENERATE(std::size_t{0}, std::size_t{3});
  const support::Edge edge = GENERATE(support::Edge::start, support::Edge::end);
  CAPTURE(outputs, inputs, extra);
  const support::Guarded<float> by_output((outputs - 1) * (inputs + extra) + inputs, edge);
  const support::Guarded<float> by_input((inputs - 1) * (outputs + extra) + outputs, edge);
  for (float& value : by_output.span()) value = -1.0f;
  for (float& value : by_input.span()) value = -1.0f;
  for (std::size_t n = 0; n < outputs; ++n) {
    for (std::size_t k = 0; k < inputs; ++k) {
      by_output.data()[n * (inputs + extra) + k] = by_input.data()[k * (outputs + extra) + n] =
          static_cast<float>(n * 1000 + k + 1);
    }
  }
  const TransposedOperand as_weights = transposed({by_output.data(), outputs, inputs, inputs + extra});
  const RowMajorOperand as_values = row_major({by_input.data(), inputs, outputs, outputs + extra});
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::size_t wrong = 0;
    for (std::size_t panel = 0; panel < (outputs + 15) / 16; ++panel) {
      for (const std::size_t first : {std::size_t{0}, inputs / 2}) {
        const PanelBlock block{.panel = panel, .first = first, .count = inputs - first};
        const support::Guarded<float> scratch(block.count * 16, support::Edge::end);
        const support::Guarded<float> other(block.count * 16, support::Edge::end);
        const float* left = float_panel(as_weights, block, scratch.data(), isa);
        const float* right = float_panel(as_values, block, other.data(), isa);
        for (std::size_t i = 0; i < block.count * 16; ++i) {
          const std::size_t n = panel * 16 + i % 16;
          const float wanted = n < outputs ? static_cast<float>(n * 1000 + first + i / 16 + 1) : 0.0f;
          if (!same(left[i], wanted) || !same(right[i], wanted)) ++wrong;
        }
      }
    }
    CHECK(wrong == 0);
  }
}
