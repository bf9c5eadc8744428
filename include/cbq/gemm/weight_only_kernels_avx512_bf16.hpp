// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weight-only products with vdpbf16ps, twice the products of vfmadd231ps per clock: pairs of bfloat16, summed in float.
// Both operands are exact (activations are bfloat16 already, code - zero has 8 bits), and so is each product; sums are
// rounded to nearest once per product. The scale of a group multiplies its sum in one FMA. Register tile: 6 rows x 2
// panels = 12 sums and 12 totals, 2 vectors of weights, 1 broadcast. The instruction takes denormal operands for zero
// and flushes denormal sums, whatever MXCSR says.
//
// Codes of at most 4 bits become bfloat16 by a table of 32 in one vpermw, which looks at the lowest 5 bits of a 16-bit
// lane only: those of code - zero in two's complement. 8-bit codes become floats first, whose upper halves are exact.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/weight_only_kernels_avx512.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_bf16 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512BF16)

/// The upper halves of 2 x 16 floats as 32 lanes of 16 bits.
[[gnu::always_inline]] inline __m512i upper_halves(__m512 first, __m512 second) noexcept {
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(first), 16));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(second), 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/// bfloat16 values of codes 0..15 minus the zero point of symmetric weights, or of the 5-bit numbers -16..15.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512i level_table() noexcept {
  const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 zero = _mm512_set1_ps(Z == Zero::affine ? 0.0f : 1 << (Bits - 1));
  return upper_halves(_mm512_sub_ps(codes, zero), _mm512_sub_ps(codes, _mm512_set1_ps(16.0f)));
}

/// code + 2^23 of input `Input` (0..3) of a decoded step as float, minus `zero`.
template <int Input>
[[gnu::always_inline]] inline __m512i wide_level(__m512i step, __m512 zero) noexcept {
  const __m512i shifted = Input == 0 ? step : _mm512_srli_epi32(step, 8 * Input);
  // (shifted & 255) | 2^23 in one ternary operation
  const __m512i code = _mm512_ternarylogic_epi32(shifted, _mm512_set1_epi32(255), _mm512_set1_epi32(0x4b000000), 0xea);
  return _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(code), zero));
}

/// Zero points of a group: of 8-bit codes as floats + 2^23, of others in every byte of a lane.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512i group_zeros(const std::byte* header) noexcept {
  if constexpr (Bits == 8) {
    return _mm512_castps_si512(_mm512_add_ps(avx512_vnni::group_zero<Bits, Z>(header), _mm512_set1_ps(8388608.0f)));
  } else if constexpr (Z == Zero::affine) {
    const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + group_scales_bytes));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101));
  } else {
    return _mm512_setzero_si512();
  }
}

/// Decodes steps [Step, 8) of one block: 2 x 16 pairs each.
template <int Bits, Zero Z, unsigned Step>
[[gnu::always_inline]] inline void decode_pairs_of_steps(const std::byte* block, __m512i table, __m512i zeros,
                                                         std::uint32_t* pairs) noexcept {
  __m512i step = avx512_vnni::decode_step<Bits, Step>(block);
  if constexpr (Bits == 8) {
    const __m512 zero = _mm512_castsi512_ps(zeros);
    const __m512i first = _mm512_srli_epi32(wide_level<0>(step, zero), 16);
    const __m512i third = _mm512_srli_epi32(wide_level<2>(step, zero), 16);
    _mm512_storeu_si512(pairs, _mm512_mask_blend_epi16(0x55555555u, wide_level<1>(step, zero), first));
    _mm512_storeu_si512(pairs + 16, _mm512_mask_blend_epi16(0x55555555u, wide_level<3>(step, zero), third));
  } else {
    // In each 128-bit lane, the bytes of inputs 0 and 1, and of 2 and 3, to lanes of 16 bits.
    const __m512i even = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13));
    const __m512i odd = _mm512_broadcast_i32x4(_mm_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15));
    if constexpr (Z == Zero::affine) step = _mm512_sub_epi8(step, zeros);
    _mm512_storeu_si512(pairs, _mm512_permutexvar_epi16(_mm512_shuffle_epi8(step, even), table));
    _mm512_storeu_si512(pairs + 16, _mm512_permutexvar_epi16(_mm512_shuffle_epi8(step, odd), table));
  }
  if constexpr (Step < 7) decode_pairs_of_steps<Bits, Z, Step + 1>(block, table, zeros, pairs + 32);
}

/// See PairDecodeJob. Asks for the blocks after these, to arrive while these are multiplied.
template <int Bits, Zero Z>
void decode_pairs(const PairDecodeJob& job) noexcept {
  const __m512i table = level_table<Bits, Z>();
  const std::size_t end = job.first_block + job.blocks;
  std::uint32_t* pairs = job.pairs;
  float* scales = job.scales;
  for (std::size_t block = job.first_block; block < end; scales += panel_outputs) {
    const std::size_t inside = block % job.blocks_per_group;
    const std::size_t rest = job.blocks_per_group - inside;
    const std::size_t count = rest < end - block ? rest : end - block;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const __m512 scale = _mm512_mul_ps(avx512_vnni::group_scale(header), _mm512_set1_ps(job.multiplier));
    _mm512_storeu_ps(scales, scale);
    const __m512i zeros = group_zeros<Bits, Z>(header);
    const std::byte* codes = header + job.header_bytes + inside * (Bits * 64);
    for (std::size_t i = 0; i < count; ++i, codes += Bits * 64, pairs += block_inputs / 2 * panel_outputs) {
      const std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(codes) + job.blocks * (Bits * 64);
      _Pragma("GCC unroll 8") for (std::size_t line = 0; line < Bits; ++line) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead + line * 64), _MM_HINT_T1);
      }
      decode_pairs_of_steps<Bits, Z, 0>(codes, table, zeros, pairs);
    }
    block += count;
  }
}

/// sums + products of pairs of bfloat16. No intrinsic, because Clang 16 crashes on uses of its vectors of bfloat16.
[[gnu::always_inline]] inline __m512 add_products(__m512 sums, __m512i left, __m512i right) noexcept {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
  return sums;
}

/// sums += x * weights, where `activations` holds the two inputs of each row.
template <std::size_t Rows, std::size_t Panels>
[[gnu::always_inline]] inline void multiply_pairs(__m512 (&sums)[Rows][Panels],
                                                  const std::uint32_t (&activations)[Rows],
                                                  const std::uint32_t* const (&pairs)[2], std::size_t pair) noexcept {
  __m512i weights[Panels];
  _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) weights[p] =
      _mm512_loadu_si512(pairs[p] + pair * panel_outputs);
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    const __m512i two = _mm512_set1_epi32(static_cast<int>(activations[r]));
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      sums[r][p] = add_products(sums[r][p], two, weights[p]);
    }
  }
}

/// See Bfloat16Tile.
template <std::size_t Rows, std::size_t Panels>
void bfloat16_tile(const Bfloat16Tile& tile) noexcept {
  __m512 totals[Rows][Panels];
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      totals[r][p] = _mm512_loadu_ps(tile.sums + (r * 2 + p) * panel_outputs);
    }
  }
  const bfloat16* x = tile.x;
  const std::size_t x_stride = tile.x_stride;
  const std::uint32_t* pairs[2] = {tile.pairs[0], tile.pairs[1]};
  std::size_t group_inputs = tile.first_inputs;
  std::size_t group = 0;
  for (std::size_t left = tile.inputs; left != 0; group += panel_outputs) {
    const std::size_t count = group_inputs < left ? group_inputs : left;
    left -= count;
    group_inputs = tile.group_inputs;
    __m512 sums[Rows][Panels];
    _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
      _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) sums[r][p] = _mm512_setzero_ps();
    }
    std::uint32_t two[Rows];
    for (std::size_t pair = 0; pair < count / 2; ++pair, x += 2) {
      _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
        __builtin_memcpy(&two[r], x + r * x_stride, sizeof two[r]);
      }
      multiply_pairs<Rows, Panels>(sums, two, pairs, pair);
    }
    if (count % 2 != 0) {  // the last input of all: its neighbour is padding, which zeros multiply
      _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) two[r] = x[r * x_stride].bits;
      multiply_pairs<Rows, Panels>(sums, two, pairs, count / 2);
    }
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      pairs[p] += count / 2 * panel_outputs;
      const __m512 scale = _mm512_loadu_ps(tile.scales[p] + group);
      _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
        totals[r][p] = _mm512_fmadd_ps(scale, sums[r][p], totals[r][p]);
      }
    }
  }
  _Pragma("GCC unroll 6") for (std::size_t r = 0; r < Rows; ++r) {
    _Pragma("GCC unroll 2") for (std::size_t p = 0; p < Panels; ++p) {
      _mm512_storeu_ps(tile.sums + (r * 2 + p) * panel_outputs, totals[r][p]);
    }
  }
}

CBQ_END_REGION

template <int Bits, Zero Z>
[[nodiscard]] Bfloat16Kernels bfloat16_kernels() noexcept {
  return {
      .decode = &decode_pairs<Bits, Z>,
      .tile = {{nullptr, nullptr, nullptr, nullptr, &bfloat16_tile<4, 1>, &bfloat16_tile<5, 1>, &bfloat16_tile<6, 1>},
               {nullptr, nullptr, nullptr, nullptr, &bfloat16_tile<4, 2>, &bfloat16_tile<5, 2>, &bfloat16_tile<6, 2>}}};
}

}  // namespace isa::avx512_bf16
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
