// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/affine.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "oracle/quant.hpp"

using cbq::Granularity;
using cbq::Grid;
using cbq::Zero;

namespace {

template <class T>
std::vector<T> random_matrix(std::size_t size, std::uint32_t seed) {
  std::vector<T> out;
  for (const float v : oracle::random_weights(size, seed, 0.7)) out.push_back(cbq::from_float<T>(v));
  return out;
}

template <class T>
double value_of(T x) {
  if constexpr (std::same_as<T, double>)
    return x;
  else
    return static_cast<double>(cbq::to_float(x));
}

// Every product of one element type and one grid: fit, quantize, dequantize and fake_quantize against the oracle.
template <class T, Grid G>
void check_quantizer() {
  CAPTURE(G.bits, static_cast<int>(G.granularity), G.zero == Zero::affine);
  constexpr std::size_t rows = 3, columns = 37, stride = 40;
  const std::vector<T> x = random_matrix<T>(rows * stride, 11);
  const cbq::MatrixView<const T> view{x.data(), rows, columns, stride};
  const cbq::AffineQuantizer<T, G> quantizer;
  const auto params = quantizer.fit(view);
  REQUIRE(params);
  const std::size_t length = G.granularity == Granularity::per_group ? static_cast<std::size_t>(G.group) : columns;
  REQUIRE(params->scales().rows == (G.granularity == Granularity::per_tensor ? 1 : rows));
  REQUIRE(params->scales().columns == (columns + length - 1) / length);
  std::vector<std::uint8_t> codes(rows * columns, 0xee);
  std::vector<T> decoded(rows * columns), fake(rows * columns);
  REQUIRE(quantizer.quantize(view, *params, cbq::matrix_view(codes.data(), rows, columns)));
  REQUIRE(quantizer.dequantize(cbq::as_const(cbq::matrix_view(codes.data(), rows, columns)), *params,
                               cbq::matrix_view(decoded.data(), rows, columns)));
  REQUIRE(quantizer.fake_quantize(view, *params, cbq::matrix_view(fake.data(), rows, columns)));
  int wrong_code = 0, wrong_value = 0, wrong_fake = 0, far = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) {
      const std::size_t pr = G.granularity == Granularity::per_tensor ? 0 : r;
      const oracle::Grid grid{static_cast<double>(cbq::row(params->scales(), pr)[c / length]),
                              cbq::row(params->zeros(), pr)[c / length], (1 << G.bits) - 1};
      const double v = value_of(x[r * stride + c]);
      const int code = codes[r * columns + c];
      // Float division may fall on the other side of a tie that double sees as none.
      const double u = v / grid.scale;
      const bool near_tie = std::fabs(std::fabs(u - std::floor(u)) - 0.5) < 1e-5;
      wrong_code += code == oracle::code(v, grid) || near_tie ? 0 : 1;
      const double wanted = oracle::value(code, grid);
      const T rounded = [&] {
        if constexpr (std::same_as<T, double>)
          return wanted;
        else
          return cbq::from_float<T>(static_cast<float>(wanted));
      }();
      wrong_value += value_of(decoded[r * columns + c]) == value_of(rounded) ? 0 : 1;
      wrong_fake += value_of(fake[r * columns + c]) == value_of(decoded[r * columns + c]) ? 0 : 1;
      far += std::fabs(wanted - v) <= grid.scale * (G.zero == Zero::affine ? 1.001 : 0.501) ? 0 : 1;
    }
  }
  CHECK(wrong_code == 0);
  CHECK(wrong_value == 0);
  CHECK(wrong_fake == 0);
  CHECK(far == 0);
}

template <class T, int Bits>
void check_bits() {
  using enum Granularity;
  check_quantizer<T, Grid{.bits = Bits, .granularity = per_group, .group = 16, .zero = Zero::symmetric}>();
  check_quantizer<T, Grid{.bits = Bits, .granularity = per_group, .group = 16, .zero = Zero::affine}>();
  if constexpr (Bits == 4) {
    check_quantizer<T, Grid{.bits = Bits, .granularity = per_channel, .zero = Zero::affine}>();
    check_quantizer<T, Grid{.bits = Bits, .granularity = per_tensor, .zero = Zero::symmetric}>();
    check_quantizer<T, Grid{.bits = Bits, .granularity = per_token, .zero = Zero::affine}>();
    check_quantizer<T, Grid{.bits = Bits, .granularity = per_tensor, .zero = Zero::affine}>();
  }
}

using Double4 =
    cbq::AffineQuantizer<double,
                         Grid{.bits = 3, .granularity = Granularity::per_group, .group = 8, .zero = Zero::affine}>;

// The straight-through surrogate: fake quantization whose rounding residue r = round(u) - u is frozen at the point of
// expansion, so that its ordinary derivatives, taken numerically, are the straight-through ones.
struct Surrogate {
  std::vector<double> residue;
  std::vector<int> side;  // -1 below the grid, 0 on it, +1 above
  Surrogate(const std::vector<double>& x, const std::vector<double>& scales, const std::vector<double>& zeros,
            double top) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double u = x[i] / scales[i / 8], rounded = oracle::round_half_even(u), v = rounded + zeros[i / 8];
      residue.push_back(rounded - u);
      side.push_back(v < 0 ? -1 : v > top ? 1 : 0);
    }
  }
  [[nodiscard]] double operator()(const std::vector<double>& x, const std::vector<double>& scales,
                                  const std::vector<double>& zeros, const std::vector<double>& upstream,
                                  double top) const {
    double loss = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double s = scales[i / 8], z = zeros[i / 8];
      const double d = side[i] < 0 ? 0 - z : side[i] > 0 ? top - z : x[i] / s + residue[i];
      loss += upstream[i] * s * d;
    }
    return loss;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("affine quantizers match the oracle for every element type, bits and granularity", "", float,
                   cbq::half, cbq::bfloat16, double) {
  [&]<int... Bits>(std::integer_sequence<int, Bits...>) {
    (check_bits<TestType, Bits + 2>(), ...);
  }(std::make_integer_sequence<int, 7>{});
}

TEST_CASE("gradients are the numeric ones of the straight-through surrogate") {
  constexpr std::size_t count = 48;  // 2 x 24 in groups of 8
  const double top = 7;
  std::vector<double> x, upstream;
  for (const float v : oracle::random_weights(count, 5)) x.push_back(static_cast<double>(v));
  for (const float v : oracle::random_weights(count, 6)) upstream.push_back(static_cast<double>(v));
  auto params = Double4::Params::allocate(2, 3);
  REQUIRE(params);
  std::vector<double> scales, zeros;
  for (std::size_t i = 0; i < 6; ++i) {  // small scales, so that both ends clip
    scales.push_back(cbq::row(params->scales(), i / 3)[i % 3] = 0.15 + 0.03 * static_cast<double>(i));
    zeros.push_back(cbq::row(params->zeros(), i / 3)[i % 3] = static_cast<std::uint8_t>(1 + i));
  }
  std::vector<double> dx(count, 9), ds(6, 9), dz(6, 9);
  REQUIRE(Double4{}.backward({x.data(), 2, 24, 24}, *params, {upstream.data(), 2, 24, 24},
                             {{dx.data(), 2, 24, 24}, {ds.data(), 2, 3, 3}, {dz.data(), 2, 3, 3}}));
  const Surrogate surrogate(x, scales, zeros, top);
  REQUIRE(std::count(surrogate.side.begin(), surrogate.side.end(), -1) > 2);
  REQUIRE(std::count(surrogate.side.begin(), surrogate.side.end(), 0) > 2);
  REQUIRE(std::count(surrogate.side.begin(), surrogate.side.end(), 1) > 2);
  const auto numeric = [&](std::vector<double>& variable, std::size_t i) {
    const double h = 1e-6, at = variable[i];
    variable[i] = at + h;
    const double above = surrogate(x, scales, zeros, upstream, top);
    variable[i] = at - h;
    const double below = surrogate(x, scales, zeros, upstream, top);
    variable[i] = at;
    return (above - below) / (2 * h);
  };
  for (std::size_t i = 0; i < count; ++i) CHECK(dx[i] == Catch::Approx(numeric(x, i)).margin(1e-7));
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(ds[i] == Catch::Approx(numeric(scales, i)).margin(1e-7));
    CHECK(dz[i] == Catch::Approx(numeric(zeros, i)).margin(1e-7));
  }
}

TEMPLATE_TEST_CASE("float gradients agree with double ones", "", float, cbq::half) {
  constexpr Grid grid{.bits = 4, .granularity = Granularity::per_tensor, .zero = Zero::symmetric};
  constexpr std::size_t rows = 5, columns = 300;
  const std::vector<TestType> x = random_matrix<TestType>(rows * columns, 3);
  std::vector<double> exact;
  for (const TestType v : x) exact.push_back(value_of(v));
  const std::vector<float> upstream = oracle::random_weights(rows * columns, 4);
  const std::vector<double> upstream_exact(upstream.begin(), upstream.end());
  auto params = cbq::AffineParams<float>::allocate(1, 1);
  auto params_exact = cbq::AffineParams<double>::allocate(1, 1);
  REQUIRE((params && params_exact));
  params->scales().data[0] = 0.1875f;
  params_exact->scales().data[0] = 0.1875;
  params->zeros().data[0] = params_exact->zeros().data[0] = 8;
  std::vector<float> dx(x.size());
  std::vector<double> dx_exact(x.size());
  float ds = 0;
  double ds_exact = 0;
  REQUIRE(cbq::AffineQuantizer<TestType, grid>{}.backward(
      {x.data(), rows, columns, columns}, *params, {upstream.data(), rows, columns, columns},
      {cbq::matrix_view(dx.data(), rows, columns), {&ds, 1, 1, 1}, {}}));
  REQUIRE(cbq::AffineQuantizer<double, grid>{}.backward(
      {exact.data(), rows, columns, columns}, *params_exact, {upstream_exact.data(), rows, columns, columns},
      {cbq::matrix_view(dx_exact.data(), rows, columns), {&ds_exact, 1, 1, 1}, {}}));
  CHECK(std::equal(dx.begin(), dx.end(), dx_exact.begin(),
                   [](float a, double b) { return static_cast<double>(a) == b; }));
  CHECK(std::fabs(static_cast<double>(ds) - ds_exact) <= 1e-3);  // of terms whose magnitudes sum to about 1000
}

TEST_CASE("quantizing twice changes nothing") {
  constexpr Grid grid{.bits = 5, .granularity = Granularity::per_token, .zero = Zero::affine};
  const cbq::AffineQuantizer<float, grid> quantizer;
  std::vector<float> x = oracle::random_weights(200, 17);
  const auto view = cbq::matrix_view(x.data(), 4, 50);
  const auto params = quantizer.fit(cbq::as_const(view));
  REQUIRE(params);
  REQUIRE(quantizer.fake_quantize(cbq::as_const(view), *params, view));
  const std::vector<float> once = x;
  REQUIRE(quantizer.fake_quantize(cbq::as_const(view), *params, view));
  CHECK(x == once);
}

TEST_CASE("bad elements and shapes are errors") {
  constexpr Grid grid{.bits = 4, .granularity = Granularity::per_group, .group = 16};
  const cbq::AffineQuantizer<double, grid> quantizer;
  for (const double bad : {static_cast<double>(NAN), -static_cast<double>(INFINITY), 1e300}) {
    std::vector<double> x(60, 1.0);
    x[33] = bad;
    const auto params = quantizer.fit({x.data(), 3, 20, 20});
    REQUIRE(!params);
    CHECK(params.error().code == cbq::Errc::not_finite);
    CHECK(std::string(params.error().where.c_str()) == "row 1, column 13");
  }
  const std::vector<double> x(60, 1.0);
  std::vector<double> out(60);
  const auto params = quantizer.fit({x.data(), 3, 20, 20});
  REQUIRE(params);
  CHECK(!quantizer.fake_quantize({x.data(), 3, 20, 20}, *params, {out.data(), 3, 19, 19}));
  CHECK(!quantizer.fake_quantize({x.data(), 2, 20, 20}, *params, {out.data(), 2, 20, 20}));
  CHECK(!quantizer.fake_quantize({x.data(), 3, 10, 20}, *params, {out.data(), 3, 10, 20}));
  CHECK(!quantizer.fake_quantize({x.data(), 3, 20, 19}, *params, {out.data(), 3, 20, 20}));
  CHECK(!quantizer.backward({x.data(), 3, 20, 20}, *params, {x.data(), 3, 20, 20},
                            {{out.data(), 3, 20, 20}, {out.data(), 3, 1, 1}, {}}));
  CHECK(!quantizer.backward({x.data(), 3, 20, 20}, *params, {x.data(), 1, 20, 20}, {{out.data(), 3, 20, 20}, {}, {}}));
  const auto empty = quantizer.fit({x.data(), 0, 20, 20});
  REQUIRE(empty);
  CHECK(quantizer.fake_quantize({x.data(), 0, 20, 20}, *empty, {out.data(), 0, 20, 20}));
  const auto zeros = quantizer.fit({out.data(), 3, 20, 20});
  REQUIRE(zeros);
  CHECK(cbq::row(zeros->scales(), 2)[1] > 0);
}
