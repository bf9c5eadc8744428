// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/encodable.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <cbq/kv/affine_group.hpp>

TEST_CASE("the first element that no group takes is found, wherever it is") {
  using Limits = std::numeric_limits<float>;
  for (const std::size_t size : {1u, 2u, 7u, 64u, 129u}) {
    std::vector<float> row(size, -65504.0f);
    row[0] = 65504.0f;
    CHECK(cbq::first_beyond(row, 65504.0f) == size);
    for (const float bad : {Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(),
                            std::nextafter(65504.0f, 1e6f), -std::nextafter(65504.0f, 1e6f), Limits::max()}) {
      for (std::size_t i = 0; i < size; ++i) {
        std::vector<float> other = row;
        other[i] = bad;
        other[size - 1] = i % 2 == 0 ? other[size - 1] : bad;  // the first of two
        REQUIRE(cbq::first_beyond(other, 65504.0f) == i);
      }
    }
  }
  CHECK(cbq::first_beyond({}, 1.0f) == 0);
}

TEST_CASE("what is encodable has a scale and an offset, with any bits") {
  for (const std::size_t bits : {2u, 3u, 4u, 8u}) {
    for (const float low : {-65504.0f, -1.0f, 0.0f, 65504.0f}) {
      CHECK(cbq::fit_affine_group({low, 65504.0f}, bits).has_value());
    }
  }
}

TEST_CASE("a row is refused with the element that is at fault") {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> key(6, 1.0f), value(6, -1.0f), large(6, 65505.0f);
  const auto check = [&](const std::vector<float>& k, const std::vector<float>& v) {
    return cbq::check_encodable({key.data(), value.data(), 6}, {k.data(), v.data(), 6}, 7);
  };
  CHECK(check(key, value).has_value());
  CHECK(check(large, value).error().code == cbq::Errc::bad_argument);
  CHECK(std::string(check(large, value).error().where.c_str()) == "key of row 7, element 0");
  CHECK(std::string(check(key, large).error().where.c_str()) == "value of row 7, element 0");
  // A rotation spreads what is not finite over the whole row: the error says where it came from.
  value[4] = infinity;
  CHECK(check(key, large).error().code == cbq::Errc::not_finite);
  CHECK(std::string(check(key, large).error().where.c_str()) == "value of row 7, element 4");
  key[5] = std::nanf("");
  CHECK(std::string(check(large, large).error().where.c_str()) == "key of row 7, element 5");
}
