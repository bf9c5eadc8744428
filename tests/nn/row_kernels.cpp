// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/row_kernels.hpp>

#include <catch2/catch_all.hpp>
#include <cmath>
#include <limits>

#include "oracle/nn.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/nn.hpp"

using namespace cbq;

TEST_CASE("The gate equals its definition on every instruction set and for every length") {
  for (const Isa isa : support::machine_isas()) {
    for (const std::size_t size : {0u, 1u, 7u, 8u, 9u, 15u, 16u, 17u, 100u}) {
      CAPTURE(isa_name(isa), size);
      const auto gate = support::normal(size, 1, 10.0f);
      const auto up = support::normal(size, 2);
      // Inputs and result end where forbidden memory begins.
      const support::Guarded<float> gates(gate, support::Edge::end), ups(up, support::Edge::end);
      const support::Guarded<float> out(size, support::Edge::end);
      silu_multiply({.gate = gates.data(), .up = ups.data(), .out = out.data(), .size = size}, isa);
      for (std::size_t i = 0; i < size; ++i) {
        const double wanted = oracle::silu(static_cast<double>(gate[i])) * static_cast<double>(up[i]);
        CHECK(static_cast<double>(out.data()[i]) == Catch::Approx(wanted).epsilon(1e-6));
      }
    }
  }
}

TEST_CASE("The gate of extreme values") {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> gate = {-1e30f, -200.0f, -90.0f, -1e-30f, 0.0f, 1e-30f, 90.0f, 1e30f, NAN, infinity};
  const std::vector<float> up(gate.size(), 2.0f);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::vector<float> out(gate.size());
    silu_multiply({.gate = gate.data(), .up = up.data(), .out = out.data(), .size = gate.size()}, isa);
    for (std::size_t i = 1; i < 8; ++i) {
      const double wanted = 2 * oracle::silu(static_cast<double>(gate[i]));
      CHECK(std::fabs(static_cast<double>(out[i]) - wanted) <= 1e-6 * std::fabs(wanted) + 1e-34);
    }
    CHECK(std::isnan(out[8]));
    CHECK(out[9] == infinity);
  }
}

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
