// SPDX-License-Identifier: Apache-2.0

// One projection of a mixture of experts: a router sends each token to two of four experts and weighs their results.
// Tokens are gathered in the order of their experts, quantized once, and multiplied with all experts in one executor
// call; the router's weight is applied as an epilogue while results are in cache, and they leave as bfloat16.

#include <cbq/gemm.hpp>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g32;
constexpr std::size_t experts = 4;
constexpr std::size_t inputs = 64;
constexpr std::size_t outputs = 48;

/// What a router decides for one token: an expert and the weight of its result. Two per token.
struct Route {
  std::size_t expert;
  float weight;
};
constexpr std::size_t tokens = 3;
constexpr Route routes[2 * tokens] = {{3, 0.75f}, {0, 0.25f}, {0, 0.5f}, {1, 0.5f}, {3, 0.875f}, {1, 0.125f}};

/// The epilogue: row `row` of the gathered tokens is weighed by its route.
struct Weigh {
  const float* weights = nullptr;
  float operator()(float value, std::size_t row, std::size_t) const { return value * weights[row]; }
};

cbq::Result<cbq::PackedWeights<scheme>> pack_pattern(std::size_t seed) {
  std::vector<std::uint8_t> codes(outputs * inputs);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>((i * 7 + i / inputs + seed) % 16);
  const std::vector<float> scales(outputs * inputs / 32, 0.01f);
  return cbq::PackedWeights<scheme>::from_codes(
      {.codes = cbq::matrix_view<const std::uint8_t>(codes.data(), outputs, inputs),
       .scales = cbq::matrix_view<const float>(scales.data(), outputs, inputs / 32),
       .zeros = {}});
}

/// Result of the whole layer, or the error of the part that failed.
cbq::Status run(std::vector<float>& y) {
  std::vector<cbq::PackedWeights<scheme>> owners;
  std::vector<cbq::PackedWeightsView<scheme>> weights;
  for (std::size_t e = 0; e < experts; ++e) {
    auto packed = pack_pattern(e);
    if (!packed) return packed.error();
    owners.push_back(*std::move(packed));
    weights.push_back(owners.back().view());
  }
  std::vector<float> x(tokens * inputs);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 6.0f;

  // Gather: rows [offsets[e], offsets[e + 1]) are the tokens of expert e.
  std::vector<std::size_t> offsets = {0}, token_of;
  std::vector<float> gathered, route_weights;
  for (std::size_t e = 0; e < experts; ++e) {
    for (std::size_t r = 0; r < 2 * tokens; ++r) {
      if (routes[r].expert != e) continue;
      const auto* row = x.data() + r / 2 * inputs;
      gathered.insert(gathered.end(), row, row + inputs);
      token_of.push_back(r / 2);
      route_weights.push_back(routes[r].weight);
    }
    offsets.push_back(token_of.size());
  }

  const cbq::Result<std::size_t> size = cbq::expert_activations_size<scheme>(offsets, inputs);
  if (!size) return size.error();
  std::vector<std::byte> memory(*size);
  const auto input = cbq::quantize_experts<scheme>(
      cbq::matrix_view<const float>(gathered.data(), token_of.size(), inputs), offsets, memory);
  if (!input) return input.error();
  std::vector<cbq::bfloat16> parts(token_of.size() * outputs);
  const cbq::Status done = cbq::matmul_experts<scheme>(
      *input, weights, cbq::matrix_view(parts.data(), token_of.size(), outputs), Weigh{route_weights.data()});
  if (!done) return done;

  y.assign(tokens * outputs, 0.0f);
  for (std::size_t i = 0; i < parts.size(); ++i)
    y[token_of[i / outputs] * outputs + i % outputs] += cbq::to_float(parts[i]);
  return {};
}

}  // namespace

int main() {
  std::vector<float> y;
  if (const cbq::Status done = run(y); !done) {
    std::fprintf(stderr, "%s: %s\n", done.error().where.c_str(), done.error().what);
    return 1;
  }
  std::printf("%zu tokens through 2 of %zu experts each, y[0][0] = %.4f\n", tokens, experts, static_cast<double>(y[0]));
}
