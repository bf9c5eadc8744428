// SPDX-License-Identifier: Apache-2.0

// float/<element>/<isa>/...: cbq's float matmul over packed dense weights of that element.

#include <cstring>
#include <memory>
#include <span>

#include <cbq/gemm/float_matmul.hpp>

#include "machine.hpp"
#include "rotation.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

template <class T>
cbq::Result<std::shared_ptr<Rotation>> rotated_panels(const std::string& element, const Shape& shape) {
  const std::string key = "float/" + element + "/" + std::to_string(shape.n) + "/" + std::to_string(shape.k);
  const auto made = cached(key, [&](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
    const cbq::Result<std::size_t> count = cbq::float_panels_size<T>(shape.n, shape.k);
    if (!count) return count.error();
    const auto fill = [&](std::byte* memory) -> cbq::Status {
      const auto weights = cbq::matrix_view(normal_floats(shape.n * shape.k), shape.n, shape.k);
      const auto view = cbq::pack_float_panels<T>(weights, std::span<T>(reinterpret_cast<T*>(memory), *count));
      if (!view) return view.error();
      return {};
    };
    const std::size_t panel_bytes = shape.k * cbq::float_panel_width * sizeof(T);
    const auto rotation = Rotation::make({.copy_bytes = *count * sizeof(T), .piece_bytes = panel_bytes}, fill);
    if (!rotation) return rotation.error();
    bytes = (*rotation)->bytes();
    return std::shared_ptr<void>(*rotation);
  });
  if (!made) return made.error();
  return std::static_pointer_cast<Rotation>(*made);
}

template <class T>
void run(benchmark::State& state, const std::string& element, const Shape& shape, cbq::Isa isa) {
  const auto weights = rotated_panels<T>(element, shape);
  if (!weights) return skip(state, weights.error());
  auto result = cbq::AlignedBuffer<float>::allocate(shape.m * shape.n);
  if (!result) return skip(state, result.error());
  const auto x = cbq::matrix_view(normal_floats(shape.m * shape.k), shape.m, shape.k);
  const auto y = cbq::matrix_view(result->data(), shape.m, shape.n);
  const cbq::FloatMatmulOptions<Threads> options{
      .executor = threads(shape.threads), .columns = {}, .accumulate = {}, .cap = isa, .workspace = {}};
  const auto call = [&] {
    const cbq::FloatPanelsView<T> panels{reinterpret_cast<const T*>((*weights)->next()), shape.n, shape.k};
    return cbq::float_matmul(x, panels, y, cbq::NoEpilogue{}, options);
  };
  if (const cbq::Status status = call(); !status) return skip(state, status.error());  // touches all memory, too
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Status status = call();
    benchmark::DoNotOptimize(status.has_value());
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, shape.n * shape.k * sizeof(T));
}

template <class T>
void register_element(const Selection& selection, const std::string& element) {
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (isa == cbq::Isa::portable || cbq::floating_point_isa(isa) != isa) continue;  // has no kernels of its own here
    for (const Shape& shape : shapes(selection, isa == cbq::Isa::scalar ? 8 : 512)) {
      if (isa == cbq::Isa::scalar && shape.threads > 1) continue;
      add("float/" + element + "/" + cbq::isa_name(isa) + "/" + text(shape),
          [element, shape, isa](benchmark::State& state) { run<T>(state, element, shape, isa); });
    }
  }
}

}  // namespace

void register_float_matmul(const Selection& selection) {
  register_element<float>(selection, "float");
  register_element<cbq::half>(selection, "half");
  register_element<cbq::bfloat16>(selection, "bfloat16");
}

}  // namespace bench
