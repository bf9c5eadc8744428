// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/softmax.hpp>

#include <catch2/catch_all.hpp>
#include <cmath>
#include <limits>

#include "support/isas.hpp"
#include "support/nn.hpp"

using namespace cbq;

TEST_CASE("Softmax over several blocks equals its definition, whatever lies behind the valid columns") {
  constexpr std::size_t columns = 48, rows = 4, width = 32, blocks = 3;
  const std::size_t total[rows] = {1, 50, 96, 131};  // columns each row sees in all blocks together
  const auto raw = support::normal(rows * columns * blocks, 3, 40.0f);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    float maxima[rows], sums[rows] = {};
    std::fill(maxima, maxima + rows, -std::numeric_limits<float>::infinity());
    std::vector<float> values(rows * width, 0.0f);
    std::vector<float> weights(rows * columns * blocks), scales(rows * blocks);
    for (std::size_t b = 0; b < blocks; ++b) {
      std::vector<float> scores(rows * columns);
      std::size_t valid[rows];
      for (std::size_t r = 0; r < rows; ++r) {
        valid[r] = total[r] <= b * columns ? 0 : std::min(columns, total[r] - b * columns);
        for (std::size_t j = 0; j < columns; ++j) {
          scores[r * columns + j] = j < valid[r] ? raw[(r * blocks + b) * columns + j] : NAN;
        }
      }
      softmax_block({.scores = scores.data(),
                     .stride = columns,
                     .rows = rows,
                     .columns = columns,
                     .valid = valid,
                     .scale = 0.5f,
                     .maxima = maxima,
                     .sums = sums,
                     .values = values.data(),
                     .value_stride = width,
                     .value_columns = width},
                    isa);
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t j = valid[r]; j < columns; ++j) REQUIRE(scores[r * columns + j] == 0.0f);
        // Sum of the weights themselves: what values of 1 would give.
        for (std::size_t i = 0; i < width; ++i) {
          for (std::size_t j = 0; j < columns; ++j) {
            values[r * width + i] += scores[r * columns + j] * static_cast<float>(j % (i + 1));
          }
        }
      }
    }
    for (std::size_t r = 0; r < rows; ++r) {
      double best = -INFINITY, sum = 0;
      for (std::size_t j = 0; j < total[r]; ++j) {
        best = std::fmax(best, static_cast<double>(raw[r * blocks * columns + j]) * 0.5);
      }
      std::vector<double> wanted(width);
      for (std::size_t j = 0; j < total[r]; ++j) {
        const double p = std::exp(static_cast<double>(raw[r * blocks * columns + j]) * 0.5 - best);
        sum += p;
        for (std::size_t i = 0; i < width; ++i) wanted[i] += p * static_cast<double>(j % columns % (i + 1));
      }
      CAPTURE(r);
      CHECK(static_cast<double>(maxima[r]) * 0.5 == best);
      CHECK(static_cast<double>(sums[r]) == Catch::Approx(sum).epsilon(3e-6));
      for (std::size_t i = 0; i < width; ++i) {
        CHECK(static_cast<double>(values[r * width + i]) == Catch::Approx(wanted[i]).epsilon(1e-5).margin(1e-6));
      }
    }
  }
}
