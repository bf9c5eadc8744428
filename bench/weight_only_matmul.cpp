// SPDX-License-Identifier: Apache-2.0

// gemm/<scheme>/<isa>/... for schemes with floating-point activations (w<bits>a16), and gemm_bf16/<scheme>/<isa>/...
// with bfloat16 activations where the CPU has products of them.

#include <type_traits>
#include <vector>

#include <cbq/gemm/kernels_portable.hpp>
#include <cbq/gemm/weight_only_bfloat16.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>

#include "machine.hpp"
#include "rotated_weights.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

/// normal_floats() as X.
template <cbq::Element X>
std::vector<X> normal_values(std::size_t count) {
  std::vector<X> values(count);
  const float* floats = normal_floats(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = cbq::from_float<X>(floats[i]);
  return values;
}

template <cbq::Scheme S, cbq::Element X>
void run(benchmark::State& state, const Shape& shape, cbq::Isa isa) {
  const auto weights = RotatedWeights<S>::get(shape.n, shape.k);
  if (!weights) return skip(state, weights.error());
  auto result = cbq::AlignedBuffer<float>::allocate(shape.m * shape.n);
  if (!result) return skip(state, result.error());
  const std::vector<X> values = normal_values<X>(shape.m * shape.k);
  const auto x = cbq::matrix_view(values.data(), shape.m, shape.k);
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

template <cbq::Scheme S, cbq::Element X = float>
void register_scheme(const Selection& selection) {
  constexpr bool bf16 = std::is_same_v<X, cbq::bfloat16>;
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    const bool own_kernels = cbq::floating_point_isa(isa) == isa || isa == cbq::Isa::avx_vnni;
    if (isa == cbq::Isa::portable || !own_kernels) continue;
    if (bf16 && cbq::RegionKernels::bfloat16_tile<S.weight.bits, S.weight.zero>(isa).decode == nullptr) continue;
    const std::string kind = bf16 ? "gemm_bf16/" : "gemm/";
    const std::string family = kind + cbq::scheme_name(S).c_str() + "/" + cbq::isa_name(isa) + "/";
    for (const Shape& shape : shapes(selection, isa == cbq::Isa::scalar ? 8 : 512)) {
      if (isa == cbq::Isa::scalar && shape.threads > 1) continue;
      add(family + text(shape), [shape, isa](benchmark::State& state) { run<S, X>(state, shape, isa); });
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
  register_scheme<w4a16_g32, cbq::bfloat16>(selection);
  register_scheme<w4a16_g128, cbq::bfloat16>(selection);
  register_scheme<w8a16, cbq::bfloat16>(selection);
}

}  // namespace bench
