// SPDX-License-Identifier: Apache-2.0
#pragma once

// Float kernels for AVX-512 F, BW, DQ, VL. Tall tile: 8 rows x 2 panels = 16 accumulators, 2 vectors of weights and 1
// broadcast. Taller tiles gain nothing: 16 independent sums hide the latency of the multiply-add on two pipes, 10 loads
// per 16 multiply-adds stay below the load ports' rate, and 8 rows of activations at a stride of 4 KiB still fit the 8
// ways of L1, so that activations need no packing. Narrow tile: 1 to 8 rows x 1 panel, the inputs dealt out to several
// accumulators.

#if defined(__x86_64__)

#include <immintrin.h>

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

[[gnu::always_inline]] inline __m512 load_weights(const float* from) noexcept {
  return _mm512_loadu_ps(from);
}
[[gnu::always_inline]] inline __m512 load_weights(const half* from) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from)));
}
[[gnu::always_inline]] inline __m512 load_weights(const bfloat16* from) noexcept {
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16));
}

/// Asks for the memory `ahead` elements further on, which may lie outside of the array.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* from, std::size_t ahead) noexcept {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(from) + ahead * sizeof(T)), _MM_HINT_T0);
}

/// c = initial + a * panels for Rows rows and Panels panels, the products added in the order of the inputs.
template <std::size_t Rows, std::size_t Panels>
void float_tall_tile(const FloatTile<float>& tile) noexcept {
  __m512 sums[Rows][Panels];
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      sums[r][p] = tile.initial != nullptr ? _mm512_loadu_ps(tile.initial + r * tile.initial_stride + p * 16)
                                           : _mm512_setzero_ps();
    }
  }
  const float* a = tile.a;
  const std::size_t a_stride = tile.a_stride;
  const float* first = tile.panels[0];
  const float* second = tile.panels[Panels - 1];
  for (std::size_t k = 0; k < tile.inputs; ++k) {
    __m512 weights[Panels];
    weights[0] = _mm512_loadu_ps(first + k * 16);
    if constexpr (Panels == 2) weights[1] = _mm512_loadu_ps(second + k * 16);
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const __m512 activation = _mm512_set1_ps(a[r * a_stride + k]);
      _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
        sums[r][p] = _mm512_fmadd_ps(activation, weights[p], sums[r][p]);
      }
    }
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      _mm512_storeu_ps(tile.c + r * tile.c_stride + p * 16, sums[r][p]);
    }
  }
}

/// c = initial + a * panel for Rows rows and one panel. Input k is added to accumulator k mod Chains. The panel is
/// asked for 2 KiB ahead: hardware stops at the end of each 4 KiB page, and few rows give it no time to start again.
template <class T, std::size_t Rows, std::size_t Chains>
void float_narrow_tile(const FloatTile<T>& tile) noexcept {
  constexpr std::size_t ahead = 2048 / (16 * sizeof(T));
  __m512 sums[Chains][Rows];
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t s = 0; s < Chains; ++s) sums[s][r] = _mm512_setzero_ps();
    if (Chains == 1 && tile.initial != nullptr) sums[0][r] = _mm512_loadu_ps(tile.initial + r * tile.initial_stride);
  }
  const float* a = tile.a;
  const T* panel = tile.panels[0];
  const std::size_t a_stride = tile.a_stride;
  const std::size_t whole = tile.inputs / Chains * Chains;
  for (std::size_t k = 0; k < whole; k += Chains) {
    _Pragma("GCC unroll 4") for (std::size_t s = 0; s < Chains; ++s) {
      const __m512 weights = load_weights(panel);
      prefetch(panel, ahead * tile.panel_stride);
      _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
        sums[s][r] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_stride + k + s]), weights, sums[s][r]);
      }
      panel += tile.panel_stride;
    }
  }
  for (std::size_t k = whole; k < tile.inputs; ++k) {
    const __m512 weights = load_weights(panel);
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      sums[0][r] = _mm512_fmadd_ps(_mm512_set1_ps(a[r * a_stride + k]), weights, sums[0][r]);
    }
    panel += tile.panel_stride;
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t rest = Chains / 2; rest != 0; rest /= 2) {
      _Pragma("GCC unroll 4") for (std::size_t s = 0; s < rest; ++s) {
        sums[s][r] = _mm512_add_ps(sums[s][r], sums[s + rest][r]);
      }
    }
    if (Chains != 1 && tile.initial != nullptr) {
      sums[0][r] = _mm512_add_ps(_mm512_loadu_ps(tile.initial + r * tile.initial_stride), sums[0][r]);
    }
    _mm512_storeu_ps(tile.c + r * tile.c_stride, sums[0][r]);
  }
}

/// Asks for the weights 8 KiB ahead, which is the next block of a packed matrix, to arrive while this one is
/// multiplied.
template <class T>
void decode_panels(const T* from, std::size_t count, float* to) noexcept {
  for (std::size_t i = 0; i < count; i += 16) {
    prefetch(from + i, 8192 / sizeof(T));
    _mm512_storeu_ps(to + i, load_weights(from + i));
  }
}

/// One 16 x 16 block. Rows i, i + 4, i + 8, i + 12 share a vector, so that four transpositions inside 128-bit lanes
/// finish four rows of the result without crossing lanes.
inline void transpose_block(const FloatBlockTranspose& block) noexcept {
  const std::size_t stride = block.from_stride;
  for (std::size_t k = 0; k < 16; k += 4) {
    __m512 rows[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
      const float* from = block.from + i * stride + k;
      __m512 row = _mm512_castps128_ps512(_mm_loadu_ps(from));
      row = _mm512_insertf32x4(row, _mm_loadu_ps(from + 4 * stride), 1);
      row = _mm512_insertf32x4(row, _mm_loadu_ps(from + 8 * stride), 2);
      rows[i] = _mm512_insertf32x4(row, _mm_loadu_ps(from + 12 * stride), 3);
    }
    const __m512 low01 = _mm512_unpacklo_ps(rows[0], rows[1]), high01 = _mm512_unpackhi_ps(rows[0], rows[1]);
    const __m512 low23 = _mm512_unpacklo_ps(rows[2], rows[3]), high23 = _mm512_unpackhi_ps(rows[2], rows[3]);
    float* to = block.to + k * block.to_stride;
    _mm512_storeu_ps(to, _mm512_shuffle_ps(low01, low23, 0x44));
    _mm512_storeu_ps(to + block.to_stride, _mm512_shuffle_ps(low01, low23, 0xee));
    _mm512_storeu_ps(to + 2 * block.to_stride, _mm512_shuffle_ps(high01, high23, 0x44));
    _mm512_storeu_ps(to + 3 * block.to_stride, _mm512_shuffle_ps(high01, high23, 0xee));
  }
}

CBQ_END_REGION

/// A template, so that tiles are instantiated only where a matmul is.
template <std::same_as<float>>
[[nodiscard]] FloatTallKernels float_tall_kernels() noexcept {
  return {.rows = 8,
          .panels = 2,
          .tile = {{nullptr, nullptr, nullptr, nullptr, &float_tall_tile<4, 1>, &float_tall_tile<5, 1>,
                    &float_tall_tile<6, 1>, &float_tall_tile<7, 1>, &float_tall_tile<8, 1>},
                   {nullptr, nullptr, nullptr, nullptr, &float_tall_tile<4, 2>, &float_tall_tile<5, 2>,
                    &float_tall_tile<6, 2>, &float_tall_tile<7, 2>, &float_tall_tile<8, 2>}}};
}

template <class T>
[[nodiscard]] FloatNarrowKernels<T> float_narrow_kernels() noexcept {
  FloatNarrowKernels<T> kernels;
  kernels.tile[1] = &float_narrow_tile<T, 1, 4>;
  kernels.tile[2] = &float_narrow_tile<T, 2, 4>;
  kernels.tile[3] = &float_narrow_tile<T, 3, 2>;
  kernels.tile[4] = &float_narrow_tile<T, 4, 2>;
  if constexpr (!std::same_as<T, float>) {
    kernels.tile[5] = &float_narrow_tile<T, 5, 1>;
    kernels.tile[6] = &float_narrow_tile<T, 6, 1>;
    kernels.tile[7] = &float_narrow_tile<T, 7, 1>;
    kernels.tile[8] = &float_narrow_tile<T, 8, 1>;
  }
  kernels.decode = &decode_panels<T>;
  return kernels;
}

}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
