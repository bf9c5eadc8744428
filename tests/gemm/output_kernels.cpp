// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/output_kernels.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <cbq/gemm/epilogue.hpp>

#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

/// Every half and bfloat16, the halfway points between neighbours and their neighbours in float, int8's edges.
std::vector<float> telling_values() {
  std::vector<float> values;
  const auto add = [&](std::uint32_t bits) {
    for (const std::uint32_t near : {bits - 1, bits, bits + 1}) values.push_back(std::bit_cast<float>(near));
  };
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const auto half_bits = std::bit_cast<std::uint32_t>(to_float(half{static_cast<std::uint16_t>(code)}));
    add(half_bits);
    add(half_bits + 0x1000u);
    add(code << 16);
    add((code << 16) + 0x8000u);
  }
  for (int code = -260; code <= 260; ++code) add(std::bit_cast<std::uint32_t>(static_cast<float>(code) * 0.5f));
  return values;
}

std::int8_t expected_int8(float value) {
  if (std::isnan(value) || value <= -127.0f) return -127;
  return static_cast<std::int8_t>(value >= 127.0f ? 127.0 : std::nearbyint(static_cast<double>(value)));
}

template <class T>
T expected(float value) {
  if constexpr (std::is_same_v<T, std::int8_t>) {
    return expected_int8(value);
  } else {
    return from_float<T>(value);
  }
}

template <class T>
void check_rounding() {
  const std::vector<float> values = telling_values();
  for (const Isa isa : support::machine_isas()) {
    std::vector<T> codes(values.size());
    const NoEpilogue none;
    output_kernel<NoEpilogue, T>(isa)({.sums = values.data(),
                                       .stride = values.size(),
                                       .epilogue = &none,
                                       .row = 0,
                                       .column = 0,
                                       .to = codes.data(),
                                       .to_stride = codes.size(),
                                       .rows = 1,
                                       .columns = values.size()});
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) wrong += codes[i] == expected<T>(values[i]) ? 0u : 1u;
    CAPTURE(isa_name(isa));
    CHECK(wrong == 0);
  }
}

/// Encodes the place in the result, so that a wrong row or column shows.
struct Place {
  float operator()(float value, std::size_t row, std::size_t column) const {
    return value + static_cast<float>(row * 64 + column);
  }
};

template <class T>
void check_edges() {
  constexpr std::size_t rows = 3;
  constexpr std::size_t stride = 32;
  std::vector<float> sums(rows * stride);
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = -static_cast<float>(i);
  for (const Isa isa : support::machine_isas()) {
    for (std::size_t columns = 0; columns <= stride; ++columns) {
      // Without gaps between rows: a store beyond a row breaks the next one, and beyond the last one the page.
      const support::Guarded<T> to(rows * columns, support::Edge::end);
      const Place place;
      output_kernel<Place, T>(isa)({.sums = sums.data(),
                                    .stride = stride,
                                    .epilogue = &place,
                                    .row = 1,
                                    .column = 48,
                                    .to = to.data(),
                                    .to_stride = columns,
                                    .rows = rows,
                                    .columns = columns});
      std::size_t wrong = 0;
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t c = 0; c < columns; ++c) {
          const float want = static_cast<float>((r + 1) * 64 + c + 48) - static_cast<float>(r * stride + c);
          wrong += to.data()[r * columns + c] == expected<T>(want) ? 0u : 1u;
        }
      }
      CAPTURE(isa_name(isa), columns);
      CHECK(wrong == 0);
    }
  }
}

}  // namespace

TEST_CASE("Results are rounded to the bits of the element conversions on every instruction set") {
  check_rounding<half>();
  check_rounding<bfloat16>();
  check_rounding<std::int8_t>();
}

TEST_CASE("Patches of any width stay inside their rows, and epilogues see every place") {
  check_edges<float>();
  check_edges<half>();
  check_edges<bfloat16>();
  check_edges<std::int8_t>();
}
