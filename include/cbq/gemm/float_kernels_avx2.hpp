// SPDX-License-Identifier: Apache-2.0
#pragma once

// Float kernels for AVX2, FMA, F16C. Tall tile: 6 rows x 1 panel of two vectors = 12 accumulators, 2 vectors of weights
// and 1 broadcast: 15 of 16 registers. Narrow tile: 1 to 6 rows x 1 panel.

#if defined(__x86_64__)

#include <immintrin.h>

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

[[gnu::always_inline]] inline __m256 load_weights(const float* from) noexcept {
  return _mm256_loadu_ps(from);
}
[[gnu::always_inline]] inline __m256 load_weights(const half* from) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from)));
}
[[gnu::always_inline]] inline __m256 load_weights(const bfloat16* from) noexcept {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
}

/// Asks for the memory `ahead` elements further on, which may lie outside of the array.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* from, std::size_t ahead) noexcept {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(from) + ahead * sizeof(T)), _MM_HINT_T0);
}

/// c = initial + a * panel for Rows rows and one panel, the products added in the order of the inputs.
template <std::size_t Rows>
void float_tall_tile(const FloatTile<float>& tile) noexcept {
  __m256 sums[Rows][2];
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t v = 0; v < 2; ++v) {
      sums[r][v] = tile.initial != nullptr ? _mm256_loadu_ps(tile.initial + r * tile.initial_stride + v * 8)
                                           : _mm256_setzero_ps();
    }
  }
  const float* a = tile.a;
  const std::size_t a_stride = tile.a_stride;
  const float* panel = tile.panels[0];
  for (std::size_t k = 0; k < tile.inputs; ++k) {
    prefetch(panel + k * 16, 2048 / sizeof(float));  // pays with few rows, costs nothing with many
    const __m256 weights[2] = {_mm256_loadu_ps(panel + k * 16), _mm256_loadu_ps(panel + k * 16 + 8)};
    _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
      const __m256 activation = _mm256_broadcast_ss(a + r * a_stride + k);
      _Pragma("GCC unroll 2") for (std::size_t v = 0; v < 2; ++v) {
        sums[r][v] = _mm256_fmadd_ps(activation, weights[v], sums[r][v]);
      }
    }
  }
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t v = 0; v < 2; ++v) {
      _mm256_storeu_ps(tile.c + r * tile.c_stride + v * 8, sums[r][v]);
    }
  }
}

/// c = initial + a * panel for Rows rows and one panel. Input k is added to accumulator k mod Chains. The panel is
/// asked for 2 KiB ahead: hardware stops at the end of each 4 KiB page, and few rows give it no time to start again.
template <class T, std::size_t Rows, std::size_t Chains>
void float_narrow_tile(const FloatTile<T>& tile) noexcept {
  constexpr std::size_t ahead = 2048 / (16 * sizeof(T));
  __m256 sums[Chains][Rows][2];
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t s = 0; s < Chains; ++s) sums[s][r][0] = sums[s][r][1] =
        _mm256_setzero_ps();
    if (Chains == 1 && tile.initial != nullptr) {
      sums[0][r][0] = _mm256_loadu_ps(tile.initial + r * tile.initial_stride);
      sums[0][r][1] = _mm256_loadu_ps(tile.initial + r * tile.initial_stride + 8);
    }
  }
  const float* a = tile.a;
  const T* panel = tile.panels[0];
  const std::size_t a_stride = tile.a_stride;
  const std::size_t whole = tile.inputs / Chains * Chains;
  for (std::size_t k = 0; k < whole; k += Chains) {
    _Pragma("GCC unroll 4") for (std::size_t s = 0; s < Chains; ++s) {
      const __m256 weights[2] = {load_weights(panel), load_weights(panel + 8)};
      prefetch(panel, ahead * tile.panel_stride);
      _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
        const __m256 activation = _mm256_broadcast_ss(a + r * a_stride + k + s);
        sums[s][r][0] = _mm256_fmadd_ps(activation, weights[0], sums[s][r][0]);
        sums[s][r][1] = _mm256_fmadd_ps(activation, weights[1], sums[s][r][1]);
      }
      panel += tile.panel_stride;
    }
  }
  for (std::size_t k = whole; k < tile.inputs; ++k) {
    const __m256 weights[2] = {load_weights(panel), load_weights(panel + 8)};
    _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
      const __m256 activation = _mm256_broadcast_ss(a + r * a_stride + k);
      sums[0][r][0] = _mm256_fmadd_ps(activation, weights[0], sums[0][r][0]);
      sums[0][r][1] = _mm256_fmadd_ps(activation, weights[1], sums[0][r][1]);
    }
    panel += tile.panel_stride;
  }
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t v = 0; v < 2; ++v) {
      _Pragma("GCC unroll 4") for (std::size_t rest = Chains / 2; rest != 0; rest /= 2) {
        _Pragma("GCC unroll 4") for (std::size_t s = 0; s < rest; ++s) {
          sums[s][r][v] = _mm256_add_ps(sums[s][r][v], sums[s + rest][r][v]);
        }
      }
      if (Chains != 1 && tile.initial != nullptr) {
        sums[0][r][v] = _mm256_add_ps(_mm256_loadu_ps(tile.initial + r * tile.initial_stride + v * 8), sums[0][r][v]);
      }
      _mm256_storeu_ps(tile.c + r * tile.c_stride + v * 8, sums[0][r][v]);
    }
  }
}

/// Asks for the weights 8 KiB ahead, which is the next block of a packed matrix, to arrive while this one is
/// multiplied.
template <class T>
void decode_panels(const T* from, std::size_t count, float* to) noexcept {
  for (std::size_t i = 0; i < count; i += 16) {
    prefetch(from + i, 8192 / sizeof(T));
    _mm256_storeu_ps(to + i, load_weights(from + i));
    _mm256_storeu_ps(to + i + 8, load_weights(from + i + 8));
  }
}

/// One 16 x 16 block, eight rows of it at a time. Rows i and i + 4 share a vector, so that four transpositions inside
/// 128-bit lanes finish half of four rows of the result without crossing lanes.
inline void transpose_block(const FloatBlockTranspose& block) noexcept {
  const std::size_t stride = block.from_stride;
  for (std::size_t piece = 0; piece < 8; ++piece) {
    const std::size_t k = piece / 2 * 4;
    const std::size_t first_row = piece % 2 * 8;
    __m256 rows[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
      const float* from = block.from + (first_row + i) * stride + k;
      rows[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + 4 * stride), 1);
    }
    const __m256 low01 = _mm256_unpacklo_ps(rows[0], rows[1]), high01 = _mm256_unpackhi_ps(rows[0], rows[1]);
    const __m256 low23 = _mm256_unpacklo_ps(rows[2], rows[3]), high23 = _mm256_unpackhi_ps(rows[2], rows[3]);
    float* to = block.to + k * block.to_stride + first_row;
    _mm256_storeu_ps(to, _mm256_shuffle_ps(low01, low23, 0x44));
    _mm256_storeu_ps(to + block.to_stride, _mm256_shuffle_ps(low01, low23, 0xee));
    _mm256_storeu_ps(to + 2 * block.to_stride, _mm256_shuffle_ps(high01, high23, 0x44));
    _mm256_storeu_ps(to + 3 * block.to_stride, _mm256_shuffle_ps(high01, high23, 0xee));
  }
}

CBQ_END_REGION

/// A template, so that tiles are instantiated only where a matmul is.
template <std::same_as<float>>
[[nodiscard]] FloatTallKernels float_tall_kernels() noexcept {
  return {.rows = 6,
          .panels = 1,
          .tile = {{nullptr, nullptr, nullptr, &float_tall_tile<3>, &float_tall_tile<4>, &float_tall_tile<5>,
                    &float_tall_tile<6>}}};
}

template <class T>
[[nodiscard]] FloatNarrowKernels<T> float_narrow_kernels() noexcept {
  FloatNarrowKernels<T> kernels;
  kernels.tile[1] = &float_narrow_tile<T, 1, 4>;
  kernels.tile[2] = &float_narrow_tile<T, 2, 2>;
  kernels.tile[3] = &float_narrow_tile<T, 3, 1>;
  kernels.tile[4] = &float_narrow_tile<T, 4, 1>;
  if constexpr (!std::same_as<T, float>) {
    kernels.tile[5] = &float_narrow_tile<T, 5, 1>;
    kernels.tile[6] = &float_narrow_tile<T, 6, 1>;
  }
  kernels.decode = &decode_panels<T>;
  return kernels;
}

}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
