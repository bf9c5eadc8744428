// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 weight-only kernels. A line of codes holds, in every 32-bit lane, 4 inputs of one output: byte i of the lanes
// is the column vector of input i. Codes of at most 4 bits become floats by a table of 16 in one vpermps, which looks
// at the lowest 4 bits of a lane only, so that neither mask nor conversion is needed; 8-bit codes are masked and
// converted.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>

#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// code - zero for the codes 0..15, with the zero point of symmetric weights.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512 code_table() noexcept {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return Z == Zero::affine ? codes : _mm512_sub_ps(codes, _mm512_set1_ps(1 << (Bits - 1)));
}

/// code - zero of input `Input` (0..3) of a decoded step, for 16 outputs.
template <int Bits, Zero Z, int Input>
[[gnu::always_inline]] inline __m512 step_weights(__m512i step, __m512 table, __m512 zero) noexcept {
  const __m512i shifted = Input == 0 ? step : _mm512_srli_epi32(step, 8 * Input);
  if constexpr (Bits == 8) {
    return _mm512_sub_ps(_mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255))), zero);
  } else {
    const __m512 code = _mm512_permutexvar_ps(shifted, table);
    return Z == Zero::affine ? _mm512_sub_ps(code, zero) : code;
  }
}

/// Zero points of one group as floats; those of symmetric weights of 8 bits too, whose codes no table decodes.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512 group_zero(const std::byte* header) noexcept {
  if constexpr (Z == Zero::affine) {
    const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + group_scales_bytes));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros));
  } else {
    return _mm512_set1_ps(1 << (Bits - 1));
  }
}

[[gnu::always_inline]] inline __m512 group_scale(const std::byte* header) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(header)));
}

/// Decodes steps [Step, 8) of one block: 4 x 16 floats each.
template <int Bits, Zero Z, unsigned Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, __m512 table, __m512 zero, __m512 scale,
                                                float* out) noexcept {
  const __m512i step = decode_step<Bits, Step>(block);
  _mm512_storeu_ps(out, _mm512_mul_ps(scale, step_weights<Bits, Z, 0>(step, table, zero)));
  _mm512_storeu_ps(out + 16, _mm512_mul_ps(scale, step_weights<Bits, Z, 1>(step, table, zero)));
  _mm512_storeu_ps(out + 32, _mm512_mul_ps(scale, step_weights<Bits, Z, 2>(step, table, zero)));
  _mm512_storeu_ps(out + 48, _mm512_mul_ps(scale, step_weights<Bits, Z, 3>(step, table, zero)));
  if constexpr (Step < 7) decode_steps<Bits, Z, Step + 1>(block, table, zero, scale, out + 64);
}

/// See DecodeJob.
template <int Bits, Zero Z>
void decode_panel(const DecodeJob& job) noexcept {
  const __m512 table = code_table<Bits, Z>();
  for (std::size_t input = 0; input < job.inputs; input += block_inputs) {
    const std::size_t block = job.first_block + input / block_inputs;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const std::byte* codes = header + job.header_bytes + block % job.blocks_per_group * (Bits * 64);
    const __m512 scale = _mm512_mul_ps(group_scale(header), _mm512_set1_ps(job.multiplier));
    const __m512 zero = group_zero<Bits, Z>(header);
    float* out = job.out + input * panel_outputs;
    if (job.inputs - input >= block_inputs) {
      decode_steps<Bits, Z, 0>(codes, table, zero, scale, out);
    } else {
      float whole[block_inputs * panel_outputs];
      decode_steps<Bits, Z, 0>(codes, table, zero, scale, whole);
      __builtin_memcpy(out, whole, (job.inputs - input) * panel_outputs * sizeof(float));
    }
  }
}

/// Adds the products of steps [Step, 8) of one block; input i of a step goes to sum i mod Chains.
template <int Bits, Zero Z, unsigned Step, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_float_steps(__m512 (&sums)[Chains][Rows], const std::byte* block,
                                                        __m512 table, __m512 zero, const float* x,
                                                        std::size_t x_stride) noexcept {
  const __m512i step = decode_step<Bits, Step>(block);
  const __m512 weights[4] = {step_weights<Bits, Z, 0>(step, table, zero), step_weights<Bits, Z, 1>(step, table, zero),
                             step_weights<Bits, Z, 2>(step, table, zero), step_weights<Bits, Z, 3>(step, table, zero)};
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      __m512& sum = sums[i % Chains][r];
      sum = _mm512_fmadd_ps(_mm512_set1_ps(x[r * x_stride + Step * 4 + i]), weights[i], sum);
    }
  }
  if constexpr (Step < 7) multiply_float_steps<Bits, Z, Step + 1, Rows, Chains>(sums, block, table, zero, x, x_stride);
}

/// See WeightOnlyTile.
template <int Bits, Zero Z, std::size_t Rows>
inline void weight_only_rows_tile(const WeightOnlyTile& tile) noexcept {
  constexpr std::size_t Chains = Rows == 1 ? 4 : 2;
  const __m512 table = code_table<Bits, Z>();
  __m512 totals[Rows];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r] = _mm512_setzero_ps();
  const std::byte* header = tile.panel;
  std::size_t input = 0;
  for (std::size_t group = 0; group < tile.groups; ++group, header += tile.group_bytes) {
    const __m512 zero = group_zero<Bits, Z>(header);
    const std::byte* block = header + tile.header_bytes;
    __m512 sums[Chains][Rows];
    _Pragma("GCC unroll 4") for (std::size_t c = 0; c < Chains; ++c)
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) sums[c][r] = _mm512_setzero_ps();
    for (std::size_t i = 0; i < tile.blocks_per_group && input < tile.inputs;
         ++i, input += block_inputs, block += Bits * 64) {
      if (tile.inputs - input >= block_inputs) {
        multiply_float_steps<Bits, Z, 0, Rows, Chains>(sums, block, table, zero, tile.x + input, tile.x_stride);
      } else {
        float padded[Rows * block_inputs] = {};  // x ends inside this block
        for (std::size_t r = 0; r < Rows; ++r) {
          __builtin_memcpy(padded + r * block_inputs, tile.x + r * tile.x_stride + input,
                           (tile.inputs - input) * sizeof(float));
        }
        multiply_float_steps<Bits, Z, 0, Rows, Chains>(sums, block, table, zero, padded, block_inputs);
      }
    }
    const __m512 scale = group_scale(header);
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      __m512 sum = sums[0][r];
      _Pragma("GCC unroll 4") for (std::size_t c = 1; c < Chains; ++c) sum = _mm512_add_ps(sum, sums[c][r]);
      totals[r] = _mm512_fmadd_ps(scale, sum, totals[r]);
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    _mm512_storeu_ps(tile.out + r * tile.out_stride, _mm512_mul_ps(totals[r], _mm512_set1_ps(tile.multiplier)));
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
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
