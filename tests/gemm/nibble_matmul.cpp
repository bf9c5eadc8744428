// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/nibble_matmul.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

#include <catch2/catch_test_macros.hpp>

#include "oracle/gemm.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

constexpr Grid affine_nibbles{.bits = 4, .zero = Zero::affine};

struct Product {
  std::size_t tokens, outputs, inputs;
};

/// Codes and parameters of one product, random, and what y must be.
struct Case {
  Case(Product of, oracle::Codes kind) : shape(of), random(static_cast<unsigned>(of.inputs)) {
    weights = oracle::weights(affine_nibbles, shape.outputs, shape.inputs, kind, random);
    if (weights.groups == 0) {  // a product without inputs still has scales
      weights.groups = 1;
      weights.scales.resize(shape.outputs, 1.0f);
      weights.zeros.resize(shape.outputs, 3);
    }
    const auto code = [&] { return static_cast<std::uint8_t>(kind == oracle::Codes::random ? random() % 16 : 15); };
    codes.resize(shape.tokens * shape.inputs);
    std::generate(codes.begin(), codes.end(), code);
    for (std::size_t t = 0; t < shape.tokens; ++t) {
      zeros.push_back(static_cast<std::uint8_t>(random() % 16));
      scales.push_back(0.25f * static_cast<float>(1 + random() % 7));
    }
  }
  [[nodiscard]] float expected(std::size_t token, std::size_t output) const {
    std::int64_t sum = 0;
    for (std::size_t k = 0; k < shape.inputs; ++k) {
      sum += std::int64_t{weights.level(output, k)} * (codes[token * shape.inputs + k] - zeros[token]);
    }
    return static_cast<float>(sum) * (scales[token] * weights.scales[output]);
  }
  [[nodiscard]] NibbleTokens tokens() const {
    return {matrix_view(codes.data(), shape.tokens, shape.inputs), scales, zeros};
  }
  Product shape;
  std::mt19937 random;
  oracle::Weights weights;
  std::vector<std::uint8_t> codes;
  std::vector<std::uint8_t> zeros;
  std::vector<float> scales;
};

void check(Product shape, oracle::Codes kind = oracle::Codes::random) {
  const Case c(shape, kind);
  const auto size = nibble_weights_size(shape.outputs, shape.inputs);
  REQUIRE(size);
  // Packed weights, codes and y end where a page begins that must not be touched.
  const support::Guarded<std::byte> memory(*size, support::Edge::end);
  const auto packed = pack_nibbles(c.weights.view(), memory.span());
  REQUIRE(packed);
  const support::Guarded<std::uint8_t> codes(c.codes, support::Edge::end);
  NibbleTokens x = c.tokens();
  x.codes.data = codes.data();
  for (const Isa isa : support::machine_isas()) {
    const support::Guarded<float> y(shape.tokens * shape.outputs, support::Edge::end);
    std::fill(y.span().begin(), y.span().end(), -1e30f);
    REQUIRE(nibble_matmul(x, *packed, matrix_view(y.data(), shape.tokens, shape.outputs), SerialExecutor{}, isa));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < y.size(); ++i) wrong += y.data()[i] != c.expected(i / shape.outputs, i % shape.outputs);
    CAPTURE(isa_name(isa), shape.tokens, shape.outputs, shape.inputs);
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("Every kernel of the 4-bit multiplier multiplies all pairs of codes to all depths") {
  // Lane p of panel n holds the weights n and p modulo 16, row r the activation r.
  for (const Isa isa : support::machine_isas()) {
    std::size_t wrong = 0;
    for (std::size_t depth = 1; depth <= 2 * lane_depth + 1; depth += depth < lane_depth ? 3 : 1) {
      const std::vector<std::uint8_t> codes = [&] {
        std::vector<std::uint8_t> all(16 * depth);
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint8_t>(i / depth);
        return all;
      }();
      // Every upper code at the depths that matter most, one of them at each of the others.
      const bool edge = depth == 1 || depth % lane_depth <= 1 || depth % lane_depth == lane_depth - 1;
      for (std::size_t upper = edge ? 0 : depth % 16; upper < 16; upper += edge ? 1 : 16) {
        std::vector<std::byte> pairs(depth * nibble_pairs);
        for (std::size_t i = 0; i < pairs.size(); ++i) pairs[i] = static_cast<std::byte>(upper << 4 | i % 16);
        std::vector<std::int32_t> sums(nibble_rows * nibble_outputs), code_sums(nibble_rows);
        nibble_kernel(isa)({pairs.data(), depth, codes.data(), depth, nibble_rows, sums.data(), code_sums.data()});
        for (std::size_t i = 0; i < sums.size(); ++i) {
          const std::size_t column = i % nibble_outputs;
          const std::size_t weight = column < nibble_pairs ? upper : column % 16;
          wrong += sums[i] != static_cast<std::int32_t>(weight * (i / nibble_outputs) * depth);
        }
        for (std::size_t r = 0; r < nibble_rows; ++r) wrong += code_sums[r] != static_cast<std::int32_t>(r * depth);
      }
    }
    CAPTURE(isa_name(isa));
    CHECK(wrong == 0);
  }
}

TEST_CASE("Products of 4-bit codes with zero points equal the definition bit for bit") {
  for (const Product shape : {Product{1, 1, 1}, Product{0, 3, 5}, Product{2, 63, 7}, Product{3, 64, 8},
                              Product{4, 65, 255}, Product{5, 17, 256}, Product{7, 33, 257}, Product{17, 130, 31},
                              Product{33, 31, 513}, Product{2, 3, 0}, Product{258, 5, 9}}) {
    check(shape);
  }
  check({9, 66, 515}, oracle::Codes::highest);
}

TEST_CASE("Without zero points all are 8") {
  const Case c({3, 5, 40}, oracle::Codes::random);
  QuantizedMatrixView view = c.weights.view();
  const std::vector<std::uint8_t> eights(5, 8);
  alignas(8) std::byte memory[2][8192];
  const auto implied = (view.zeros = {}, pack_nibbles(view, memory[0]));
  const auto explicit_zeros = (view.zeros = matrix_view(eights.data(), 5, 1), pack_nibbles(view, memory[1]));
  REQUIRE(implied);
  REQUIRE(explicit_zeros);
  float y[2][15];
  NibbleTokens x = c.tokens();
  x.zeros = {};
  REQUIRE(nibble_matmul(x, *implied, matrix_view(y[0], 3, 5)));
  x.zeros = std::span(eights).first(3);
  REQUIRE(nibble_matmul(x, *explicit_zeros, matrix_view(y[1], 3, 5)));
  CHECK(std::equal(y[0], y[0] + 15, y[1]));
}

TEST_CASE("What the 4-bit multiplier cannot multiply is an error") {
  Case c({3, 5, 40}, oracle::Codes::random);
  alignas(8) std::byte memory[8192];
  const auto packed = pack_nibbles(c.weights.view(), memory);
  REQUIRE(packed);
  std::vector<float> values(15, 7.0f);
  const auto y = matrix_view(values.data(), 3, 5);
  const auto code_of = [&](const NibbleTokens& x, const MatrixView<float>& to) {
    const Status status = nibble_matmul(x, *packed, to);
    REQUIRE(!status);
    CHECK(std::all_of(values.begin(), values.end(), [](float v) { return v == 7.0f; }));
    return status.error().code;
  };
  CHECK(code_of(c.tokens(), matrix_view(values.data(), 3, 4)) == Errc::bad_shape);
  NibbleTokens x = c.tokens();
  x.scales = x.scales.first(2);
  CHECK(code_of(x, y) == Errc::bad_shape);
  x = c.tokens();
  x.codes.data = nullptr;
  CHECK(code_of(x, y) == Errc::bad_argument);
  c.codes[41] = 16;
  CHECK(code_of(c.tokens(), y) == Errc::bad_argument);
  c.codes[41] = 15;
  c.zeros[2] = 16;
  CHECK(code_of(c.tokens(), y) == Errc::bad_argument);

  CHECK(nibble_weights_size(1, most_nibble_inputs));
  CHECK(!nibble_weights_size(1, most_nibble_inputs + 1));
  CHECK(!nibble_weights_size(~std::size_t{0}, 1024));
  CHECK(pack_nibbles(c.weights.view(), std::span(memory).first(100)).error().code == Errc::bad_shape);
  CHECK(pack_nibbles(c.weights.view(), std::span(memory).subspan(1)).error().code == Errc::bad_argument);
  QuantizedMatrixView grouped = c.weights.view();
  grouped.scales.columns = 2;
  CHECK(pack_nibbles(grouped, memory).error().code == Errc::bad_shape);
  const auto refused = [&](auto change) {
    QuantizedMatrixView matrix = c.weights.view();
    change(matrix);
    return pack_nibbles(matrix, memory).error().code;
  };
  CHECK(refused([](auto& matrix) { matrix.codes.stride = 39; }) == Errc::bad_shape);
  CHECK(refused([](auto& matrix) { matrix.scales.stride = 0; }) == Errc::bad_shape);
  CHECK(refused([](auto& matrix) { matrix.zeros.stride = 0; }) == Errc::bad_shape);
  CHECK(refused([](auto& matrix) { matrix.codes.data = nullptr; }) == Errc::bad_argument);
  CHECK(refused([](auto& matrix) { matrix.scales.data = nullptr; }) == Errc::bad_argument);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const float scale = std::exchange(c.weights.scales[3], bad);
    CHECK(pack_nibbles(c.weights.view(), memory).error().code == Errc::not_finite);
    c.weights.scales[3] = scale;
  }
  c.weights.codes[7] = 16;
  CHECK(pack_nibbles(c.weights.view(), memory).error().code == Errc::bad_argument);
}
