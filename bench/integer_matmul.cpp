// SPDX-License-Identifier: Apache-2.0

// gemm/<scheme>/<isa>/... for schemes with quantized activations: from float activations to float results, quantization
// included; and quantize/<scheme>/<isa>/... for the quantization alone.

#include <cbq/gemm.hpp>
#include <cbq/gemm/kernels_portable.hpp>

#include "machine.hpp"
#include "rotated_weights.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

using cbq::Scheme;

template <Scheme S>
void run_matmul(benchmark::State& state, const Shape& shape, cbq::Isa isa) {
  const auto weights = RotatedWeights<S>::get(shape.n, shape.k);
  if (!weights) return skip(state, weights.error());
  auto result = cbq::AlignedBuffer<float>::allocate(shape.m * shape.n);
  if (!result) return skip(state, result.error());
  const auto x = cbq::matrix_view(normal_floats(shape.m * shape.k), shape.m, shape.k);
  const auto y = cbq::matrix_view(result->data(), shape.m, shape.n);
  const Threads executor = threads(shape.threads);
  cbq::QuantizedActivations<S> activations;
  const auto call = [&]() -> cbq::Status {
    if (const cbq::Status status = activations.quantize(x, executor, isa); !status) return status;
    return cbq::matmul<S, cbq::NoEpilogue, cbq::PortableKernels>(activations.view(), (*weights)->next(), y, {},
                                                                 executor, isa);
  };
  if (const cbq::Status status = call(); !status) return skip(state, status.error());  // touches all memory, too
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Status status = call();
    benchmark::DoNotOptimize(status.has_value());
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, (*weights)->bytes());
}

template <Scheme S>
void run_quantize(benchmark::State& state, const Shape& shape, cbq::Isa isa) {
  const auto x = cbq::matrix_view(normal_floats(shape.m * shape.k), shape.m, shape.k);
  const Threads executor = threads(shape.threads);
  cbq::QuantizedActivations<S> activations;
  for ([[maybe_unused]] auto _ : state) {
    if (const cbq::Status status = activations.quantize(x, executor, isa); !status) return skip(state, status.error());
    benchmark::ClobberMemory();
  }
  set_rates(state, 0, static_cast<double>(shape.m * shape.k * sizeof(float)));
}

/// Slow kernels are run on so few rows that a call stays under a second.
std::size_t most_rows(cbq::Isa isa) {
  return isa <= cbq::Isa::portable ? 8 : 512;
}

template <Scheme S>
void register_matmul(const Selection& selection) {
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    const std::string family = std::string("gemm/") + cbq::scheme_name(S).c_str() + "/" + cbq::isa_name(isa) + "/";
    for (const Shape& shape : shapes(selection, most_rows(isa))) {
      // The oracle's speed on many threads tells nothing.
      if (isa == cbq::Isa::scalar && shape.threads > 1) continue;
      add(family + text(shape), [shape, isa](benchmark::State& state) { run_matmul<S>(state, shape, isa); });
    }
  }
}

template <Scheme S>
void register_quantize(const Selection& selection) {
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (isa == cbq::Isa::portable) continue;  // uses the scalar quantizer
    const std::string family = std::string("quantize/") + cbq::scheme_name(S).c_str() + "/" + cbq::isa_name(isa) + "/";
    for (const Shape& shape : shapes(selection, most_rows(isa))) {
      // One name per M and K: the outputs are those of the square matrix.
      if (shape.n != shape.k) continue;
      const std::string name = family + "M:" + std::to_string(shape.m) + "/K:" + std::to_string(shape.k) +
                               "/threads:" + std::to_string(shape.threads);
      add(name, [shape, isa](benchmark::State& state) { run_quantize<S>(state, shape, isa); });
    }
  }
}

}  // namespace

void register_integer_matmul(const Selection& selection) {
  using namespace cbq::schemes;
  register_matmul<w4a8_g32>(selection);
  register_matmul<w4a8_g128>(selection);
  register_matmul<w4a8_g32_act_group>(selection);
  register_matmul<w4a8_g128_act_group>(selection);
  register_matmul<w4a8>(selection);
  register_matmul<cbq::make_scheme(4, 8, 128, cbq::Zero::affine)>(selection);
  register_matmul<w8a8>(selection);
  register_matmul<w2a8_g64_asym>(selection);
  register_matmul<cbq::make_scheme(3, 8, 128, cbq::Zero::affine)>(selection);
  register_matmul<w4a4>(selection);
  register_matmul<cbq::make_scheme(4, 4, 128, cbq::Zero::symmetric)>(selection);
  register_quantize<w4a8_g32>(selection);
  register_quantize<w4a8_g128>(selection);
  register_quantize<w4a8_g32_act_group>(selection);
  register_quantize<w4a4>(selection);
}

}  // namespace bench
