// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/weight_only_bfloat16.hpp>

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

/// Kernels of a CPU without products of bfloat16.
struct WithoutBfloat16 : RegionKernels {
  template <int Bits, Zero Z>
  [[nodiscard]] static Bfloat16Kernels bfloat16_tile(Isa) noexcept {
    return {};
  }
};

bool has_products(Isa isa) {
  return RegionKernels::bfloat16_tile<4, Zero::symmetric>(isa).decode != nullptr;
}

/// What the documented bound allows for output n of token t, and the exact sum.
struct Expected {
  double sum = 0.0;
  double bound = 0.0;
};

Expected expected(const oracle::Weights& w, const MatrixView<const bfloat16>& x, std::size_t t, std::size_t n) {
  Expected result;
  double magnitude = 0.0;
  double largest_scale = 0.0;
  for (std::size_t k = 0; k < w.inputs; ++k) {
    const double scale = w.scale(n, k);
    const double product = scale * w.level(n, k) * static_cast<double>(to_float(row(x, t)[k]));
    result.sum += product;
    magnitude += std::abs(product);
    largest_scale = std::max(largest_scale, std::abs(scale));
  }
  const std::size_t together = std::min<std::size_t>(w.group, 256);
  const std::size_t sums = w.groups + w.inputs / 256 + 1;
  result.bound = static_cast<double>(together + sums + 1) * 0x1p-24 * magnitude +
                 static_cast<double>(w.inputs) * 0x1p-118 * largest_scale;
  return result;
}

/// How many results are further than the bound from the exact sums.
std::size_t beyond_bound(const oracle::Weights& w, const MatrixView<const bfloat16>& x, const float* y) {
  std::size_t wrong = 0;
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t n = 0; n < w.outputs; ++n) {
      const Expected right = expected(w, x, t, n);
      wrong += !(std::abs(static_cast<double>(y[t * w.outputs + n]) - right.sum) <= right.bound);
    }
  }
  return wrong;
}

/// The overload for floats on the same values.
template <Scheme S, class Kernels>
std::vector<float> as_floats(const MatrixView<const bfloat16>& x, const PackedWeightsView<S>& weights, Isa isa) {
  std::vector<float> values(x.rows * x.columns);
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t k = 0; k < x.columns; ++k) values[t * x.columns + k] = to_float(row(x, t)[k]);
  }
  std::vector<float> y(x.rows * weights.layout.outputs);
  const auto input = matrix_view<const float>(values.data(), x.rows, x.columns);
  const auto result = matrix_view(y.data(), x.rows, weights.layout.outputs);
  REQUIRE(matmul<S, NoEpilogue, Kernels>(input, weights, result, {}, {}, isa));
  return y;
}

/// The last row of x, the weights and y end at pages that must not be touched; rows of x lie an odd number of elements
/// apart.
template <Scheme S, class Kernels = RegionKernels>
void check_shape(Shape shape, oracle::Codes codes) {
  std::mt19937 random(static_cast<unsigned>(shape.tokens * 1000 + shape.outputs * 10 + shape.inputs));
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, codes, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  const support::Guarded<std::byte> bytes(std::span<const std::byte>(packed->view().data, packed->bytes()),
                                          support::Edge::end);
  PackedWeightsView<S> weights = packed->view();
  weights.data = bytes.data();
  std::normal_distribution<float> normal;
  const std::size_t stride = shape.inputs + 2 - shape.inputs % 2 + 1;
  const support::Guarded<bfloat16> values((shape.tokens - 1) * stride + shape.inputs, support::Edge::end);
  for (bfloat16& value : values.span()) value = to_bfloat16(normal(random));
  const MatrixView<const bfloat16> x{values.data(), shape.tokens, shape.inputs, stride};
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(scheme_name(S).c_str(), shape.tokens, shape.outputs, shape.inputs, isa_name(isa));
    const support::Guarded<float> y(shape.tokens * shape.outputs, support::Edge::end);
    std::fill(y.span().begin(), y.span().end(), std::numeric_limits<float>::quiet_NaN());
    REQUIRE(
        matmul<S, NoEpilogue, Kernels>(x, weights, matrix_view(y.data(), shape.tokens, shape.outputs), {}, {}, isa));
    if (Kernels::template bfloat16_tile<S.weight.bits, S.weight.zero>(isa).decode != nullptr && shape.tokens > 7) {
      CHECK(beyond_bound(w, x, y.data()) == 0);
    } else {
      const std::vector<float> floats = as_floats<S, Kernels>(x, weights, isa);
      CHECK(std::equal(floats.begin(), floats.end(), y.data()));
    }
  }
}

/// Few tokens; all heights of tiles (8 to 13 tokens) and two blocks of rows; one panel and two; inputs odd, fewer than
/// a block, and beyond one decoded strip of 256.
template <Scheme S, class Kernels = RegionKernels>
void check_shapes() {
  for (const Shape shape :
       {Shape{1, 33, 257}, Shape{3, 17, 33}, Shape{7, 16, 700}, Shape{8, 1, 1}, Shape{9, 33, 31}, Shape{10, 16, 32},
        Shape{11, 31, 33}, Shape{12, 48, 300}, Shape{13, 20, 511}, Shape{131, 18, 97}}) {
    check_shape<S, Kernels>(shape, oracle::Codes::random);
  }
}

template <int Bits, Zero Z>
void check_decoding() {
  constexpr Scheme S = make_scheme(Bits, 16, 96, Z);
  constexpr std::size_t inputs = 300;  // groups of 3, 3, 3 and 1 blocks
  for (const oracle::Codes codes : {oracle::Codes::random, oracle::Codes::lowest, oracle::Codes::highest}) {
    std::mt19937 random(Bits);
    const oracle::Weights w = oracle::weights(S.weight, 16, inputs, codes, random);
    const auto packed = PackedWeights<S>::from_codes(w.view());
    REQUIRE(packed);
    const support::Guarded<std::byte> bytes(std::span<const std::byte>(packed->view().data, packed->bytes()),
                                            support::Edge::end);
    for (const Isa isa : support::machine_isas()) {
      const Bfloat16Kernels kernels = RegionKernels::bfloat16_tile<Bits, Z>(isa);
      if (kernels.decode == nullptr) continue;
      for (const std::size_t first : {0u, 1u, 5u, 8u}) {
        CAPTURE(Bits, Z == Zero::affine, isa_name(isa), first);
        const PackedLayout& layout = packed->view().layout;
        PairDecodeJob job;
        job.panel = bytes.data();
        job.header_bytes = layout.header_bytes;
        job.group_bytes = layout.group_bytes;
        job.blocks_per_group = layout.blocks_per_group;
        job.first_block = first;
        job.blocks = layout.blocks - first;
        job.multiplier = packed->view().multiplier;
        const std::size_t groups = layout.groups - first / layout.blocks_per_group;
        const support::Guarded<std::uint32_t> pairs(job.blocks * 16 * 16, support::Edge::end);
        const support::Guarded<float> scales(groups * 16, support::Edge::end);
        job.pairs = pairs.data();
        job.scales = scales.data();
        kernels.decode(job);
        std::size_t wrong = 0;
        for (std::size_t k = first * 32; k < inputs; ++k) {
          for (std::size_t n = 0; n < 16; ++n) {
            const std::uint32_t pair = pairs.data()[(k - first * 32) / 2 * 16 + n];
            const bfloat16 level{static_cast<std::uint16_t>(k % 2 == 0 ? pair : pair >> 16)};
            wrong += to_float(level) != static_cast<float>(w.level(n, k));
            wrong += scales.data()[(k / 96 - first / 3) * 16 + n] != w.scale(n, k);
          }
        }
        CHECK(wrong == 0);
      }
    }
  }
}

}  // namespace

TEST_CASE("Pairs of bfloat16 are the exact levels of packed codes") {
  check_decoding<4, Zero::symmetric>();
  check_decoding<8, Zero::affine>();
#if !defined(__SANITIZE_ADDRESS__)  // each takes an instrumenting compiler long
  check_decoding<2, Zero::symmetric>();
  check_decoding<2, Zero::affine>();
  check_decoding<3, Zero::symmetric>();
  check_decoding<3, Zero::affine>();
  check_decoding<4, Zero::affine>();
  check_decoding<8, Zero::symmetric>();
#endif
}

TEST_CASE("Products of bfloat16 stay within their bound, and are those of floats where there are none") {
  check_shapes<schemes::w4a16_g32, PortableKernels>();
#if !defined(__SANITIZE_ADDRESS__)
  check_shapes<make_scheme(3, 16, 96, Zero::affine)>();
  check_shapes<make_scheme(8, 16, 0, Zero::affine)>();
#endif
}

TEST_CASE("A CPU without products of bfloat16 gives the bits of float products") {
  check_shapes<schemes::w4a16_g32, WithoutBfloat16>();
}

TEST_CASE("Extreme codes and activations times 8-bit weights stay within the bound") {
  constexpr Scheme S = make_scheme(8, 16, 0, Zero::affine);
  for (const oracle::Codes codes : {oracle::Codes::lowest, oracle::Codes::highest}) {
    check_shape<S>({9, 16, 600}, codes);
    std::mt19937 random(3);
    const oracle::Weights w = oracle::weights(S.weight, 16, 600, codes, random);
    const auto packed = PackedWeights<S>::from_codes(w.view());
    REQUIRE(packed);
    const std::vector<bfloat16> values(9 * 600, to_bfloat16(0x1.fep110f));
    const auto x = matrix_view<const bfloat16>(values.data(), 9, 600);
    for (const Isa isa : support::machine_isas()) {
      if (!has_products(isa)) continue;
      std::vector<float> y(9 * 16);
      REQUIRE(matmul(x, packed->view(), matrix_view(y.data(), 9, 16), {}, {}, isa));
      CHECK(beyond_bound(w, x, y.data()) == 0);
    }
  }
}

TEST_CASE("Denormal bfloat16 activations cost no more than the bound says") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(9);
  const oracle::Weights w = oracle::weights(S.weight, 20, 100, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  std::vector<bfloat16> values(10 * 100);
  for (std::size_t i = 0; i < values.size(); ++i) {
    // Below 2^-126 in the even rows, up to 2^-123 of either sign in the odd ones.
    values[i].bits = static_cast<std::uint16_t>(random() % (i / 100 % 2 == 0 ? 0x80u : 0x200u) | (random() % 2 << 15));
  }
  const auto x = matrix_view<const bfloat16>(values.data(), 10, 100);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    std::vector<float> y(10 * 20);
    REQUIRE(matmul(x, packed->view(), matrix_view(y.data(), 10, 20), {}, {}, isa));
    if (has_products(isa)) {
      CHECK(beyond_bound(w, x, y.data()) == 0);
    } else {
      CHECK(y == as_floats<S, RegionKernels>(x, packed->view(), isa));
    }
  }
}

TEST_CASE("bfloat16 activations with NaN or infinity give what floats give") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(11);
  const oracle::Weights w = oracle::weights(S.weight, 16, 70, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  for (const std::size_t tokens : {3u, 9u}) {
    std::vector<bfloat16> values(tokens * 70, to_bfloat16(0.5f));
    values[3].bits = 0x7fc0;                  // NaN in the first token
    values[70 + 69].bits = 0x7f80;            // infinity in the second, where levels of 0 make NaN of it
    values[(tokens - 1) * 70].bits = 0xff80;  // and its negative in the last
    values[(tokens - 1) * 70 + 1].bits = 0xff80;
    const auto x = matrix_view<const bfloat16>(values.data(), tokens, 70);
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa), tokens);
      std::vector<float> y(tokens * 16);
      REQUIRE(matmul(x, packed->view(), matrix_view(y.data(), tokens, 16), {}, {}, isa));
      const std::vector<float> floats = as_floats<S, RegionKernels>(x, packed->view(), isa);
      for (std::size_t i = 0; i < y.size(); ++i) {
        CAPTURE(i, y[i], floats[i]);
        CHECK(std::isnan(y[i]) == std::isnan(floats[i]));
        CHECK((y[i] == floats[i] || !std::isinf(floats[i])));
      }
      CHECK(std::isnan(y[0]));
      CHECK(!std::isfinite(y[16]));
      if (tokens > 3) CHECK(std::isfinite(y[2 * 16]));
    }
  }
}

TEST_CASE("Ranges, epilogues and result types of bfloat16 activations") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(5);
  const auto packed =
      PackedWeights<S>::from_codes(oracle::weights(S.weight, 50, 64, oracle::Codes::random, random).view());
  REQUIRE(packed);
  const std::vector<float> bias(50, 2.0f);
  for (const std::size_t tokens : {3u, 17u}) {
    CAPTURE(tokens);
    std::vector<bfloat16> values(tokens * 64);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = to_bfloat16(static_cast<float>(i % 9) - 4.0f);
    const auto x = matrix_view<const bfloat16>(values.data(), tokens, 64);
    std::vector<float> plain(tokens * 50);
    std::vector<bfloat16> rounded(tokens * 50);
    std::vector<float> y(tokens * 50, -7.0f);
    REQUIRE(matmul(x, packed->view(), matrix_view(plain.data(), tokens, 50)));
    REQUIRE(matmul(x, packed->view(), matrix_view(rounded.data(), tokens, 50)));
    REQUIRE(matmul_outputs(x, packed->view(), {32, 18}, matrix_view(y.data(), tokens, 50), AddBias{bias.data()}));
    for (std::size_t i = 0; i < y.size(); ++i) {
      CHECK(y[i] == (i % 50 < 32 ? -7.0f : plain[i] + 2.0f));
      CHECK(rounded[i] == to_bfloat16(plain[i]));
    }
  }
}

TEST_CASE("bfloat16 activations that do not fit are refused, and no tokens or inputs are no work") {
  constexpr Scheme S = schemes::w4a16_g32;
  std::mt19937 random(5);
  const auto packed =
      PackedWeights<S>::from_codes(oracle::weights(S.weight, 20, 64, oracle::Codes::random, random).view());
  REQUIRE(packed);
  for (const std::size_t tokens : {2u, 9u}) {
    CAPTURE(tokens);
    const std::vector<bfloat16> values(tokens * 64, to_bfloat16(0.5f));
    std::vector<float> y(tokens * 20, -1.0f);
    const auto x = matrix_view<const bfloat16>(values.data(), tokens, 64);
    const auto view = matrix_view(y.data(), tokens, 20);
    const auto none = matrix_view<const bfloat16>(nullptr, tokens, 64);
    const MatrixView<const bfloat16> overlapping{values.data(), tokens, 64, 63};
    PackedWeightsView<S> no_weights = packed->view();
    no_weights.data = nullptr;
    CHECK(matmul(none, packed->view(), view).error().code == Errc::bad_argument);
    CHECK(matmul(x, no_weights, view).error().code == Errc::bad_argument);
    CHECK(matmul(x, packed->view(), matrix_view<float>(nullptr, tokens, 20)).error().code == Errc::bad_argument);
    CHECK(matmul(overlapping, packed->view(), view).error().code == Errc::bad_shape);
    CHECK(matmul(columns(x, 0, 63), packed->view(), view).error().code == Errc::bad_shape);
    CHECK(matmul(x, packed->view(), matrix_view(y.data(), tokens, 19)).error().code == Errc::bad_shape);
    CHECK(matmul(x, packed->view(), view, AddBias{}).error().code == Errc::bad_shape);
    CHECK(matmul_outputs(x, packed->view(), {8, 8}, view).error().code == Errc::bad_argument);
    CHECK(y == std::vector<float>(y.size(), -1.0f));
    const auto no_inputs =
        PackedWeights<S>::from_codes(oracle::weights(S.weight, 20, 0, oracle::Codes::random, random).view());
    REQUIRE(no_inputs);
    REQUIRE(matmul(matrix_view<const bfloat16>(nullptr, tokens, 0), no_inputs->view(), view));
    CHECK(y == std::vector<float>(y.size(), 0.0f));
  }
  CHECK(matmul(matrix_view<const bfloat16>(nullptr, 0, 64), packed->view(), matrix_view<float>(nullptr, 0, 20)));
}
