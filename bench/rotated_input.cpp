// SPDX-License-Identifier: Apache-2.0

// quantize_rotated/<scheme>/<isa>/... and quantize_unrotated/...: activations quantized by a linear operator's input,
// with and without the online Hadamard transform before. Their difference over gemm/... is what the transform costs.

#include <cbq/nn/linear.hpp>

#include <string>

#include "machine.hpp"
#include "rotation.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

struct TokenShape {
  std::size_t tokens = 0;
  std::size_t inputs = 0;
  std::size_t threads = 1;
};

void run(benchmark::State& state, const TokenShape& shape, cbq::Isa isa, cbq::InputRotation rotation) {
  const auto x = cbq::matrix_view(normal_floats(shape.tokens * shape.inputs), shape.tokens, shape.inputs);
  const Threads executor = threads(shape.threads);
  cbq::ExecutionContext<Threads> context(executor, isa);
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Workspace::Frame frame(context.workspace());
    cbq::LinearInput input(x);
    const auto quantized = input.quantized(cbq::schemes::w4a4, context, {.rotation = rotation});
    if (!quantized) return skip(state, quantized.error());
    benchmark::ClobberMemory();
  }
  set_rates(state, 0, static_cast<double>(shape.tokens * shape.inputs * sizeof(float)));
}

}  // namespace

void register_rotated_input(const Selection& selection) {
  if (!selection.everything) return;
  for (const cbq::InputRotation rotation : {cbq::InputRotation::none, cbq::InputRotation::hadamard}) {
    const char* family = rotation == cbq::InputRotation::none ? "quantize_unrotated/w4a4/" : "quantize_rotated/w4a4/";
    for (const cbq::Isa isa : instruction_sets(selection.cap)) {
      if (isa <= cbq::Isa::portable) continue;
      // Inputs of down_proj: SmolLM2, LLaMA of 7 and 8 billion parameters.
      for (const std::size_t inputs : {std::size_t{1536}, std::size_t{11008}, std::size_t{14336}}) {
        for (const std::size_t tokens : {std::size_t{1}, std::size_t{512}}) {
          const std::string name = std::string(family) + cbq::isa_name(isa) + "/M:" + std::to_string(tokens) +
                                   "/K:" + std::to_string(inputs) + "/threads:1";
          const TokenShape shape{tokens, inputs, 1};
          add(name, [=](benchmark::State& state) { run(state, shape, isa, rotation); });
        }
      }
    }
  }
}

}  // namespace bench
