// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/trip_linear.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include <cbq/nn/any_linear.hpp>

#include "oracle/gemm.hpp"
#include "oracle/nn.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"

using namespace cbq;

namespace {

constexpr Scheme symmetric = with_tensor_activations(schemes::w4a4);
constexpr Scheme affine = with_tensor_activations(make_scheme(4, 4, 0, Zero::affine));
constexpr Scheme eight = with_tensor_activations(schemes::w4a8);

/// Weights on powers of two, so that sums of integers times scales are exact.
oracle::Weights weights_of(const Grid& grid, std::size_t outputs, std::size_t inputs) {
  std::mt19937 random(3);
  oracle::Weights w = oracle::weights(grid, outputs, inputs, oracle::Codes::random, random);
  for (float& scale : w.scales) scale = 0x1p-4f;
  return w;
}

std::vector<std::uint8_t> exponents_of(std::size_t inputs, unsigned largest) {
  std::vector<std::uint8_t> exponents(inputs);
  for (std::size_t c = 0; c < inputs; ++c) exponents[c] = static_cast<std::uint8_t>(c * c % (largest + 1));
  return exponents;
}

/// Codes of one activation under its channel's step.
int code_of(float x, const Grid& grid, const ChannelFactors& factors, std::size_t channel) {
  const float step = std::ldexp(factors.grid.scale, factors.exponents[channel]);
  const float levels = grid.zero == Zero::affine ? 15.0f : grid.bits == 8 ? 127.0f : 7.0f;
  const auto zero = static_cast<float>(factors.grid.zero);
  const float low = grid.zero == Zero::affine ? -zero : -levels;
  return static_cast<int>(
      std::clamp(std::nearbyint(x / step), low, low + (grid.zero == Zero::affine ? 15.0f : 2 * levels)));
}

/// acc += (q_w q_x) << alpha, in integers.
template <Scheme S>
std::int64_t shifted_sum(const oracle::Weights& w, const float* x, const ChannelFactors& factors, std::size_t output) {
  std::int64_t sum = 0;
  for (std::size_t k = 0; k < w.inputs; ++k) {
    const int product = w.level(output, k) * code_of(x[k], S.activation, factors, k);
    sum += static_cast<std::int64_t>(product) * (std::int64_t{1} << factors.exponents[k]);
  }
  return sum;
}

template <Scheme S>
void check_sums(std::size_t inputs, std::size_t tokens, unsigned largest, Isa isa) {
  CAPTURE(scheme_name(S).c_str(), inputs, tokens, isa_name(isa));
  const std::size_t outputs = 37;
  const oracle::Weights w = weights_of(S.weight, outputs, inputs);
  const auto exponents = exponents_of(inputs, largest);
  const ChannelFactors factors = {exponents, {0x1p-3f, S.activation.zero == Zero::affine ? 6 : 0}};
  const auto op = TripLinear<S>::create(w.view(), factors);
  REQUIRE(op);
  CHECK(op->products() == std::set<int>(exponents.begin(), exponents.end()).size());
  auto x = support::normal(tokens * inputs, 5);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= std::exp2(static_cast<float>(exponents[i % inputs]));
  const support::ThreadExecutor threads{3};
  ExecutionContext<support::ThreadExecutor> context(threads, isa);
  const Workspace::Frame frame(context.workspace());
  LinearInput input(support::input(x, inputs));
  std::vector<float> y(tokens * outputs);
  REQUIRE(op->forward(input, {support::view(y, outputs), {}}, context));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::int64_t sum = shifted_sum<S>(w, x.data() + i / outputs * inputs, factors, i % outputs);
    REQUIRE(std::abs(sum) < 1 << 24);  // exact in float
    wrong += y[i] == static_cast<float>(sum) * 0x1p-7f ? 0u : 1u;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("Products per class of channels are the shifted integer sums, bit for bit") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  for (const std::size_t inputs : {1u, 31u, 33u, 200u}) {
    for (const std::size_t tokens : {1u, 5u, 45u}) {
      check_sums<symmetric>(inputs, tokens, 3, isa);
      check_sums<affine>(inputs, tokens, 5, isa);
      check_sums<eight>(inputs, tokens, 1, isa);
    }
  }
}

TEST_CASE("Factors at run time compute what factors folded into the weights do") {
  // Form A: the input divided, the columns multiplied. With weights on floats both are the same sums of products.
  const std::size_t outputs = 21, inputs = 96, tokens = 7;
  const oracle::Weights w = weights_of(symmetric.weight, outputs, inputs);
  const auto exponents = exponents_of(inputs, 3);
  const auto bias = support::normal(outputs, 6);
  const ChannelFactors factors = {exponents, {0.17f, 0}};
  const auto op = TripLinear<symmetric>::create(w.view(), factors, bias);
  REQUIRE(op);
  std::vector<float> multipliers(inputs), folded(outputs * inputs), row(inputs);
  REQUIRE(trip_multipliers(exponents, multipliers));
  for (std::size_t n = 0; n < outputs; ++n) {
    op->weight_row(n, row.data());
    for (std::size_t k = 0; k < inputs; ++k) {
      CHECK(row[k] == w.scale(n, k) * static_cast<float>(w.level(n, k)));
      folded[n * inputs + k] = row[k] * multipliers[k];
    }
  }
  const auto dense = DenseLinear<float>::create(support::input(folded, inputs), bias);
  REQUIRE(dense);
  const auto x = support::normal(tokens * inputs, 5, 3.0f);
  std::vector<float> divided = x, rounded(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) divided[i] /= multipliers[i % inputs];
  REQUIRE(fake_quantize_activations(support::input(divided, inputs), symmetric.activation,
                                    support::view(rounded, inputs), {.fixed = factors.grid}));
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Workspace::Frame frame(context.workspace());
  const auto residual = support::normal(tokens * outputs, 8);
  LinearInput input(support::input(x, inputs)), other(support::input(rounded, inputs));
  std::vector<float> y(tokens * outputs), wanted(tokens * outputs);
  REQUIRE(op->forward(input, {support::view(y, outputs), support::input(residual, outputs)}, context));
  REQUIRE(dense->forward(other, {support::view(wanted, outputs), support::input(residual, outputs)}, context));
  CHECK(oracle::distance(y, oracle::Matrix(tokens, outputs, wanted)) < 1e-6);
}

TEST_CASE("All classes are quantized before the result is written: a NaN leaves it, and it may overwrite the input") {
  const std::size_t inputs = 40, outputs = 37, tokens = 3;
  const oracle::Weights w = weights_of(symmetric.weight, outputs, inputs);
  const auto exponents = exponents_of(inputs, 3);
  const auto op = TripLinear<symmetric>::create(w.view(), {exponents, {0.17f, 0}});
  REQUIRE(op);
  REQUIRE(op->products() > 1);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Workspace::Frame frame(context.workspace());
  auto x = support::normal(tokens * inputs, 5);
  std::vector<float> y(tokens * outputs, 7.0f);
  const auto last = std::max_element(exponents.begin(), exponents.end()) - exponents.begin();
  auto& bad = x[inputs + static_cast<std::size_t>(last)];
  const float good = std::exchange(bad, NAN);
  LinearInput refused(support::input(x, inputs));
  const Status status = op->forward(refused, {support::view(y, outputs), {}}, context);
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Errc::not_finite);
  CHECK(std::count(y.begin(), y.end(), 7.0f) == static_cast<std::ptrdiff_t>(y.size()));
  bad = good;
  LinearInput input(support::input(x, inputs));
  REQUIRE(op->forward(input, {support::view(y, outputs), {}}, context));
  LinearInput same(support::input(x, inputs));
  REQUIRE(op->forward(same, {{x.data(), tokens, outputs, inputs}, {}}, context));
  for (std::size_t t = 0; t < tokens; ++t) {
    CHECK(std::equal(x.data() + t * inputs, x.data() + t * inputs + outputs, y.data() + t * outputs));
  }
}

TEST_CASE("Tokens of fewer bits have a coarser step in every class") {
  const std::size_t inputs = 70, outputs = 9, tokens = 5;
  const oracle::Weights w = weights_of(eight.weight, outputs, inputs);
  const auto exponents = exponents_of(inputs, 3);
  const float scale = 7.0f / 127.0f * 0x1p-3f;
  const auto op = TripLinear<eight>::create(w.view(), {exponents, {scale, 0}});
  REQUIRE(op);
  const std::vector<std::uint8_t> bits = {8, 4, 4, 8, 4};
  const auto x = support::normal(tokens * inputs, 5);
  oracle::Matrix wanted(tokens, outputs);
  for (std::size_t t = 0; t < tokens; ++t) {
    const float levels = bits[t] == 8 ? 127.0f : 7.0f;
    for (std::size_t n = 0; n < outputs; ++n) {
      double sum = 0;
      for (std::size_t k = 0; k < inputs; ++k) {
        const float step = std::ldexp(scale * 127.0f / levels, exponents[k]);
        const float value = std::clamp(std::nearbyint(x[t * inputs + k] / step), -levels, levels) * step;
        sum += static_cast<double>(value * w.scale(n, k)) * w.level(n, k);
      }
      wanted(t, n) = sum;
    }
  }
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Workspace::Frame frame(context.workspace());
  LinearInput input(support::input(x, inputs), {bits});
  std::vector<float> y(tokens * outputs);
  REQUIRE(op->forward(input, {support::view(y, outputs), {}}, context));
  CHECK(oracle::distance(y, wanted) < 1e-6);
}

TEST_CASE("Factors that do not fit are refused when weights are packed") {
  const oracle::Weights w = weights_of(symmetric.weight, 3, 40);
  std::vector<std::uint8_t> exponents(40);
  const auto code = [&](const StaticGrid& grid) {
    const auto op = TripLinear<symmetric>::create(w.view(), {exponents, grid});
    REQUIRE_FALSE(op);
    return op.error().code;
  };
  CHECK(code({1.0f, 1}) == Errc::bad_argument);
  CHECK(code({NAN, 0}) == Errc::bad_argument);
  exponents[3] = 21;
  CHECK(code({1.0f, 0}) == Errc::bad_argument);
  std::fill(exponents.begin(), exponents.end(), std::uint8_t{20});  // shifts are the scales': no sum overflows
  CHECK(TripLinear<symmetric>::create(w.view(), {exponents, {1.0f, 0}}));
  exponents.assign(39, 0);
  CHECK(code({1.0f, 0}) == Errc::bad_shape);
  exponents.assign(40, 0);
  CHECK(TripLinear<symmetric>::create(w.view(), {exponents, {1.0f, 0}}, std::vector<float>(2)).error().code ==
        Errc::bad_shape);
  exponents[1] = 4;
  CHECK(code({0x1p125f, 0}) == Errc::bad_argument);  // the step of the class leaves float
  const auto none = TripLinear<symmetric>::create(weights_of(symmetric.weight, 3, 0).view(), {});
  CHECK(none);
}
