// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/query_rows.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "support/nn.hpp"

using namespace cbq;

namespace {

struct Row {
  explicit Row(const KvLayout& layout)
      : codes(2 * layout.key_blocks * 32, 99), scales(2, NAN), sums(2 * layout.groups, NAN) {}
  [[nodiscard]] attention::QueryRows view() { return {nullptr, codes.data(), scales.data(), sums.data()}; }
  std::vector<std::int8_t> codes;
  std::vector<float> scales, sums;
};

}  // namespace

TEST_CASE("A query becomes 8-bit codes in the places of its channels, with the sum of what they stand for") {
  for (const std::size_t width : {1u, 31u, 64u, 80u, 128u, 129u, 200u, 256u}) {
    CAPTURE(width);
    const KvLayout layout = *kv_layout(KvScheme{.bits = 4}, 1, width);
    const auto x = support::normal(width, 1, 3.0f);
    Row to(layout);
    REQUIRE(attention::quantize_query(layout, x, 1, to.view()));
    double largest = 0;
    for (const float v : x) largest = std::fmax(largest, std::fabs(static_cast<double>(v)));
    const double step = largest / 127;
    CHECK(static_cast<double>(to.scales[1]) == Catch::Approx(step));
    std::vector<double> sums(layout.groups);
    std::vector<bool> used(layout.key_blocks * 32);
    for (std::size_t c = 0; c < width; ++c) {
      const std::size_t place = c / 128 * 128 + c % 128;  // a first group of 128 is 4 blocks
      const double code = static_cast<double>(to.codes[layout.key_blocks * 32 + place]);
      REQUIRE(std::fabs(code - static_cast<double>(x[c]) / step) < 0.5001);
      sums[c / 128] += code * step;
      used[place] = true;
    }
    for (std::size_t i = 0; i < used.size(); ++i) REQUIRE((used[i] || to.codes[used.size() + i] == 0));
    for (std::size_t g = 0; g < sums.size(); ++g) {
      CHECK(static_cast<double>(to.sums[layout.groups + g]) == Catch::Approx(sums[g]).margin(1e-5));
    }
    CHECK(to.codes[0] == 99);  // the other row
  }
}

TEST_CASE("Queries without a largest element, and those that are no numbers or too large, become 0") {
  const KvLayout layout = *kv_layout(KvScheme{.bits = 8}, 1, 80);
  for (const float value : {0.0f, 1e-38f, -1e-45f, 1.2e30f, -1.3e30f, 1e38f, NAN, INFINITY}) {
    CAPTURE(value);
    std::vector<float> x(80, 0.0f);
    x[70] = value;
    Row to(layout);
    const bool finite = std::fabs(value) <= 0x1p100f;
    const bool zero = !finite || std::fabs(value) < 1e-30f;
    CHECK(attention::quantize_query(layout, x, 0, to.view()) == finite);
    for (std::size_t i = 0; i < 96; ++i) REQUIRE(int{to.codes[i]} == (i == 70 && !zero ? 127 : 0));
    CHECK((to.scales[0] == 0.0f) == zero);
    CHECK((to.sums[0] == 0.0f) == zero);
    CHECK(std::isfinite(to.sums[0]));
  }
}

TEST_CASE("Sums of the largest queries are finite") {
  const KvLayout layout = *kv_layout(KvScheme{.bits = 8}, 1, 256);
  for (const float most : {attention::largest_query, attention::largest_folded_query}) {
    const std::vector<float> largest(256, -most), larger(256, std::nextafter(most, INFINITY));
    Row to(layout);
    CHECK(attention::quantize_query(layout, largest, 0, to.view(), most));
    for (std::size_t g = 0; g < layout.groups; ++g) CHECK(to.sums[g] == Catch::Approx(-128.0f * most));
    CHECK_FALSE(attention::quantize_query(layout, larger, 0, to.view(), most));
  }
}
