// SPDX-License-Identifier: Apache-2.0

// eigen/sgemm/...: Eigen's float product, the comparison that every user has at hand. It uses what its compiler flags
// allow, SSE2 in a baseline build; the context of the run says what that was.

#include <cstring>
#include <memory>

#include "eigen_product.hpp"
#include "rotation.hpp"
#include "suite.hpp"

namespace bench {
namespace {

cbq::Result<std::shared_ptr<Rotation>> rotated_weights(std::size_t outputs, std::size_t inputs) {
  const std::string key = "eigen/" + std::to_string(outputs) + "/" + std::to_string(inputs);
  const auto made = cached(key, [&](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
    const std::size_t count = outputs * inputs;
    const auto fill = [&](std::byte* memory) -> cbq::Status {
      std::memcpy(memory, normal_floats(count), count * sizeof(float));
      return {};
    };
    const auto rotation =
        Rotation::make({.copy_bytes = count * sizeof(float), .piece_bytes = inputs * sizeof(float)}, fill);
    if (!rotation) return rotation.error();
    bytes = (*rotation)->bytes();
    return std::shared_ptr<void>(*rotation);
  });
  if (!made) return made.error();
  return std::static_pointer_cast<Rotation>(*made);
}

void run(benchmark::State& state, const Shape& shape) {
  const auto weights = rotated_weights(shape.n, shape.k);
  if (!weights) return skip(state, weights.error());
  auto y = cbq::AlignedBuffer<float>::allocate(shape.m * shape.n);
  if (!y) return skip(state, y.error());
  const auto call = [&] {
    multiply_by_eigen({.x = normal_floats(shape.m * shape.k),
                       .w = reinterpret_cast<const float*>((*weights)->next()),
                       .y = y->data(),
                       .m = static_cast<std::ptrdiff_t>(shape.m),
                       .n = static_cast<std::ptrdiff_t>(shape.n),
                       .k = static_cast<std::ptrdiff_t>(shape.k)});
    benchmark::ClobberMemory();
  };
  set_eigen_threads(static_cast<int>(shape.threads));
  call();  // touches all memory
  for ([[maybe_unused]] auto _ : state) call();
  set_rates(state, shape, shape.n * shape.k * sizeof(float));
}

}  // namespace

void register_eigen(const Selection& selection) {
  benchmark::AddCustomContext("eigen_simd", eigen_simd());
  for (const Shape& shape : shapes(selection, 512)) {
    // Eigen's matrix-vector product has one thread.
    if (shape.m == 1 && shape.threads > 1) continue;
    add("eigen/sgemm/" + text(shape), [shape](benchmark::State& state) { run(state, shape); });
  }
}

}  // namespace bench
