// SPDX-License-Identifier: Apache-2.0
#pragma once

// Float kernels for every AArch64 CPU. Four inputs of a row are one load and multiply from a lane: no broadcasts. Tall
// tile: 5 rows x 1 panel of four vectors = 20 accumulators, 4 vectors of weights and 5 of activations: 29 of 32
// registers. Narrow tile: 1 to 5 rows x 1 panel. Half is converted by baseline instructions.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::neon {

/// Vectors in the 16 columns of a float panel.
inline constexpr std::size_t panel_vectors = float_panel_width / 4;

CBQ_BEGIN_REGION(CBQ_TARGET_NEON)

/// The 16 weights of one input of a panel.
[[gnu::always_inline]] inline void load_weights(const float* from, float32x4_t (&weights)[panel_vectors]) noexcept {
  _Pragma("GCC unroll 4") for (std::size_t v = 0; v < panel_vectors; ++v) weights[v] = vld1q_f32(from + 4 * v);
}
[[gnu::always_inline]] inline void load_weights(const half* from, float32x4_t (&weights)[panel_vectors]) noexcept {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  _Pragma("GCC unroll 2") for (std::size_t v = 0; v < panel_vectors; v += 2) {
    const float16x8_t codes = vreinterpretq_f16_u8(vld1q_u8(bytes + 8 * v));
    weights[v] = vcvt_f32_f16(vget_low_f16(codes));
    weights[v + 1] = vcvt_high_f32_f16(codes);
  }
}
[[gnu::always_inline]] inline void load_weights(const bfloat16* from, float32x4_t (&weights)[panel_vectors]) noexcept {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(from);
  const uint16x8_t zero = vdupq_n_u16(0);
  _Pragma("GCC unroll 2") for (std::size_t v = 0; v < panel_vectors; v += 2) {
    const uint16x8_t codes = vreinterpretq_u16_u8(vld1q_u8(bytes + 8 * v));
    weights[v] = vreinterpretq_f32_u16(vzip1q_u16(zero, codes));
    weights[v + 1] = vreinterpretq_f32_u16(vzip2q_u16(zero, codes));
  }
}

/// Adds one input of a panel times lane `Lane` of the activations of each row.
template <int Lane, class T, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_lane(float32x4_t (&sums)[Rows][panel_vectors], const T* panel,
                                                 const float32x4_t (&activations)[Rows]) noexcept {
  float32x4_t weights[panel_vectors];
  load_weights(panel, weights);
  _Pragma("GCC unroll 5") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < panel_vectors; ++v) {
      sums[r][v] = vfmaq_laneq_f32(sums[r][v], weights[v], activations[r], Lane);
    }
  }
}

/// Adds the inputs that are left behind the last whole four.
template <class T, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_rest(float32x4_t (&sums)[Rows][panel_vectors], const FloatTile<T>& tile,
                                                 std::size_t first) noexcept {
  for (std::size_t k = first; k < tile.inputs; ++k) {
    float32x4_t activations[Rows];
    _Pragma("GCC unroll 5") for (std::size_t r = 0; r < Rows; ++r) activations[r] =
        vld1q_dup_f32(tile.a + r * tile.a_stride + k);
    multiply_lane<0>(sums, tile.panels[0] + k * tile.panel_stride, activations);
  }
}

/// c = initial + a * panel for Rows rows and one panel. Input k is added to accumulator k mod Chains; with one chain
/// the products are added in the order of the inputs.
template <class T, std::size_t Rows, std::size_t Chains>
void float_tile(const FloatTile<T>& tile) noexcept {
  float32x4_t sums[Chains][Rows][panel_vectors];
  _Pragma("GCC unroll 5") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < panel_vectors; ++v) {
      _Pragma("GCC unroll 4") for (std::size_t s = 0; s < Chains; ++s) sums[s][r][v] = vdupq_n_f32(0.0f);
      if (tile.initial != nullptr) sums[0][r][v] = vld1q_f32(tile.initial + r * tile.initial_stride + 4 * v);
    }
  }
  const float* a = tile.a;
  const T* panel = tile.panels[0];
  const std::size_t a_stride = tile.a_stride;
  const std::size_t stride = tile.panel_stride;
  const std::size_t whole = tile.inputs / 4 * 4;
  for (std::size_t k = 0; k < whole; k += 4, a += 4, panel += 4 * stride) {
    float32x4_t activations[Rows];
    _Pragma("GCC unroll 5") for (std::size_t r = 0; r < Rows; ++r) activations[r] = vld1q_f32(a + r * a_stride);
    multiply_lane<0>(sums[0], panel, activations);
    multiply_lane<1>(sums[1 % Chains], panel + stride, activations);
    multiply_lane<2>(sums[2 % Chains], panel + 2 * stride, activations);
    multiply_lane<3>(sums[3 % Chains], panel + 3 * stride, activations);
  }
  multiply_rest(sums[0], tile, whole);
  _Pragma("GCC unroll 5") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < panel_vectors; ++v) {
      if constexpr (Chains == 4) {
        sums[0][r][v] = vaddq_f32(sums[0][r][v], sums[2][r][v]);
        sums[1][r][v] = vaddq_f32(sums[1][r][v], sums[3][r][v]);
      }
      if constexpr (Chains != 1) sums[0][r][v] = vaddq_f32(sums[0][r][v], sums[1][r][v]);
      vst1q_f32(tile.c + r * tile.c_stride + 4 * v, sums[0][r][v]);
    }
  }
}

template <class T>
void decode_panels(const T* from, std::size_t count, float* to) noexcept {
  for (std::size_t i = 0; i < count; i += 16) {
    float32x4_t weights[panel_vectors];
    load_weights(from + i, weights);
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < panel_vectors; ++v) vst1q_f32(to + i + 4 * v, weights[v]);
  }
}

/// One 16 x 16 block as 16 blocks of 4 x 4.
inline void transpose_block(const FloatBlockTranspose& block) noexcept {
  for (std::size_t piece = 0; piece < 16; ++piece) {
    const std::size_t k = piece / 4 * 4;
    const std::size_t row = piece % 4 * 4;
    const float* from = block.from + row * block.from_stride + k;
    float32x4_t rows[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) rows[i] = vld1q_f32(from + i * block.from_stride);
    const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(rows[0], rows[1]));
    const float64x2_t odd01 = vreinterpretq_f64_f32(vtrn2q_f32(rows[0], rows[1]));
    const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(rows[2], rows[3]));
    const float64x2_t odd23 = vreinterpretq_f64_f32(vtrn2q_f32(rows[2], rows[3]));
    float* to = block.to + k * block.to_stride + row;
    vst1q_f32(to, vreinterpretq_f32_f64(vzip1q_f64(even01, even23)));
    vst1q_f32(to + block.to_stride, vreinterpretq_f32_f64(vzip1q_f64(odd01, odd23)));
    vst1q_f32(to + 2 * block.to_stride, vreinterpretq_f32_f64(vzip2q_f64(even01, even23)));
    vst1q_f32(to + 3 * block.to_stride, vreinterpretq_f32_f64(vzip2q_f64(odd01, odd23)));
  }
}

CBQ_END_REGION

/// A template, so that tiles are instantiated only where a matmul is.
template <std::same_as<float> T>
[[nodiscard]] FloatTallKernels float_tall_kernels() noexcept {
  return {.rows = 5,
          .panels = 1,
          .tile = {{nullptr, nullptr, nullptr, &float_tile<T, 3, 1>, &float_tile<T, 4, 1>, &float_tile<T, 5, 1>}}};
}

template <class T>
[[nodiscard]] FloatNarrowKernels<T> float_narrow_kernels() noexcept {
  FloatNarrowKernels<T> kernels;
  kernels.tile[1] = &float_tile<T, 1, 4>;
  kernels.tile[2] = &float_tile<T, 2, 2>;
  kernels.tile[3] = &float_tile<T, 3, 1>;
  kernels.tile[4] = &float_tile<T, 4, 1>;
  if constexpr (!std::same_as<T, float>) kernels.tile[5] = &float_tile<T, 5, 1>;
  kernels.decode = &decode_panels<T>;
  return kernels;
}

}  // namespace isa::neon
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
