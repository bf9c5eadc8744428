// SPDX-License-Identifier: Apache-2.0
#include <cbq/transform/hadamard.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <bit>
#include <cmath>
#include <vector>

#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/nn.hpp"

using cbq::Errc;

namespace {

// n^(-1/2) H x from the definition: the sign of element (i, j) is the parity of i & j.
std::vector<double> reference(const std::vector<float>& x, std::size_t block) {
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t first = i / block * block;
    for (std::size_t j = 0; j < block; ++j) {
      const double sign = std::popcount((i - first) & j) % 2 == 0 ? 1 : -1;
      y[i] += sign * static_cast<double>(x[first + j]) / std::sqrt(static_cast<double>(block));
    }
  }
  return y;
}

}  // namespace

TEST_CASE("every block size equals the definition, with the same bits from every instruction set") {
  for (std::size_t block = 1; block <= 2048; block *= 2) {
    for (const std::size_t blocks : {1u, 3u}) {
      const std::vector<float> x = support::normal(block * blocks, 1);
      const std::vector<double> wanted = reference(x, block);
      std::vector<double> in_double = support::doubles(x);
      cbq::hadamard_row(std::span<double>(in_double), block, cbq::Isa::scalar);
      std::vector<float> first;
      for (const cbq::Isa isa : support::machine_isas()) {
        CAPTURE(block, blocks, cbq::isa_name(isa));
        const support::Guarded<float> guarded(x, blocks == 1 ? support::Edge::start : support::Edge::end);
        cbq::hadamard_row(guarded.span(), block, isa);
        const std::vector<float> y(guarded.span().begin(), guarded.span().end());
        if (first.empty()) first = y;
        REQUIRE(y == first);
        for (std::size_t i = 0; i < x.size(); ++i) {
          REQUIRE(std::fabs(static_cast<double>(y[i]) - wanted[i]) < 3e-6);
          REQUIRE(std::fabs(in_double[i] - wanted[i]) < 1e-13);
        }
      }
    }
  }
}

TEST_CASE("the transform is its own inverse and keeps lengths") {
  const std::vector<float> x = support::normal(3 * 512, 2);
  std::vector<float> y = x;
  REQUIRE(cbq::hadamard_rows(support::view(y, 3 * 512), 512));
  double before = 0, after = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    before += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    after += static_cast<double>(y[i]) * static_cast<double>(y[i]);
  }
  CHECK(after == Catch::Approx(before).epsilon(1e-5));
  REQUIRE(cbq::hadamard_rows(support::view(y, 3 * 512), 512));
  for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(y[i] - x[i]) < 3e-6f);
}

TEST_CASE("an outlier is spread evenly, a constant ends in one element") {
  std::vector<float> x(256);
  x[77] = 160;
  REQUIRE(cbq::hadamard_rows(support::view(x, 256), 256));
  for (const float v : x) CHECK(std::fabs(v) == 10);
  std::vector<float> constant(256, 1.0f);
  REQUIRE(cbq::hadamard_rows(support::view(constant, 256), 256));
  CHECK(constant[0] == 16);
  for (std::size_t i = 1; i < 256; ++i) CHECK(constant[i] == 0);
}

TEST_CASE("rows of a strided matrix are transformed alike by any executor, and nothing else is") {
  std::vector<float> x = support::normal(37 * 100, 3);
  std::vector<float> threaded = x;
  const std::vector<float> before = x;
  const auto inner = [](std::vector<float>& v) { return cbq::columns(support::view(v, 100), 0, 96); };
  REQUIRE(cbq::hadamard_rows(inner(x), cbq::hadamard_size(96)));
  REQUIRE(cbq::hadamard_rows(inner(threaded), 32, support::ThreadExecutor{}));
  CHECK(x == threaded);
  for (std::size_t r = 0; r < 37; ++r) {
    for (std::size_t c = 96; c < 100; ++c) REQUIRE(x[r * 100 + c] == before[r * 100 + c]);
    REQUIRE(x[r * 100 + 95] != before[r * 100 + 95]);
  }
}

TEST_CASE("the size of a block is the largest power of two that divides the width") {
  STATIC_REQUIRE(cbq::hadamard_size(1) == 1);
  STATIC_REQUIRE(cbq::hadamard_size(576) == 64);
  STATIC_REQUIRE(cbq::hadamard_size(11008) == 256);
  STATIC_REQUIRE(cbq::hadamard_size(4096) == 4096);
  STATIC_REQUIRE(cbq::hadamard_size(77) == 1);
  STATIC_REQUIRE(cbq::hadamard_size(0) == 1);
}

TEST_CASE("blocks that are no power of two or do not divide the width are refused") {
  std::vector<float> x(96);
  const auto view = support::view(x, 96);
  CHECK(cbq::hadamard_rows(view, 0).error().code == Errc::bad_argument);
  CHECK(cbq::hadamard_rows(view, 96).error().code == Errc::bad_argument);
  CHECK(cbq::hadamard_rows(view, 64).error().code == Errc::bad_shape);
  CHECK(cbq::hadamard_rows(cbq::matrix_view(x.data(), 0, 96), 32));
}
