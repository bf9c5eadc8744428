// SPDX-License-Identifier: Apache-2.0
#pragma once

// Float kernels in the vectors that every compiler of cbq has, four floats wide: SSE2 in a baseline x86-64 build, NEON
// on Arm. Tall tile: 2 rows x 1 panel = 8 accumulators, which with the weights and two temporaries is what 16 registers
// hold without a fused multiply-add.

#include <concepts>
#include <cstddef>

#include <cbq/gemm/float_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::scalar {

using FourFloats [[gnu::vector_size(16)]] = float;
/// Four floats anywhere in memory.
using FourFloatsInMemory [[gnu::vector_size(16), gnu::aligned(4), gnu::may_alias]] = float;

[[gnu::always_inline]] inline FourFloats load_four(const float* from) noexcept {
  return *reinterpret_cast<const FourFloatsInMemory*>(from);
}

/// c = initial + a * panel for Rows rows and one panel, the products added in the order of the inputs.
template <std::size_t Rows>
void float_tile(const FloatTile<float>& tile) noexcept {
  FourFloats sums[Rows][4] = {};
  if (tile.initial != nullptr) {
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) {
        sums[r][v] = load_four(tile.initial + r * tile.initial_stride + v * 4);
      }
    }
  }
  const float* a = tile.a;
  const float* panel = tile.panels[0];
  for (std::size_t k = 0; k < tile.inputs; ++k) {
    FourFloats weights[4];
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) weights[v] = load_four(panel + v * 4);
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      const float value = a[r * tile.a_stride + k];
      const FourFloats activation = {value, value, value, value};
      _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) sums[r][v] += activation * weights[v];
    }
    panel += tile.panel_stride;
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) {
      *reinterpret_cast<FourFloatsInMemory*>(tile.c + r * tile.c_stride + v * 4) = sums[r][v];
    }
  }
}

template <class T>
void decode_panels(const T* from, std::size_t count, float* to) noexcept {
  for (std::size_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

inline void transpose_block(const FloatBlockTranspose& block) noexcept {
  for (std::size_t r = 0; r < 16; ++r) {
    for (std::size_t k = 0; k < 16; ++k) block.to[k * block.to_stride + r] = block.from[r * block.from_stride + k];
  }
}

/// A template, so that tiles are instantiated only where a matmul is.
template <std::same_as<float>>
[[nodiscard]] FloatTallKernels float_tall_kernels() noexcept {
  return {.rows = 2, .panels = 1, .tile = {{nullptr, &float_tile<1>, &float_tile<2>}}};
}

/// Half and bfloat16 have no narrow tiles here: the driver decodes their panels first.
template <class T>
[[nodiscard]] FloatNarrowKernels<T> float_narrow_kernels() noexcept {
  FloatNarrowKernels<T> kernels;
  if constexpr (std::same_as<T, float>) {
    kernels.tile[1] = &float_tile<1>;
    kernels.tile[2] = &float_tile<2>;
    kernels.tile[3] = &float_tile<3>;
    kernels.tile[4] = &float_tile<4>;
  }
  kernels.decode = &decode_panels<T>;
  return kernels;
}

}  // namespace isa::scalar
}  // namespace CBQ_ABI
}  // namespace cbq
