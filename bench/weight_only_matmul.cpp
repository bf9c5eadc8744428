// SPDX-License-Identifier: Apache-2.0

// gemm/<scheme>/<isa>/... for schemes with floating-point activations (w<bits>a16).

#include <cbq/gemm/kernels_portable.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>

#include "machine.hpp"
#include "rotated_weights.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

template <cbq::Scheme S>
void run(benchmark::State& state, const Shape& shape, cbq::Isa isa) {
  const auto weights = RotatedWeights<S>::get(shape.n, shape.k);
  if (!weights) return skip(state, weights.error());
  auto result = cbq::AlignedBuffer<float>::allocate(shape.m * shape.n);
  if (!result) return skip(state, result.error());
  const auto x = cbq::matrix_view(normal_floats(shape.m * shape.k), shape.m, shape.k);
  const auto y = cbq::matrix_view(result->data(), shape.m, shape.n);
  const Threads executor = threads(shape.threads);
  const auto call = [&] {
    return cbq::matmul<S, cbq::NoEpilogue, cbq::PortableKernels>(x, (*weights)->next(), y, {}, executor, isa);
  };
  if (const cbq::Status status = call(); !status) return skip(state, status.error());  // touches all memory, too
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Status status = call();
    benchmark::DoNotOptimize(status.has_value());
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, (*weights)->bytes());
}

template <cbq::Scheme S>
void register_scheme(const Selection& selection) {
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (isa == cbq::Isa::portable || cbq::floating_point_isa(isa) != isa) continue;  // has no kernels of its own here
    const std::string family = std::string("gemm/") + cbq::scheme_name(S).c_str() + "/" + cbq::isa_name(isa) + "/";
    for (const Shape& shape : shapes(selection, isa == cbq::Isa::scalar ? 8 : 512)) {
      if (isa == cbq::Isa::scalar && shape.threads > 1) continue;
      add(family + text(shape), [shape, isa](benchmark::State& state) { run<S>(state, shape, isa); });
    }
  }
}

}  // namespace

void register_weight_only_matmul(const Selection& selection) {
  using namespace cbq::schemes;
  register_scheme<w4a16_g32>(selection);
  register_scheme<w4a16_g128>(selection);
  register_scheme<w2a16_g64_asym>(selection);
  register_scheme<cbq::make_scheme(3, 16, 128, cbq::Zero::symmetric)>(selection);
  register_scheme<w8a16>(selection);
}

}  // namespace bench
