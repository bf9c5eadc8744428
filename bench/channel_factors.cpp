// SPDX-License-Identifier: Apache-2.0

// trip/<form>/<isa>/...: a w4a4 operator with static activations whose channels have power-of-two factors: `folded`
// into weights and producer beforehand (one product), or `shifted` at run time (one per exponent, over gathered
// channels). tokens/<bits>/<isa>/...: a w4a8 operator on tokens of 8 bits, of 4, and of both in turn. From float
// activations to float results, quantization included; weights stay in cache.

#include <cbq/nn/packed_linear.hpp>
#include <cbq/nn/trip_linear.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "machine.hpp"
#include "rotation.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

constexpr cbq::Scheme four_bits = cbq::with_tensor_activations(cbq::schemes::w4a4);

/// Codes and scales of a matrix; what they are does not matter.
struct Codes {
  explicit Codes(const Shape& shape)
      : outputs(shape.n), inputs(shape.k), codes(shape.n * shape.k), scales(shape.n, 0.0078125f) {
    std::uint32_t state = 1;
    for (std::uint8_t& code : codes) {
      state = state * 1664525u + 1013904223u;
      code = static_cast<std::uint8_t>(state >> 28);
    }
  }
  [[nodiscard]] cbq::QuantizedMatrixView view() const {
    return {cbq::matrix_view(codes.data(), outputs, inputs), cbq::matrix_view(scales.data(), outputs, 1), {}};
  }
  std::size_t outputs, inputs;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
};

template <cbq::LinearOperator Op>
void run(benchmark::State& state, const Op& op, const Shape& shape, cbq::Isa isa, const cbq::TokenBits& bits = {}) {
  auto result = cbq::AlignedBuffer<float>::allocate(shape.m * shape.n);
  if (!result) return skip(state, result.error());
  const auto x = cbq::matrix_view(normal_floats(shape.m * shape.k), shape.m, shape.k);
  const Threads executor = threads(shape.threads);
  cbq::ExecutionContext<Threads> context(executor, isa);
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Workspace::Frame frame(context.workspace());
    cbq::LinearInput input(x, bits);
    const cbq::Status done = op.forward(input, {cbq::matrix_view(result->data(), shape.m, shape.n), {}}, context);
    if (!done) return skip(state, done.error());
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, op.info().bytes);
}

/// K = 3: one channel in 64 has exponent 3, the others 0 to 2.
void run_factors(benchmark::State& state, const Shape& shape, cbq::Isa isa, const std::string& form) {
  const Codes codes(shape);
  const cbq::StaticGrid grid = {.scale = 0.0625f};
  if (form == "shifted") {
    std::vector<std::uint8_t> exponents(shape.k);
    for (std::size_t c = 0; c < shape.k; ++c) exponents[c] = static_cast<std::uint8_t>(c % 64 == 0 ? 3 : c % 3);
    const auto op = cbq::TripLinear<four_bits>::create(codes.view(), {exponents, grid});
    return op ? run(state, *op, shape, isa) : skip(state, op.error());
  }
  auto op = cbq::PackedLinear<four_bits>::create(codes.view());
  if (!op) return skip(state, op.error());
  if (const cbq::Status fixed = op->fix_activations(grid); !fixed) return skip(state, fixed.error());
  run(state, *op, shape, isa);
}

void run_tokens(benchmark::State& state, const Shape& shape, cbq::Isa isa, const std::string& kind) {
  const Codes codes(shape);
  const auto op = cbq::PackedLinear<cbq::schemes::w4a8>::create(codes.view());
  if (!op) return skip(state, op.error());
  std::vector<std::uint8_t> bits(shape.m, kind == "4" ? 4 : 8);
  for (std::size_t t = 0; kind == "mixed" && t < shape.m; t += 2) bits[t] = 4;
  run(state, *op, shape, isa, {.bits = bits, .zero = cbq::Zero::affine});
}

}  // namespace

void register_channel_factors(const Selection& selection) {
  if (!selection.everything) return;
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (isa <= cbq::Isa::portable) continue;
    for (const std::size_t tokens : {std::size_t{1}, std::size_t{8}, std::size_t{128}, std::size_t{512}}) {
      for (const std::size_t width : {std::size_t{1536}, std::size_t{4096}}) {
        const Shape shape = {.m = tokens, .n = width, .k = width};
        const std::string place = std::string("/") + cbq::isa_name(isa) + "/" + text(shape);
        for (const std::string form : {"folded", "shifted"}) {
          add("trip/" + form + place, [=](benchmark::State& state) { run_factors(state, shape, isa, form); });
        }
        for (const std::string kind : {"8", "4", "mixed"}) {
          add("tokens/" + kind + place, [=](benchmark::State& state) { run_tokens(state, shape, isa, kind); });
        }
      }
    }
  }
}

}  // namespace bench
