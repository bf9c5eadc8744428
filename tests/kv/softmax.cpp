// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/softmax.hpp>

#include <algorithm>
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
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

TEST_CASE("Columns before the first that a row sees have no weight, whatever they hold") {
  constexpr std::size_t columns = 48;
  for (const Isa isa : support::machine_isas()) {
    for (const std::size_t valid : {0u, 16u, 40u, 48u}) {
      for (const std::size_t begin : {0u, 1u, 7u, 8u, 15u, 16u, 17u, 39u, 48u}) {
        CAPTURE(isa_name(isa), valid, begin);
        const std::size_t first = std::min(begin, valid);
        const auto raw = support::normal(columns, 5);
        std::vector<float> scores(columns, NAN), value(16, 1.0f);
        for (std::size_t j = first; j < valid; ++j) scores[j] = raw[j];
        float maximum = 0.25f, sum = 2.0f;  // of earlier positions
        softmax_block({.scores = scores.data(),
                       .stride = columns,
                       .rows = 1,
                       .columns = columns,
                       .valid = &valid,
                       .first = &first,
                       .scale = 3.0f,
                       .maxima = &maximum,
                       .sums = &sum,
                       .values = value.data(),
                       .value_stride = 16,
                       .value_columns = 16},
                      isa);
        double best = 0.25;
        for (std::size_t j = first; j < valid; ++j) best = std::fmax(best, static_cast<double>(raw[j]));
        double wanted = 2 * std::exp(3 * (0.25 - best));
        for (std::size_t j = 0; j < columns; ++j) {
          const bool seen = j >= first && j < valid;
          const double weight = seen ? std::exp(3 * (static_cast<double>(raw[j]) - best)) : 0;
          REQUIRE(std::fabs(static_cast<double>(scores[j]) - weight) <= 1e-6 * weight);
          wanted += weight;
        }
        CHECK(static_cast<double>(maximum) == best);
        CHECK(static_cast<double>(sum) == Catch::Approx(wanted).epsilon(2e-6));
      }
    }
  }
}
