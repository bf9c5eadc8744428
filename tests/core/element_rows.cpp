// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/element_rows.hpp>

#include <bit>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "support/guarded.hpp"

TEST_CASE("Halves of a row are converted as one by one, all 65536 of them") {
  std::vector<cbq::half> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i].bits = static_cast<std::uint16_t>(i);
  std::vector<float> floats(halves.size());
  cbq::decode_elements<cbq::half>(reinterpret_cast<const std::byte*>(halves.data()), floats);
  std::size_t different = 0;
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const auto wanted = std::bit_cast<std::uint32_t>(cbq::to_float(halves[i]));
    if (std::bit_cast<std::uint32_t>(floats[i]) != wanted) ++different;
  }
  CHECK(different == 0);
}

TEMPLATE_TEST_CASE("Rows of any length, unaligned, touch nothing beside them", "", cbq::half, cbq::bfloat16, float,
                   double) {
  for (const std::size_t size : {0u, 1u, 7u, 8u, 9u, 31u}) {
    std::vector<std::byte> bytes(size * sizeof(TestType) + 1);
    std::vector<TestType> elements(size);
    for (std::size_t i = 0; i < size; ++i) {
      elements[i] = cbq::from_float<TestType>(0.5f * static_cast<float>(i) - 3.0f);
    }
    if (size != 0) std::memcpy(bytes.data() + 1, elements.data(), size * sizeof(TestType));
    support::Guarded<float> out(size, support::Edge::end);
    cbq::decode_elements<TestType>(bytes.data() + 1, {out.data(), size});
    for (std::size_t i = 0; i < size; ++i) CHECK(out.data()[i] == 0.5f * static_cast<float>(i) - 3.0f);
  }
}
