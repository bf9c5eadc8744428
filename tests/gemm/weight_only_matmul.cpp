// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/weight_only_matmul.hpp>

#include <cmath>
#include <limits>

#include <catch2/catch_test_macros.hpp>
#include <cbq/gemm/kernels_portable.hpp>

#include "oracle/gemm.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"

using namespace cbq;

namespace {

struct Shape {
  std::size_t tokens;
  std::size_t outputs;
  std::size_t inputs;
};

template <Scheme S>
void check_shape(Shape shape) {
  std::mt19937 random(static_cast<unsigned>(shape.tokens * 1000 + shape.outputs * 10 + shape.inputs));
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
  std::normal_distribution<float> normal;
  const support::Guarded<float> x(shape.tokens * shape.inputs, support::Edge::end);
  for (float& value : x.span()) value = normal(random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  const support::Guarded<std::byte> bytes(std::span<const std::byte>(packed->view().data, packed->bytes()),
                                          support::Edge::end);
  PackedWeightsView<S> weights = packed->view();
  weights.data = bytes.data();
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(scheme_name(S).c_str(), shape.tokens, shape.outputs, shape.inputs, isa_name(isa));
    const support::Guarded<float> y(shape.tokens * shape.outputs, support::Edge::end);
    std::fill(y.span().begin(), y.span().end(), std::numeric_limits<float>::quiet_NaN());
    REQUIRE(matmul<S, NoEpilogue, PortableKernels>(matrix_view<const float>(x.data(), shape.tokens, shape.inputs),
                                                   weights, matrix_view(y.data(), shape.tokens, shape.outputs), {}, {},
                                                   isa));
    double worst = 0.0;
    for (std::size_t t = 0; t < shape.tokens; ++t) {
      for (std::size_t n = 0; n < shape.outputs; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (std::size_t k = 0; k < shape.inputs; ++k) {
          const double product =
              static_cast<double>(w.scale(n, k)) * w.level(n, k) * static_cast<double>(x.data()[t * shape.inputs + k]);
          sum += product;
          magnitude += std::abs(product);
        }
        // Each of the K products and sums rounds once: |error| <= (K + 2) * 2^-24 * sum of magnitudes.
        const double bound = static_cast<double>(shape.inputs + 2) * 0x1p-24 * magnitude;
        const double error = std::abs(static_cast<double>(y.data()[t * shape.outputs + n]) - sum);
        worst = std::max(worst, error <= bound ? 0.0 : error / (bound + 1e-300));
        if (std::isnan(error)) worst = std::numeric_limits<double>::infinity();
      }
    }
    CHECK(worst == 0.0);
  }
}

template <Scheme S>
void check_shapes() {
  for (const Shape shape : {Shape{1, 1, 1}, Shape{1, 33, 257}, Shape{2, 16, 32}, Shape{3, 17, 33}, Shape{4, 32, 576},
                            Shape{5, 31, 97}, Shape{16, 20, 160}, Shape{18, 48, 300}}) {
    check_shape<S>(shape);
  }
}

}  // namespace

TEST_CASE("Weight-only products stay within the rounding of their sums on every instruction set") {
  check_shapes<make_scheme(4, 16, 0, Zero::affine)>();
  check_shapes<make_scheme(3, 16, 96, Zero::symmetric)>();
#if !defined(__SANITIZE_ADDRESS__)  // each of these takes an instrumenting compiler a minute
  check_shapes<schemes::w4a16_g32>();
  check_shapes<schemes::w4a16_g128>();
  check_shapes<make_scheme(2, 16, 64, Zero::affine)>();
  check_shapes<make_scheme(8, 16, 32, Zero::symmetric)>();
  check_shapes<make_scheme(8, 16, 0, Zero::affine)>();
#endif
}

TEST_CASE("Few tokens in fixed point are the same bits on every instruction set that has them") {
  constexpr Scheme S = make_scheme(3, 16, 32, Zero::affine);
  // 16 x 1600: three batches of tokens on 64 KiB of stack; 18,800 inputs: the larger stack; 65,568: too many for it
  for (const Shape shape : {Shape{1, 33, 100}, Shape{16, 16, 1600}, Shape{2, 16, 18800}, Shape{1, 16, 65568}}) {
    std::mt19937 random(7);
    const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
    const auto packed = PackedWeights<S>::from_codes(w.view());
    REQUIRE(packed);
    std::normal_distribution<float> normal;
    std::vector<float> x(shape.tokens * shape.inputs);
    for (float& value : x) value = normal(random);
    std::vector<float> first;
    for (const Isa isa : support::machine_isas()) {
      if (RegionKernels::weight_only_tile<3, Zero::affine>(isa).fixed_point == nullptr) continue;
      CAPTURE(shape.tokens, shape.inputs, isa_name(isa));
      std::vector<float> y(shape.tokens * shape.outputs);
      REQUIRE(matmul(matrix_view<const float>(x.data(), shape.tokens, shape.inputs), packed->view(),
                     matrix_view(y.data(), shape.tokens, shape.outputs), {}, {}, isa));
      if (shape.inputs > 65536) continue;  // decoded panels, whose sums differ
      if (first.empty()) first = y;
      CHECK(y == first);
      for (std::size_t t = 0; t < shape.tokens; ++t) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (std::size_t k = 0; k < shape.inputs; ++k) {
          const double product =
              static_cast<double>(w.scale(15, k)) * w.level(15, k) * static_cast<double>(x[t * shape.inputs + k]);
          sum += product;
          magnitude += std::abs(product);
        }
        // Far below the (K + 2) * 2^-24 of float products: only sums of blocks round.
        CHECK(std::abs(static_cast<double>(y[t * shape.outputs + 15]) - sum) <= 4 * 0x1p-24 * magnitude);
      }
    }
  }
}

TEST_CASE("An activation that dwarfs its neighbours costs them digits, and no other block") {
  constexpr Scheme S = make_scheme(4, 16, 0, Zero::symmetric);
  constexpr std::size_t inputs = 96;
  oracle::Weights w;
  w.outputs = 16;
  w.inputs = w.group = inputs;
  w.groups = 1;
  w.bits = 4;
  w.codes.assign(16 * inputs, 9);  // level 1
  w.scales.assign(16, 1.0f);
  for (std::size_t n = 0; n < 16; ++n) w.codes[n * inputs + 40] = 8;  // level 0 for the large one
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  std::vector<float> x(inputs, 0.7f);
  x[40] = 3000.0f;
  double sum = 0.0;
  for (std::size_t k = 0; k < inputs; ++k) sum += k == 40 ? 0.0 : static_cast<double>(x[k]);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::vector<float> y(16);
    REQUIRE(matmul<S, NoEpilogue, PortableKernels>(matrix_view<const float>(x.data(), 1, inputs), packed->view(),
                                                   matrix_view(y.data(), 1, 16), {}, {}, isa));
    // 31 neighbours lose at most 2^-22.9 * 3000 each; everything else rounds sums near 66.
    const double bound = 31 * std::exp2(-22.9) * 3000 + 98 * 0x1p-24 * sum;
    for (const float value : y) CHECK(std::abs(static_cast<double>(value) - sum) <= bound);
  }
}

TEST_CASE("Activations with NaN or infinity give what float products give") {
  constexpr Scheme S = schemes::w4a16_g32;
  constexpr std::size_t inputs = 1600;
  constexpr std::size_t tokens = 13;
  std::mt19937 random(11);
  const oracle::Weights w = oracle::weights(S.weight, 16, inputs, oracle::Codes::highest, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  std::vector<float> x(tokens * inputs, 0.5f);
  x[12 * inputs + 1599] = std::numeric_limits<float>::infinity();  // in the last batch of tokens
  x[1 * inputs] = std::numeric_limits<float>::quiet_NaN();
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::vector<float> y(tokens * 16, 1.0f);
    const AddResidual residual{matrix_view<const float>(y.data(), tokens, 16)};
    REQUIRE(matmul<S, AddResidual, PortableKernels>(matrix_view<const float>(x.data(), tokens, inputs), packed->view(),
                                                    matrix_view(y.data(), tokens, 16), residual, {}, isa));
    for (std::size_t n = 0; n < 16; ++n) {
      double sum = 1.0;
      for (std::size_t k = 0; k < inputs; ++k) sum += static_cast<double>(w.scale(n, k)) * w.level(n, k) * 0.5;
      CHECK(std::isnan(y[16 + n]));
      CHECK(std::isinf(y[12 * 16 + n]));
      CHECK(std::signbit(y[12 * 16 + n]) == std::signbit(w.scale(n, 1599)));
      CHECK(std::abs(static_cast<double>(y[n]) - sum) <= 1e-3 * std::abs(sum) + 1e-3);
    }
  }
}

TEST_CASE("Decoded panels are the dequantized weights bit for bit on every instruction set") {
  constexpr Scheme S = make_scheme(3, 16, 64, Zero::affine);
  constexpr std::size_t inputs = 200;
  std::mt19937 random(1);
  const oracle::Weights w = oracle::weights(S.weight, 16, inputs, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  for (const Isa isa : support::machine_isas()) {
    const DecodedPanels source = decoded_panels<PortableKernels>(packed->view(), isa);
    for (const std::size_t first : {0u, 32u, 96u}) {
      CAPTURE(isa_name(isa), first);
      const support::Guarded<float> scratch((inputs - first) * 16, support::Edge::end);
      const float* panel = float_panel(source, {0, first, inputs - first}, scratch.data(), isa);
      std::size_t wrong = 0;
      for (std::size_t k = first; k < inputs; ++k) {
        for (std::size_t n = 0; n < 16; ++n)
          wrong += panel[(k - first) * 16 + n] != w.scale(n, k) * static_cast<float>(w.level(n, k));
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("Epilogues, ranges and bad shapes of the weight-only matmul") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, 50, 64, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  const std::vector<float> bias(50, 2.0f);
  for (const std::size_t tokens : {3u, 17u}) {
    CAPTURE(tokens);
    std::vector<float> x(tokens * 64, 0.25f);
    const auto input = matrix_view<const float>(x.data(), tokens, 64);
    std::vector<float> plain(tokens * 50);
    std::vector<float> y(tokens * 50, -7.0f);
    const auto view = matrix_view(y.data(), tokens, 50);
    REQUIRE(matmul(input, packed->view(), matrix_view(plain.data(), tokens, 50)));
    REQUIRE(matmul_outputs(input, packed->view(), {32, 18}, view, AddBias{bias.data()}));
    for (std::size_t i = 0; i < y.size(); ++i) CHECK(y[i] == (i % 50 < 32 ? -7.0f : plain[i] + 2.0f));
    CHECK_FALSE(matmul_outputs(input, packed->view(), {8, 16}, view));
    CHECK(matmul(matrix_view<const float>(x.data(), tokens, 63), packed->view(), view).error().code == Errc::bad_shape);
    CHECK(matmul(input, packed->view(), matrix_view(y.data(), tokens, 49)).error().code == Errc::bad_shape);
  }
}

TEST_CASE("The weight-only matmul refuses null memory and rows that overlap, and does nothing without tokens") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(5);
  const auto packed =
      PackedWeights<S>::from_codes(oracle::weights(S.weight, 20, 64, oracle::Codes::random, random).view());
  REQUIRE(packed);
  for (const std::size_t tokens : {2u, 6u}) {
    const std::vector<float> x(tokens * 64, 0.5f);
    std::vector<float> y(tokens * 20, -1.0f);
    const auto input = matrix_view<const float>(x.data(), tokens, 64);
    const auto view = matrix_view(y.data(), tokens, 20);
    const auto none = matrix_view<const float>(nullptr, tokens, 64);
    PackedWeightsView<S> no_weights = packed->view();
    no_weights.data = nullptr;
    CAPTURE(tokens);
    CHECK(matmul(none, packed->view(), view).error().code == Errc::bad_argument);
    CHECK(matmul(input, no_weights, view).error().code == Errc::bad_argument);
    CHECK(matmul(input, packed->view(), matrix_view<float>(nullptr, tokens, 20)).error().code == Errc::bad_argument);
    CHECK(matmul(MatrixView<const float>{x.data(), tokens, 64, 63}, packed->view(), view).error().code ==
          Errc::bad_shape);
    CHECK(matmul(input, packed->view(), MatrixView<float>{y.data(), tokens, 20, 19}).error().code == Errc::bad_shape);
    CHECK(matmul(input, packed->view(), view, AddBias{}).error().code == Errc::bad_shape);
    CHECK(y == std::vector<float>(y.size(), -1.0f));
  }
  CHECK(matmul(matrix_view<const float>(nullptr, 0, 64), packed->view(), matrix_view<float>(nullptr, 0, 20)));
}
