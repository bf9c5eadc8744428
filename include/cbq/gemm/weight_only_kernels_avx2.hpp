// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX2 weight-only kernels: as those for AVX-512, with the 16 outputs of a panel in two registers. Codes are masked and
// converted, because a permutation of 8 floats is no table for 4 bits.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>

#include <cbq/gemm/integer_kernels_avx2.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

/// code - zero of input `Input` (0..3) of a decoded step, for 8 outputs.
template <int Input>
[[gnu::always_inline]] inline __m256 step_weights(__m256i step, __m256 zero) noexcept {
  const __m256i shifted = Input == 0 ? step : _mm256_srli_epi32(step, 8 * Input);
  return _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255))), zero);
}

/// Zero points of 8 outputs of one group as floats.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m256 group_zero(const std::byte* header, std::size_t output) noexcept {
  if constexpr (Z == Zero::affine) {
    const __m128i zeros = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(header + group_scales_bytes + output));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(zeros));
  } else {
    return _mm256_set1_ps(1 << (Bits - 1));
  }
}

[[gnu::always_inline]] inline __m256 group_scale(const std::byte* header, std::size_t output) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(header + output * sizeof(half))));
}

/// Decodes steps [Step, 8) of half a block: 4 inputs each, 16 floats apart.
template <int Bits, int Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, __m256 zero, __m256 scale,
                                                float* out) noexcept {
  const __m256i step = decode_step<Bits, Step>(block);
  _mm256_storeu_ps(out, _mm256_mul_ps(scale, step_weights<0>(step, zero)));
  _mm256_storeu_ps(out + 16, _mm256_mul_ps(scale, step_weights<1>(step, zero)));
  _mm256_storeu_ps(out + 32, _mm256_mul_ps(scale, step_weights<2>(step, zero)));
  _mm256_storeu_ps(out + 48, _mm256_mul_ps(scale, step_weights<3>(step, zero)));
  if constexpr (Step < 7) decode_steps<Bits, Step + 1>(block, zero, scale, out + 64);
}

/// See DecodeJob.
template <int Bits, Zero Z>
void decode_panel(const DecodeJob& job) noexcept {
  for (std::size_t input = 0; input < job.inputs; input += block_inputs) {
    const std::size_t block = job.first_block + input / block_inputs;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const std::byte* codes = header + job.header_bytes + block % job.blocks_per_group * (Bits * 64);
    const bool whole_block = job.inputs - input >= block_inputs;
    float whole[block_inputs * panel_outputs];
    float* out = whole_block ? job.out + input * panel_outputs : whole;
    for (std::size_t output = 0; output < panel_outputs; output += 8) {
      const __m256 scale = _mm256_mul_ps(group_scale(header, output), _mm256_set1_ps(job.multiplier));
      decode_steps<Bits, 0>(codes + output * step_inputs, group_zero<Bits, Z>(header, output), scale, out + output);
    }
    if (!whole_block)
      __builtin_memcpy(job.out + input * panel_outputs, whole, (job.inputs - input) * panel_outputs * sizeof(float));
  }
}

/// Adds the products of steps [Step, 8) of one block; a row and half has one sum, which with two halves hides the
/// latency.
template <int Bits, int Step, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_float_steps(__m256 (&sums)[Rows][2], const std::byte* block,
                                                        __m256 low_zero, __m256 high_zero, const float* x,
                                                        std::size_t x_stride) noexcept {
  const __m256i low = decode_step<Bits, Step>(block);
  const __m256i high = decode_step<Bits, Step>(block + 32);
  const __m256 weights[4][2] = {{step_weights<0>(low, low_zero), step_weights<0>(high, high_zero)},
                                {step_weights<1>(low, low_zero), step_weights<1>(high, high_zero)},
                                {step_weights<2>(low, low_zero), step_weights<2>(high, high_zero)},
                                {step_weights<3>(low, low_zero), step_weights<3>(high, high_zero)}};
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      const __m256 activation = _mm256_set1_ps(x[r * x_stride + Step * 4 + i]);
      sums[r][0] = _mm256_fmadd_ps(activation, weights[i][0], sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(activation, weights[i][1], sums[r][1]);
    }
  }
  if constexpr (Step < 7) multiply_float_steps<Bits, Step + 1, Rows>(sums, block, low_zero, high_zero, x, x_stride);
}

/// See WeightOnlyTile.
template <int Bits, Zero Z, std::size_t Rows>
inline void weight_only_rows_tile(const WeightOnlyTile& tile) noexcept {
  __m256 totals[Rows][2];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
  const std::byte* header = tile.panel;
  std::size_t input = 0;
  for (std::size_t group = 0; group < tile.groups; ++group, header += tile.group_bytes) {
    const __m256 low_zero = group_zero<Bits, Z>(header, 0);
    const __m256 high_zero = group_zero<Bits, Z>(header, 8);
    const std::byte* block = header + tile.header_bytes;
    __m256 sums[Rows][2];
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (std::size_t i = 0; i < tile.blocks_per_group && input < tile.inputs;
         ++i, input += block_inputs, block += Bits * 64) {
      if (tile.inputs - input >= block_inputs) {
        multiply_float_steps<Bits, 0, Rows>(sums, block, low_zero, high_zero, tile.x + input, tile.x_stride);
      } else {
        float padded[Rows * block_inputs] = {};  // x ends inside this block
        for (std::size_t r = 0; r < Rows; ++r) {
          __builtin_memcpy(padded + r * block_inputs, tile.x + r * tile.x_stride + input,
                           (tile.inputs - input) * sizeof(float));
        }
        multiply_float_steps<Bits, 0, Rows>(sums, block, low_zero, high_zero, padded, block_inputs);
      }
    }
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      totals[r][0] = _mm256_fmadd_ps(group_scale(header, 0), sums[r][0], totals[r][0]);
      totals[r][1] = _mm256_fmadd_ps(group_scale(header, 8), sums[r][1], totals[r][1]);
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    float* out = tile.out + r * tile.out_stride;
    _mm256_storeu_ps(out, _mm256_mul_ps(totals[r][0], _mm256_set1_ps(tile.multiplier)));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(totals[r][1], _mm256_set1_ps(tile.multiplier)));
  }
}

/// See WeightOnlyTile.
template <int Bits, Zero Z>
void weight_only_tile(const WeightOnlyTile& tile) noexcept {
  switch (tile.rows) {
    case 1:
      weight_only_rows_tile<Bits, Z, 1>(tile);
      break;
    case 2:
      weight_only_rows_tile<Bits, Z, 2>(tile);
      break;
    case 3:
      weight_only_rows_tile<Bits, Z, 3>(tile);
      break;
    default:
      weight_only_rows_tile<Bits, Z, 4>(tile);
      break;
  }
}

CBQ_END_REGION
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
