// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/fixed_point_row.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <cbq/gemm/dispatch.hpp>

#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

/// The scalar converter and those of this machine.
std::vector<FixedPointConverter> converters() {
  std::vector<FixedPointConverter> all = {&isa::scalar::to_fixed_point};
  for (const Isa isa : support::machine_isas()) {
    const auto convert = RegionKernels::weight_only_tile<4, Zero::symmetric>(isa).to_fixed_point;
    if (convert != nullptr) all.push_back(convert);
  }
  return all;
}

/// Values of many magnitudes; some blocks are all tiny, all huge, or at the border of rounding up to the next exponent.
std::vector<float> values(std::size_t count, int kind, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& value : x) {
    const int spread = static_cast<int>(random() % 30) - 20;
    switch (kind) {
      case 0:
        value = std::ldexp(normal(random), spread);
        break;
      case 1:
        value = std::ldexp(normal(random), spread - 110);
        break;
      case 2:
        value = std::ldexp(1.0f - 0x1p-24f, 128) * (random() % 2 == 0 ? 1.0f : -1.0f);
        break;
      default:
        value = (1.984375f + static_cast<float>(static_cast<int>(random() % 5) - 2) * 0x1p-23f) *
                (random() % 2 == 0 ? 1.0f : -1.0f);
        break;
    }
  }
  return x;
}

double value_of(const FixedBlock& block, std::size_t inside) {
  double digits = 0.0;
  for (std::size_t d = row_digits; d-- > 0;)
    digits = digits * 256.0 + block.digits[inside / step_inputs][d][inside % step_inputs];
  return digits * static_cast<double>(block.scale);
}

}  // namespace

TEST_CASE("Rows in fixed point are the values but for the stated error, the same on every instruction set") {
  std::mt19937 random(3);
  constexpr std::int32_t zero_factor = 8;
  for (const std::size_t inputs : {0u, 1u, 7u, 15u, 16u, 17u, 31u, 32u, 33u, 64u, 77u}) {
    for (const int kind : {0, 1, 2, 3}) {
      CAPTURE(inputs, kind);
      const std::vector<float> x = values(inputs, kind, random);
      const support::Guarded<float> guarded(std::span<const float>(x), support::Edge::end);
      const std::size_t blocks = (inputs + 31) / 32;
      std::vector<FixedBlock> first;
      for (const FixedPointConverter convert : converters()) {
        const support::Guarded<FixedBlock> out(blocks, support::Edge::end);
        REQUIRE(
            convert({.values = guarded.data(), .inputs = inputs, .zero_factor = zero_factor, .blocks = out.data()}));
        if (first.empty()) first.assign(out.data(), out.data() + blocks);
        CHECK((blocks == 0 || std::memcmp(first.data(), out.data(), blocks * sizeof(FixedBlock)) == 0));
      }
      for (std::size_t b = 0; b < blocks; ++b) {
        double largest = 0.0;
        double worst = 0.0;
        std::int32_t sums[row_digits] = {};
        for (std::size_t i = 0; i < 32; ++i) {
          const double wanted = b * 32 + i < inputs ? static_cast<double>(x[b * 32 + i]) : 0.0;
          largest = std::max(largest, std::abs(wanted));
          worst = std::max(worst, std::abs(value_of(first[b], i) - wanted));
          for (std::size_t d = 0; d < row_digits; ++d) sums[d] += first[b].digits[i / step_inputs][d][i % step_inputs];
        }
        CHECK(worst <= static_cast<double>(first[b].scale) / 2);
        CHECK(worst <= std::max(largest * std::exp2(-22.9), 0x1p-123));
        for (std::size_t d = 0; d < row_digits; ++d) CHECK(first[b].zero_terms[d] == -zero_factor * sums[d]);
      }
    }
  }
}

TEST_CASE("Rows with NaN or infinity have no fixed point") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const std::size_t where : {0u, 15u, 31u, 40u}) {
      std::vector<float> x(41, 1.0f);
      x[where] = bad;
      FixedBlock blocks[2];
      for (const FixedPointConverter convert : converters()) {
        CHECK_FALSE(convert({.values = x.data(), .inputs = x.size(), .zero_factor = 1, .blocks = blocks}));
      }
    }
  }
}
