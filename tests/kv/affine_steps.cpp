// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/affine_steps.hpp>

#include <cbq/kv/affine_refinement.hpp>
#include <cbq/kv/value_block.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/nn.hpp"

namespace {

constexpr std::size_t sizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 64, 80, 127, 128};

}  // namespace

TEST_CASE("every instruction set finds the same range, and what is not finite anywhere in it") {
  for (const std::size_t size : sizes) {
    auto x = support::normal(size, static_cast<unsigned>(size));
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    for (const cbq::Isa isa : support::machine_isas()) {
      CAPTURE(size, cbq::isa_name(isa));
      const support::Guarded<float> at_start(std::span<const float>(x), support::Edge::start);
      const support::Guarded<float> at_end(std::span<const float>(x), support::Edge::end);
      for (const std::span<float> values : {at_start.span(), at_end.span()}) {
        const cbq::Interval range = cbq::affine_range(values, isa);
        REQUIRE(range.low == *low);
        REQUIRE(range.high == *high);
        for (std::size_t i = 0; i < size; ++i) {
          const float old = values[i];
          for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()}) {
            values[i] = bad;
            REQUIRE_FALSE(cbq::is_finite(cbq::affine_range(values, isa).high));
          }
          values[i] = old;
        }
      }
    }
  }
  const cbq::Interval none = cbq::affine_range({});
  CHECK(none.low == 0);
  CHECK(none.high == 0);
}

TEST_CASE("every instruction set makes the same codes and touches only its fields") {
  for (const std::size_t size : sizes) {
    for (const std::size_t bits : {2u, 3u, 4u, 8u}) {
      const auto x = support::normal(size, static_cast<unsigned>(size), 4.0f);
      // A range that clamps on both sides, and a constant group.
      for (const cbq::AffineGroup group :
           {cbq::AffineGroup{cbq::to_half(6.0f / static_cast<float>((1u << bits) - 1)), cbq::to_half(-3.0f)},
            cbq::AffineGroup{{}, cbq::to_half(-3.0f)}}) {
        const double scale = static_cast<double>(cbq::to_float(group.scale)), top = std::exp2(bits) - 1;
        const std::size_t padded = (size + 15) / 16 * 16;
        std::vector<std::uint8_t> wanted(padded);
        for (std::size_t i = 0; i < size && scale != 0; ++i) {
          const double u = (static_cast<double>(x[i]) + 3) / scale;
          wanted[i] = static_cast<std::uint8_t>(std::nearbyint(std::clamp(u, 0.0, top)));
        }
        for (const cbq::Isa isa : support::machine_isas()) {
          CAPTURE(size, bits, scale, cbq::isa_name(isa));
          const support::Guarded<float> in(std::span<const float>(x), support::Edge::end);
          const support::Guarded<std::uint8_t> codes(padded, support::Edge::end);
          cbq::affine_codes(in.span(), group, bits, codes.data(), isa);
          REQUIRE(std::vector<std::uint8_t>(codes.span().begin(), codes.span().end()) == wanted);

          constexpr std::size_t panel = 128;  // bytes, twice what a panel's words take
          const support::Guarded<std::byte> words(padded / 16 * panel - panel / 2, support::Edge::end);
          std::memset(words.data(), 0xa5, words.size());
          const cbq::AffineFields fields{words.data(), panel, 3, 13, bits == 3 ? 1 : 0};
          cbq::value_codes::store(in.span(), cbq::affine_steps(group, bits), fields, isa);
          for (std::size_t i = 0; i + 4 <= words.size(); i += 4) {
            std::uint32_t word = 0;
            std::memcpy(&word, words.data() + i, 4);
            const bool used = i % panel < 64;
            const std::uint32_t code = used ? wanted[i / panel * 16 + i % panel / 4] : 0u;
            REQUIRE(word == (used ? (0xa5a5a5a5u & ~(3u << 13)) | (code >> fields.from & 3u) << 13 : 0xa5a5a5a5u));
          }
        }
      }
    }
  }
}

TEST_CASE("every instruction set sums the same moments in the same order") {
  for (const std::size_t size : sizes) {
    const auto x = support::normal(size, static_cast<unsigned>(size));
    auto weights = support::normal(size, 5);
    for (float& w : weights) w = w * w;
    const cbq::AffineGroup fit = *cbq::fit_affine_group(cbq::affine_range(x), 3);
    const double scale = static_cast<double>(cbq::to_float(fit.scale));
    const double offset = static_cast<double>(cbq::to_float(fit.offset));
    for (const bool weighted : {false, true}) {
      const support::Guarded<float> in(std::span<const float>(x), support::Edge::end);
      const support::Guarded<float> costs(std::span<const float>(weights), support::Edge::end);
      const float* cost = weighted ? costs.data() : nullptr;
      double cu = 0, w = 0;
      for (std::size_t i = 0; i < size && scale != 0; ++i) {
        const double u = (static_cast<double>(x[i]) - offset) / scale;
        const double each = weighted ? static_cast<double>(weights[i]) : 1.0;
        cu += each * u * std::nearbyint(std::min(u, 7.0));
        w += each;
      }
      const auto first = cbq::affine_refinement::measure(x, cost, fit, 3, cbq::Isa::portable);
      if (scale != 0) {
        REQUIRE(first.cu == Catch::Approx(cu).epsilon(1e-5).margin(1e-5));
        REQUIRE(first.w == Catch::Approx(w).epsilon(1e-5));
      }
      for (const cbq::Isa isa : support::machine_isas()) {
        CAPTURE(size, weighted, cbq::isa_name(isa));
        const auto sums = cbq::affine_refinement::measure(in.span(), cost, fit, 3, isa);
        REQUIRE(sums.w == first.w);
        REQUIRE(sums.c == first.c);
        REQUIRE(sums.u == first.u);
        REQUIRE(sums.cc == first.cc);
        REQUIRE(sums.cu == first.cu);
        REQUIRE(sums.error == first.error);
      }
    }
  }
}

TEST_CASE("sums of moments round every product, whatever the compiler may fuse") {
  const std::size_t size = GENERATE(24u, 80u, 128u);
  const unsigned seed = GENERATE(range(1u, 30u));
  CAPTURE(size, seed);
  const auto x = support::normal(size, seed);
  auto weights = support::normal(size, seed + 100);
  for (float& w : weights) w = w * w;
  const cbq::AffineGroup fit = *cbq::fit_affine_group(cbq::affine_range(x), 3);
  const cbq::AffineSteps steps = cbq::affine_steps(fit, 3);
  float cc[16] = {}, cu[16] = {}, error[16] = {};
  for (std::size_t i = 0; i < size; ++i) {
    const float at = (x[i] - steps.offset) / steps.divisor;
    const float code = std::nearbyint(std::min(std::max(at, 0.0f), steps.top));
    const volatile float weighted = weights[i] * code, off = weights[i] * (at - code);
    const volatile float codes = weighted * code, both = weighted * at, square = off * (at - code);
    cc[i % 16] += codes;
    cu[i % 16] += both;
    error[i % 16] += square;
  }
  const auto tree = [](float* lanes) {
    for (std::size_t half = 8; half != 0; half /= 2) {
      for (std::size_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    }
    return static_cast<double>(lanes[0]);
  };
  const auto sums = cbq::affine_refinement::measure(x, weights.data(), fit, 3, cbq::Isa::portable);
  CHECK(sums.cc == tree(cc));
  CHECK(sums.cu == tree(cu));
  CHECK(sums.error == tree(error));
}
