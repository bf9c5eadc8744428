// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/grouped_matmul.hpp>

#include <atomic>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include <catch2/catch_test_macros.hpp>

#include "oracle/gemm.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"

using namespace cbq;

namespace {

constexpr Scheme S = schemes::w4a8_g32;
using Packed = PackedWeights<S>;

Packed packed_weights(std::size_t outputs, std::size_t inputs, std::mt19937& random) {
  auto packed = Packed::from_codes(oracle::weights(S.weight, outputs, inputs, oracle::Codes::random, random).view());
  REQUIRE(packed);
  return *std::move(packed);
}

std::vector<float> normal_floats(std::size_t count, std::mt19937& random) {
  std::vector<float> values(count);
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(random);
  return values;
}

/// Indices dealt out to threads backwards; counts its calls.
struct CountingExecutor {
  std::size_t threads;
  std::size_t* calls;
  [[nodiscard]] std::size_t concurrency() const { return threads; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    ++*calls;
    std::vector<std::thread> workers;
    for (std::size_t t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        for (std::size_t i = t; i < count; i += threads) task(count - 1 - i);
      });
    }
    for (std::thread& worker : workers) worker.join();
  }
};

/// Adds the place, so that an epilogue that is told the wrong row shows.
struct AddPlace {
  float operator()(float value, std::size_t row, std::size_t column) const {
    return value + static_cast<float>(row * 1000 + column);
  }
};

void check_group(std::size_t tokens, std::size_t inputs) {
  std::mt19937 random(static_cast<unsigned>(tokens + inputs));
  const std::size_t outputs[] = {37, 0, 16, 1, 300};
  const std::vector<float> x = normal_floats(tokens * inputs, random);
  QuantizedActivations<S> quantized;
  REQUIRE(quantized.quantize(matrix_view<const float>(x.data(), tokens, inputs)));
  std::vector<Packed> weights;
  std::vector<std::vector<float>> want, got;
  for (const std::size_t n : outputs) {
    weights.push_back(packed_weights(n, inputs, random));
    want.emplace_back(tokens * n);
    got.emplace_back(tokens * n, std::numeric_limits<float>::quiet_NaN());
    REQUIRE(matmul(quantized.view(), weights.back().view(), matrix_view(want.back().data(), tokens, n), AddPlace{}));
  }
  std::vector<GroupMember<S, AddPlace>> members;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    members.push_back({weights[i].view(), matrix_view(got[i].data(), tokens, outputs[i]), {}});
  }
  for (const std::size_t threads : {1u, 3u}) {
    std::size_t calls = 0;
    for (auto& y : got) std::fill(y.begin(), y.end(), std::numeric_limits<float>::quiet_NaN());
    REQUIRE(matmul_group(quantized.view(), std::span<const GroupMember<S, AddPlace>>(members),
                         CountingExecutor{threads, &calls}));
    CAPTURE(tokens, inputs, threads);
    CHECK(calls == 1);
    CHECK(got == want);
  }
}

struct Mixture {
  std::vector<std::size_t> offsets = {0};
  std::vector<Packed> weights;
  std::vector<PackedWeightsView<S>> views;
  std::vector<float> x;
  std::size_t inputs = 0;
};

Mixture mixture(std::span<const std::size_t> tokens, std::size_t outputs, std::size_t inputs) {
  std::mt19937 random(static_cast<unsigned>(tokens.size() * outputs));
  Mixture m;
  m.inputs = inputs;
  for (const std::size_t count : tokens) {
    m.offsets.push_back(m.offsets.back() + count);
    m.weights.push_back(packed_weights(outputs, inputs, random));
    m.views.push_back(m.weights.back().view());
  }
  m.x = normal_floats(m.offsets.back() * inputs, random);
  return m;
}

void check_experts(std::span<const std::size_t> tokens, std::size_t outputs, std::size_t inputs) {
  const Mixture m = mixture(tokens, outputs, inputs);
  const std::size_t total = m.offsets.back();
  std::vector<float> want(total * outputs);
  for (std::size_t e = 0; e < tokens.size(); ++e) {
    QuantizedActivations<S> quantized;
    REQUIRE(quantized.quantize(matrix_view<const float>(m.x.data() + m.offsets[e] * inputs, tokens[e], inputs)));
    const auto y = matrix_view(want.data() + m.offsets[e] * outputs, tokens[e], outputs);
    REQUIRE(matmul(quantized.view(), m.views[e], y));
    for (std::size_t i = 0; i < tokens[e] * outputs; ++i)
      y.data[i] = AddPlace{}(y.data[i], m.offsets[e] + i / outputs, i % outputs);
  }
  const auto size = expert_activations_size<S>(m.offsets, inputs);
  REQUIRE(size);
  std::vector<std::byte> memory(*size);
  for (const std::size_t threads : {1u, 5u}) {
    std::size_t calls = 0;
    const CountingExecutor executor{threads, &calls};
    std::fill(memory.begin(), memory.end(), std::byte{0xa5});
    const auto activations =
        quantize_experts<S>(matrix_view<const float>(m.x.data(), total, inputs), m.offsets, memory, executor);
    REQUIRE(activations);
    std::vector<float> y(want.size(), std::numeric_limits<float>::quiet_NaN());
    REQUIRE(matmul_experts<S>(*activations, m.views, matrix_view(y.data(), total, outputs), AddPlace{}, executor));
    CAPTURE(tokens.size(), outputs, inputs, threads);
    CHECK(calls == 2);
    CHECK(y == want);
  }
}

}  // namespace

TEST_CASE("A group equals its members one by one, in one executor call") {
  for (const std::size_t tokens : {0u, 1u, 2u, 21u, 250u}) check_group(tokens, 64);
  check_group(3, 33);
}

TEST_CASE("A mixture of experts equals separate calls, in one executor call") {
  check_experts(std::vector<std::size_t>{3, 0, 1, 41, 0, 20}, 37, 64);
  check_experts(std::vector<std::size_t>{0, 0}, 16, 32);
  check_experts(std::vector<std::size_t>{}, 16, 32);
  check_experts(std::vector<std::size_t>{5}, 48, 33);
}

TEST_CASE("A mixture may have more experts than fit on the stack, and than the search has entries") {
  for (const std::size_t experts : {8u, 9u, 64u, 65u, 131u}) {
    std::vector<std::size_t> tokens(experts);
    for (std::size_t e = 0; e < experts; ++e) tokens[e] = e * 7 % 4;  // also none
    check_experts(tokens, 33, 32);
  }
}

TEST_CASE("Groups and mixtures take activations per group as single matmuls do") {
  constexpr Scheme G = schemes::w4a8_g32_act_group;
  constexpr std::size_t tokens = 27, outputs = 37, inputs = 150;
  std::mt19937 random(3);
  std::vector<float> x = normal_floats(tokens * inputs, random);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= i % inputs < 32 ? 100.0f : 1.0f;
  const auto input = matrix_view<const float>(x.data(), tokens, inputs);
  std::vector<PackedWeights<G>> weights;
  std::vector<PackedWeightsView<G>> views;
  for (int i = 0; i < 2; ++i) {
    auto packed =
        PackedWeights<G>::from_codes(oracle::weights(G.weight, outputs, inputs, oracle::Codes::random, random).view());
    REQUIRE(packed);
    weights.push_back(*std::move(packed));
    views.push_back(weights.back().view());
  }
  const auto apart = [&](std::size_t which, std::size_t first, std::size_t count) {
    QuantizedActivations<G> quantized;
    REQUIRE(quantized.quantize(rows(input, first, count)));
    std::vector<float> y(count * outputs);
    REQUIRE(matmul(quantized.view(), views[which], matrix_view(y.data(), count, outputs)));
    return y;
  };
  QuantizedActivations<G> quantized;
  REQUIRE(quantized.quantize(input));
  std::vector<float> first(tokens * outputs), second(tokens * outputs);
  const std::vector<GroupMember<G>> members = {{views[0], matrix_view(first.data(), tokens, outputs), {}},
                                               {views[1], matrix_view(second.data(), tokens, outputs), {}}};
  REQUIRE(matmul_group(quantized.view(), std::span<const GroupMember<G>>(members)));
  CHECK(first == apart(0, 0, tokens));
  CHECK(second == apart(1, 0, tokens));

  const std::vector<std::size_t> offsets = {0, 5, tokens};
  std::vector<std::byte> memory(*expert_activations_size<G>(offsets, inputs));
  const auto experts = quantize_experts<G>(input, offsets, memory);
  REQUIRE(experts);
  std::vector<float> y(tokens * outputs), wanted = apart(0, 0, 5);
  REQUIRE(matmul_experts<G>(*experts, views, matrix_view(y.data(), tokens, outputs)));
  const std::vector<float> rest = apart(1, 5, tokens - 5);
  wanted.insert(wanted.end(), rest.begin(), rest.end());
  CHECK(y == wanted);
}

TEST_CASE("Groups and mixtures with operands that do not fit are refused before any work") {
  std::mt19937 random(1);
  const Packed wide = packed_weights(16, 64, random);
  const Packed narrow = packed_weights(16, 32, random);
  const std::vector<float> x = normal_floats(3 * 64, random);
  QuantizedActivations<S> quantized;
  REQUIRE(quantized.quantize(matrix_view<const float>(x.data(), 3, 64)));
  std::vector<float> y(2 * 3 * 16, -1.0f);
  const auto first = matrix_view(y.data(), 3, 16);
  const auto second = matrix_view(y.data() + 48, 3, 16);
  using Members = std::vector<GroupMember<S>>;
  const auto run = [&](const Members& members) {
    return matmul_group(quantized.view(), std::span<const GroupMember<S>>(members));
  };
  const Status refused = run({{wide.view(), first, {}}, {narrow.view(), second, {}}});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::bad_shape);
  CHECK(std::string(refused.error().where.c_str()).starts_with("member 1"));
  CHECK_FALSE(run({{wide.view(), first, {}}, {wide.view(), matrix_view(y.data(), 3, 15), {}}}));
  CHECK_FALSE(run({{wide.view(), first, {}}, {wide.view(), matrix_view<float>(nullptr, 3, 16), {}}}));
  CHECK(y == std::vector<float>(y.size(), -1.0f));
  CHECK(run({}));

  const std::vector<std::size_t> offsets = {0, 1, 3};
  std::vector<std::byte> memory(*expert_activations_size<S>(offsets, 64));
  const auto input = matrix_view<const float>(x.data(), 3, 64);
  const auto code = [](const auto& result) { return result.error().code; };
  CHECK(code(quantize_experts<S>(input, std::vector<std::size_t>{0, 2, 1, 3}, memory)) == Errc::bad_argument);
  CHECK(code(quantize_experts<S>(input, std::vector<std::size_t>{1, 3}, memory)) == Errc::bad_argument);
  CHECK(code(quantize_experts<S>(input, std::vector<std::size_t>{0, 2}, memory)) == Errc::bad_argument);
  CHECK(code(quantize_experts<S>(input, std::vector<std::size_t>{}, memory)) == Errc::bad_argument);
  CHECK(code(quantize_experts<S>(input, offsets, std::span(memory).first(memory.size() - 1))) == Errc::bad_shape);
  CHECK(code(quantize_experts<S>(matrix_view<const float>(nullptr, 3, 64), offsets, memory)) == Errc::bad_argument);
  std::vector<float> bad = x;
  bad[2 * 64 + 5] = std::numeric_limits<float>::infinity();
  const auto not_finite = quantize_experts<S>(matrix_view<const float>(bad.data(), 3, 64), offsets, memory);
  REQUIRE_FALSE(not_finite);
  CHECK(not_finite.error().code == Errc::not_finite);
  CHECK(std::string(not_finite.error().where.c_str()) == "expert 1: token 1");

  const auto activations = quantize_experts<S>(input, offsets, memory);
  REQUIRE(activations);
  const std::vector<PackedWeightsView<S>> experts = {wide.view(), wide.view()};
  CHECK(matmul_experts<S>(*activations, experts, first));
  CHECK_FALSE(matmul_experts<S>(*activations, std::span(experts).first(1), first));
  CHECK_FALSE(matmul_experts<S>(*activations, experts, matrix_view(y.data(), 4, 16)));
  CHECK_FALSE(matmul_experts<S>(*activations, experts, matrix_view(y.data(), 3, 15)));
  CHECK_FALSE(matmul_experts<S>(*activations, experts, matrix_view<float>(nullptr, 3, 16)));
  const std::vector<PackedWeightsView<S>> mixed = {wide.view(), narrow.view()};
  const Status unfit = matmul_experts<S>(*activations, mixed, first);
  REQUIRE_FALSE(unfit);
  CHECK(std::string(unfit.error().where.c_str()).starts_with("expert 1"));
}
