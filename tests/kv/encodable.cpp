// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/encodable.hpp>

#include <catch2/catch_all.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <cbq/kv/affine_group.hpp>

TEST_CASE("the first element that no group takes is found, wherever it is") {
  using Limits = std::numeric_limits<float>;
  for (const std::size_t size : {1u, 2u, 7u, 64u, 129u}) {
    std::vector<float> row(size, -65504.0f);
    row[0] = 65504.0f;
    CHECK(cbq::first_not_encodable(row) == size);
    for (const float bad : {Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(),
                            std::nextafter(65504.0f, 1e6f), -std::nextafter(65504.0f, 1e6f), Limits::max()}) {
      for (std::size_t i = 0; i < size; ++i) {
        std::vector<float> other = row;
        other[i] = bad;
        other[size - 1] = i % 2 == 0 ? other[size - 1] : bad;  // the first of two
        REQUIRE(cbq::first_not_encodable(other) == i);
      }
    }
  }
  CHECK(cbq::first_not_encodable({}) == 0);
}

TEST_CASE("what is encodable has a scale and an offset, with any bits") {
  for (const std::size_t bits : {2u, 3u, 4u, 8u}) {
    for (const float low : {-65504.0f, -1.0f, 0.0f, 65504.0f}) {
      CHECK(cbq::fit_affine_group({low, 65504.0f}, bits).has_value());
    }
  }
}
