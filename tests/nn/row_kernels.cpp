// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/row_kernels.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
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
