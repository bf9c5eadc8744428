// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/matmul.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
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

/// y from the definition: int64 sums per group, then float in the documented order (one fused multiply-add per group,
/// by the product of both scales where activations have one per group).
template <Scheme S>
std::vector<float> expected(const QuantizedActivationsView<S>& x, const oracle::Weights& w, float multiplier) {
  std::vector<float> y(x.tokens * w.outputs);
  for (std::size_t t = 0; t < x.tokens; ++t) {
    for (std::size_t n = 0; n < w.outputs; ++n) {
      float total = 0.0f;
      for (std::size_t g = 0; g < w.groups; ++g) {
        std::int64_t sum = 0;
        for (std::size_t k = g * w.group; k < std::min(w.inputs, (g + 1) * w.group); ++k) {
          sum += static_cast<std::int64_t>(w.level(n, k)) *
                 oracle::activation_code(x, t, k, w.group, x.layout.blocks_per_group);
        }
        const float scale = w.scales[n * w.groups + g] / multiplier * oracle::group_scale(x, t, g);
        total = std::fma(scale, static_cast<float>(sum), total);
      }
      y[t * w.outputs + n] = total * (x.scales[t] * multiplier);
    }
  }
  return y;
}

/// Activations whose codes reach both ends of their range in every row.
std::vector<float> activations(std::size_t tokens, std::size_t inputs, oracle::Codes kind, std::mt19937& random) {
  std::vector<float> x(tokens * inputs);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float sign = i % 2 == 0 ? 1.0f : -1.0f;
    x[i] = kind == oracle::Codes::random ? normal(random) : kind == oracle::Codes::highest ? 3.0f : 3.0f * sign;
  }
  return x;
}

/// Quantized activations whose parts end where forbidden pages begin.
template <Scheme S>
struct GuardedActivations {
  explicit GuardedActivations(const QuantizedActivationsView<S>& x)
      : codes(std::span(x.codes, x.tokens * row_codes(x.layout, x.shape)), support::Edge::end),
        zero_terms(std::span(x.zero_terms, x.tokens * x.layout.groups), support::Edge::end),
        scales(std::span(x.scales, x.tokens), support::Edge::end),
        group_scales(std::span(x.group_scales, x.group_scales == nullptr ? 0 : x.tokens * x.layout.groups),
                     support::Edge::end),
        view(x) {
    view.codes = codes.data();
    view.zero_terms = zero_terms.data();
    view.scales = scales.data();
    if (x.group_scales != nullptr) view.group_scales = group_scales.data();
  }
  support::Guarded<std::int8_t> codes;
  support::Guarded<std::int32_t> zero_terms;
  support::Guarded<float> scales;
  support::Guarded<float> group_scales;
  QuantizedActivationsView<S> view;
};

template <Scheme S>
void check_shape(Shape shape, oracle::Codes kind = oracle::Codes::random) {
  std::mt19937 random(static_cast<unsigned>(shape.tokens * 1000 + shape.outputs * 10 + shape.inputs));
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, kind, random);
  const std::vector<float> x = activations(shape.tokens, shape.inputs, kind, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  // The packed bytes and the quantized activations end where a forbidden page begins; so does y.
  const support::Guarded<std::byte> bytes(std::span<const std::byte>(packed->view().data, packed->bytes()),
                                          support::Edge::end);
  PackedWeightsView<S> weights = packed->view();
  weights.data = bytes.data();
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(scheme_name(S).c_str(), shape.tokens, shape.outputs, shape.inputs, isa_name(isa));
    QuantizedActivations<S> quantized;
    REQUIRE(quantized.quantize(matrix_view<const float>(x.data(), shape.tokens, shape.inputs), SerialExecutor{}, isa));
    const support::Guarded<float> y(shape.tokens * shape.outputs, support::Edge::end);
    std::fill(y.span().begin(), y.span().end(), std::numeric_limits<float>::quiet_NaN());
    const GuardedActivations<S> guarded(quantized.view());
    REQUIRE(matmul<S, NoEpilogue, PortableKernels>(guarded.view, weights,
                                                   matrix_view(y.data(), shape.tokens, shape.outputs), {}, {}, isa));
    const std::vector<float> want = expected(guarded.view, w, packed->view().multiplier);
    CHECK(std::equal(want.begin(), want.end(), y.data()));
  }
}

template <Scheme S>
void check_shapes() {
  for (const Shape shape :
       {Shape{1, 1, 1}, Shape{2, 15, 31}, Shape{3, 16, 32}, Shape{4, 17, 33}, Shape{5, 31, 97}, Shape{6, 32, 128},
        Shape{19, 33, 160}, Shape{20, 48, 256}, Shape{21, 37, 257}, Shape{41, 64, 65}, Shape{16, 16, 64},
        Shape{31, 48, 192}, Shape{33, 32, 320}, Shape{65, 33, 127}}) {
    check_shape<S>(shape);
  }
  check_shape<S>({3, 33, 256}, oracle::Codes::lowest);
  check_shape<S>({7, 33, 256}, oracle::Codes::highest);
}

struct ThreadExecutor {  // more threads than pieces, in no order
  std::size_t threads = 7;
  [[nodiscard]] std::size_t concurrency() const { return threads; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    std::vector<std::thread> workers;
    for (std::size_t t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        for (std::size_t i = t; i < count; i += threads) task(count - 1 - i);
      });
    }
    for (std::thread& worker : workers) worker.join();
  }
};

}  // namespace

TEST_CASE("Every kernel equals the definition bit for bit: 4-bit weights") {
  check_shapes<schemes::w4a8_g32>();
  check_shapes<make_scheme(4, 8, 64, Zero::affine)>();
  check_shapes<schemes::w4a8_g128>();
  check_shapes<make_scheme(4, 8, 0, Zero::affine)>();
}

TEST_CASE("Every kernel equals the definition bit for bit: 2, 3 and 8-bit weights") {
  check_shapes<make_scheme(2, 8, 64, Zero::affine)>();
  check_shapes<make_scheme(2, 8, 32, Zero::symmetric)>();
  check_shapes<make_scheme(3, 8, 96, Zero::symmetric)>();
  check_shapes<make_scheme(3, 8, 0, Zero::affine)>();
  check_shapes<schemes::w8a8>();
  check_shapes<make_scheme(8, 8, 32, Zero::affine)>();
}

TEST_CASE("Every kernel equals the definition bit for bit: 4-bit activations") {
  check_shapes<schemes::w4a4>();
  check_shape<schemes::w4a4>({21, 17, 608}, oracle::Codes::highest);  // more than two runs of int16 sums
  check_shapes<make_scheme(4, 4, 32, Zero::affine)>();
  check_shapes<make_scheme(8, 4, 0, Zero::symmetric)>();
}

TEST_CASE("Every kernel equals the definition bit for bit: activations per group") {
  check_shapes<schemes::w4a8_g32_act_group>();
  check_shapes<with_activation_groups(make_scheme(8, 8, 64, Zero::affine))>();
  check_shapes<with_activation_groups(make_scheme(3, 8, 96, Zero::symmetric))>();
  check_shapes<with_activation_groups(make_scheme(2, 8, 128, Zero::affine))>();
}

TEST_CASE("Every height of an activation panel equals the definition") {
  // Kernels have a tile of their own for most heights; per channel, 5 blocks are more than one piece of a group.
  for (std::size_t tokens = 1; tokens <= activation_panel_rows; ++tokens) {
    check_shape<schemes::w4a8_g32>({tokens, 17, 65}, oracle::Codes::highest);
    check_shape<make_scheme(3, 8, 0, Zero::affine)>({tokens, 33, 160});
    check_shape<make_scheme(8, 8, 32, Zero::affine)>({tokens, 31, 33}, oracle::Codes::lowest);
    check_shape<schemes::w8a8>({tokens, 16, 161});
    check_shape<schemes::w4a8_g32_act_group>({tokens, 33, 97});
  }
}

TEST_CASE("Long sums of extreme codes stay exact") {
  // 8-bit codes at 65536 inputs per channel come closest to the end of int32.
  check_shape<schemes::w8a8>({1, 3, 65536}, oracle::Codes::highest);
  check_shape<make_scheme(8, 8, 0, Zero::affine)>({1, 3, 65536}, oracle::Codes::lowest);
  check_shape<schemes::w4a8>({2, 3, 16384}, oracle::Codes::highest);
  check_shape<make_scheme(2, 8, 0, Zero::affine)>({5, 3, 8192}, oracle::Codes::highest);
  // AMX subtracts 128 from 8-bit codes and, where they are affine, adds what is left of the zero point afterwards.
  check_shape<schemes::w8a8>({16, 3, 65536}, oracle::Codes::highest);
  check_shape<make_scheme(8, 8, 0, Zero::affine)>({17, 3, 65536}, oracle::Codes::lowest);
}

TEST_CASE("Groups longer than what AMX kernels decode at a time, and more rows than they keep sums of") {
  check_shape<schemes::w4a8>({130, 48, 2048 + 33});
  check_shape<make_scheme(4, 8, 0, Zero::affine)>({161, 17, 1100});
  check_shape<schemes::w4a8_g128>({300, 32, 2304});
  check_shape<schemes::w4a8_g32>({257, 16, 1120});
  check_shape<schemes::w4a8_g32_act_group>({257, 17, 1120});
  check_shape<with_activation_groups(make_scheme(4, 8, 1024, Zero::affine))>({161, 33, 1100});
}

TEST_CASE("Activations per group stay close to the float product, however far their groups lie apart") {
  constexpr Scheme S = schemes::w4a8_g32_act_group;
  constexpr Shape shape{23, 19, 150};  // the last group has 22 inputs
  std::mt19937 random(9);
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  // At 1e36 a product of both scales alone would be infinite, at 1e-29 it would be denormal.
  for (const float size : {1.0f, 1e36f, 1e-29f}) {
    std::vector<float> x = activations(shape.tokens, shape.inputs, oracle::Codes::random, random);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t group = i % shape.inputs / 32;
      // Groups of very different sizes, and one of zeros.
      x[i] *= group == 2 ? 0.0f : group == 1 ? 0x1p-9f * size : size;
    }
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa), size);
      QuantizedActivations<S> quantized;
      REQUIRE(
          quantized.quantize(matrix_view<const float>(x.data(), shape.tokens, shape.inputs), SerialExecutor{}, isa));
      std::vector<float> y(shape.tokens * shape.outputs);
      REQUIRE(matmul<S, NoEpilogue, PortableKernels>(quantized.view(), packed->view(),
                                                     matrix_view(y.data(), shape.tokens, shape.outputs), {}, {}, isa));
      double worst = 0;
      for (std::size_t t = 0; t < shape.tokens; ++t) {
        for (std::size_t n = 0; n < shape.outputs; ++n) {
          double sum = 0, bound = 0;
          for (std::size_t g = 0; g < w.groups; ++g) {
            double largest = 0, weights = 0;
            for (std::size_t k = g * 32; k < std::min(shape.inputs, (g + 1) * 32); ++k) {
              const double weight = static_cast<double>(w.scale(n, k)) * w.level(n, k);
              const double value = static_cast<double>(x[t * shape.inputs + k]);
              sum += weight * value;
              weights += std::fabs(weight);
              largest = std::max(largest, std::fabs(value));
            }
            bound += 0.5 / 127 * largest * weights;  // half a step of the group for each input
          }
          worst = std::max(worst, std::fabs(static_cast<double>(y[t * shape.outputs + n]) - sum) / bound);
        }
      }
      CHECK(worst < 1.0001);
      CHECK(worst > 0.05);
    }
  }
}

TEST_CASE("Group scales belong to activations per group, and only there") {
  constexpr Scheme S = schemes::w4a8_g32_act_group;
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, 8, 64, oracle::Codes::random, random);
  const auto grouped = PackedWeights<S>::from_codes(w.view());
  const auto whole = PackedWeights<schemes::w4a8_g32>::from_codes(w.view());
  const std::vector<float> x(64 * 2, 1.0f);
  QuantizedActivations<S> quantized;
  REQUIRE((grouped && whole && quantized.quantize(matrix_view<const float>(x.data(), 2, 64))));
  std::vector<float> y(16, -1.0f);
  const auto view = matrix_view(y.data(), 2, 8);
  QuantizedActivationsView<S> without = quantized.view();
  without.group_scales = nullptr;
  CHECK(matmul(without, grouped->view(), view).error().code == Errc::bad_argument);
  const QuantizedActivationsView<schemes::w4a8_g32> foreign{{quantized.view()}};
  CHECK(matmul(foreign, whole->view(), view).error().code == Errc::bad_argument);
  CHECK(y == std::vector<float>(y.size(), -1.0f));
}

TEST_CASE("Activations in panels for AMX want AMX kernels") {
  if (capped(Isa::amx_int8) != Isa::amx_int8) SKIP("no AMX here");
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, 16, 32, oracle::Codes::random, random);
  const std::vector<float> x = activations(16, 32, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  QuantizedActivations<S> quantized;
  REQUIRE((packed && quantized.quantize(matrix_view<const float>(x.data(), 16, 32))));
  std::vector<float> y(16 * 16, -1.0f);
  const auto view = matrix_view(y.data(), 16, 16);
  const Status lower = matmul(quantized.view(), packed->view(), view, NoEpilogue{}, SerialExecutor{}, Isa::avx512_vnni);
  REQUIRE_FALSE(lower);
  CHECK(lower.error().code == Errc::bad_argument);
  CHECK(y[0] == -1.0f);
}

TEST_CASE("Executors, thread counts and ranges of outputs do not change a bit") {
  constexpr Scheme S = schemes::w4a8_g32;
  constexpr Shape shape{263, 200, 96};  // two pieces of tokens, seven of outputs
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
  const std::vector<float> x = activations(shape.tokens, shape.inputs, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  QuantizedActivations<S> quantized;
  REQUIRE(quantized.quantize(matrix_view<const float>(x.data(), shape.tokens, shape.inputs), ThreadExecutor{}));
  const std::vector<float> want = expected(quantized.view(), w, packed->view().multiplier);

  std::vector<float> y(want.size());
  const auto view = matrix_view(y.data(), shape.tokens, shape.outputs);
  for (const std::size_t threads : {1u, 2u, 3u, 64u}) {
    std::fill(y.begin(), y.end(), -1.0f);
    REQUIRE(matmul(quantized.view(), packed->view(), view, NoEpilogue{}, ThreadExecutor{threads}));
    CHECK(y == want);
  }
  std::fill(y.begin(), y.end(), -1.0f);
  for (const OutputRange range : {OutputRange{0, 16}, OutputRange{16, 53 - 16 + 11}, OutputRange{64, 136}}) {
    REQUIRE(matmul_outputs(quantized.view(), packed->view(), range, view));
  }
  CHECK(y == want);
}

TEST_CASE("A range writes its own columns only") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, 64, 32, oracle::Codes::random, random);
  const std::vector<float> x = activations(3, 32, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  QuantizedActivations<S> quantized;
  REQUIRE((packed && quantized.quantize(matrix_view<const float>(x.data(), 3, 32))));
  std::vector<float> y(3 * 64, -1.0f);
  const auto view = matrix_view(y.data(), 3, 64);
  REQUIRE(matmul_outputs(quantized.view(), packed->view(), {16, 19}, view));
  for (std::size_t i = 0; i < y.size(); ++i) CHECK((y[i] == -1.0f) == (i % 64 < 16 || i % 64 >= 35));
  CHECK(matmul_outputs(quantized.view(), packed->view(), {8, 16}, view).error().code == Errc::bad_argument);
  CHECK(matmul_outputs(quantized.view(), packed->view(), {48, 17}, view).error().code == Errc::bad_argument);
  CHECK(matmul_outputs(quantized.view(), packed->view(), {80, 0}, view).error().code == Errc::bad_argument);
}

TEST_CASE("Epilogues see the finished product and its place") {
  constexpr Scheme S = schemes::w4a8_g32;
  constexpr Shape shape{23, 37, 64};
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
  const std::vector<float> x = activations(shape.tokens, shape.inputs, oracle::Codes::random, random);
  const std::vector<float> other = activations(shape.tokens, shape.outputs, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  QuantizedActivations<S> quantized;
  REQUIRE((packed && quantized.quantize(matrix_view<const float>(x.data(), shape.tokens, shape.inputs))));
  const std::vector<float> product = expected(quantized.view(), w, packed->view().multiplier);
  std::vector<float> y(product.size());
  const auto view = matrix_view(y.data(), shape.tokens, shape.outputs);
  const auto matrix = matrix_view<const float>(other.data(), shape.tokens, shape.outputs);

  REQUIRE(matmul(quantized.view(), packed->view(), view, AddBias{other.data()}));
  for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == product[i] + other[i % shape.outputs]);
  REQUIRE(matmul(quantized.view(), packed->view(), view, AddResidual{matrix}));
  for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == product[i] + other[i]);
  REQUIRE(matmul(quantized.view(), packed->view(), view, SiluMultiply{matrix}));
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double gate = other[i];
    REQUIRE_THAT(y[i], Catch::Matchers::WithinRel(product[i] * gate / (1.0 + std::exp(-gate)), 1e-5) ||
                           Catch::Matchers::WithinAbs(0.0, 1e-30));
  }
}

TEST_CASE("A residual may be the result itself, strides may be wider than rows") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, 32, 32, oracle::Codes::random, random);
  const std::vector<float> x = activations(2, 40, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  QuantizedActivations<S> quantized;
  REQUIRE((packed && quantized.quantize(MatrixView<const float>{x.data() + 3, 2, 32, 36})));
  const std::vector<float> want = expected(quantized.view(), w, packed->view().multiplier);
  std::vector<float> y(2 * 50, -1.0f);
  REQUIRE(matmul(quantized.view(), packed->view(), MatrixView<float>{y.data(), 2, 32, 50}));
  for (std::size_t i = 0; i < y.size(); ++i) CHECK(y[i] == (i % 50 < 32 ? want[i / 50 * 32 + i % 50] : -1.0f));
}

TEST_CASE("Shapes that do not fit are refused") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(5);
  const auto packed =
      PackedWeights<S>::from_codes(oracle::weights(S.weight, 8, 64, oracle::Codes::random, random).view());
  const std::vector<float> x(64 * 2, 1.0f);
  QuantizedActivations<S> wide;
  QuantizedActivations<S> narrow;
  REQUIRE((packed && wide.quantize(matrix_view<const float>(x.data(), 2, 64)) &&
           narrow.quantize(matrix_view<const float>(x.data(), 2, 32))));
  std::vector<float> y(64);
  CHECK(matmul(narrow.view(), packed->view(), matrix_view(y.data(), 2, 8)).error().code == Errc::bad_shape);
  CHECK(matmul(wide.view(), packed->view(), matrix_view(y.data(), 2, 9)).error().code == Errc::bad_shape);
  CHECK(matmul(wide.view(), packed->view(), matrix_view(y.data(), 3, 8)).error().code == Errc::bad_shape);
  CHECK(matmul(wide.view(), packed->view(), MatrixView<float>{y.data(), 2, 8, 4}).error().code == Errc::bad_shape);
  CHECK(matmul(wide.view(), packed->view(), matrix_view(y.data(), 2, 8)));
}

TEST_CASE("Null memory is refused where there is something to read or write") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(5);
  const auto packed =
      PackedWeights<S>::from_codes(oracle::weights(S.weight, 8, 64, oracle::Codes::random, random).view());
  const std::vector<float> x(64 * 2, 1.0f);
  QuantizedActivations<S> quantized;
  REQUIRE((packed && quantized.quantize(matrix_view<const float>(x.data(), 2, 64))));
  std::vector<float> y(16, -1.0f);
  const auto view = matrix_view(y.data(), 2, 8);
  const auto code = [&](const QuantizedActivationsView<S>& activations, const PackedWeightsView<S>& weights,
                        const MatrixView<float>& result) {
    const Status done = matmul(activations, weights, result);
    return done ? Errc{} : done.error().code;
  };
  CHECK(code(quantized.view(), packed->view(), matrix_view<float>(nullptr, 2, 8)) == Errc::bad_argument);
  PackedWeightsView<S> no_weights = packed->view();
  no_weights.data = nullptr;
  CHECK(code(quantized.view(), no_weights, view) == Errc::bad_argument);
  for (int part = 0; part < 3; ++part) {
    QuantizedActivationsView<S> nothing = quantized.view();
    if (part == 0) nothing.codes = nullptr;
    if (part == 1) nothing.zero_terms = nullptr;
    if (part == 2) nothing.scales = nullptr;
    CHECK(code(nothing, packed->view(), view) == Errc::bad_argument);
  }
  CHECK(matmul(quantized.view(), packed->view(), view, AddBias{}).error().code == Errc::bad_shape);
  CHECK(matmul(quantized.view(), packed->view(), view, AddResidual{as_const(rows(view, 0, 1))}).error().code ==
        Errc::bad_shape);
  CHECK(y == std::vector<float>(y.size(), -1.0f));
}

TEST_CASE("Without tokens or outputs nothing happens; without inputs the epilogue sees zeros") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::mt19937 random(5);
  const float bias[] = {1.0f, 2.0f, 3.0f};
  for (const Shape shape : {Shape{0, 3, 32}, Shape{2, 0, 32}, Shape{2, 3, 0}, Shape{0, 0, 0}}) {
    CAPTURE(shape.tokens, shape.outputs, shape.inputs);
    const auto packed = PackedWeights<S>::from_codes(
        oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random).view());
    const std::vector<float> x(shape.tokens * shape.inputs, 1.0f);
    std::vector<float> y(shape.tokens * shape.outputs, -1.0f);
    for (const Isa isa : support::machine_isas()) {
      QuantizedActivations<S> quantized;
      REQUIRE((packed && quantized.quantize(matrix_view<const float>(x.data(), shape.tokens, shape.inputs),
                                            SerialExecutor{}, isa)));
      REQUIRE(matmul(quantized.view(), packed->view(), matrix_view(y.data(), shape.tokens, shape.outputs),
                     AddBias{bias}, SerialExecutor{}, isa));
      for (std::size_t i = 0; i < y.size(); ++i) CHECK(y[i] == bias[i % shape.outputs]);
    }
  }
}

TEST_CASE("Weights lie on any byte, activations and results on any element") {
  constexpr Scheme S = make_scheme(3, 8, 32, Zero::affine);
  constexpr Shape shape{6, 33, 70};
  std::mt19937 random(5);
  const oracle::Weights w = oracle::weights(S.weight, shape.outputs, shape.inputs, oracle::Codes::random, random);
  const std::vector<float> x = activations(shape.tokens, shape.inputs, oracle::Codes::random, random);
  const auto packed = PackedWeights<S>::from_codes(w.view());
  REQUIRE(packed);
  for (const Isa isa : support::machine_isas()) {
    for (std::size_t shift = 0; shift < 5; ++shift) {
      std::vector<std::byte> bytes(packed->bytes() + shift);
      std::copy_n(packed->view().data, packed->bytes(), bytes.begin() + static_cast<std::ptrdiff_t>(shift));
      PackedWeightsView<S> weights = packed->view();
      weights.data = bytes.data() + shift;
      std::vector<float> input(x.size() + shift), y(shape.tokens * shape.outputs + shift);
      std::copy(x.begin(), x.end(), input.begin() + static_cast<std::ptrdiff_t>(shift));
      std::vector<std::int32_t> memory(*activations_size<S>(shape.tokens, shape.inputs) / 4 + 1 + shift);
      const auto quantized =
          quantize_activations<S>(matrix_view<const float>(input.data() + shift, shape.tokens, shape.inputs),
                                  std::as_writable_bytes(std::span(memory)).subspan(4 * shift), SerialExecutor{}, isa);
      REQUIRE(quantized);
      REQUIRE(matmul(*quantized, weights, matrix_view(y.data() + shift, shape.tokens, shape.outputs), NoEpilogue{},
                     SerialExecutor{}, isa));
      const std::vector<float> want = expected(*quantized, w, packed->view().multiplier);
      CAPTURE(isa_name(isa), shift);
      CHECK(std::equal(want.begin(), want.end(), y.begin() + static_cast<std::ptrdiff_t>(shift)));
    }
  }
}
