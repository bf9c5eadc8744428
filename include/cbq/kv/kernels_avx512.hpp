// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX-512 F, BW, DQ, VL, VNNI: the kernels of kv_tile.hpp. One panel at a time, so that a page is one sequential
// stream; 1, 2, 3, 4 or 8 rows share a decoded vector. Keys: codes are the unsigned operand of vpdpbusd, queries are
// broadcast inside the instruction. Values: weights are the unsigned operand and codes the signed one, 8-bit codes
// minus 128. A line of 4-bit codes costs a row 2 products, and all rows together 1 load, 1 shift and 2 ands; a panel
// costs a row 5 more instructions.
//
// Pages lie anywhere in memory, and 4 KiB of keys are too few for the processor to recognize a stream: every kernel
// asks for as many lines of what is read next as it reads itself.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/kv/kernels_scalar.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/lines_ahead.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx512_vnni {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

/// Independent accumulators per row, where the rows alone are too few to hide the latency of vpdpbusd.
template <std::size_t Rows>
inline constexpr std::size_t kv_chains = Rows == 1   ? 4
                                         : Rows <= 3 ? 2
                                                     : 1;

/// Whether codes are multiplied where they lie in their bytes, 2^step_shift times too large, and sums shifted once per
/// group: where steps of different shifts have accumulators of their own.
template <int Bits, std::size_t Rows>
inline constexpr bool kv_in_place = (Bits == 4 && kv_chains<Rows> >= 2) || (Bits == 2 && kv_chains<Rows> == 4);

/// Adds the products of steps [Step, 8) of one block of keys.
template <int Bits, unsigned Step, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_keys(__m512i (&sums)[Chains][Rows], const std::byte* block,
                                                 const std::int8_t* queries, std::size_t row_bytes) noexcept {
  __m512i codes;
  if constexpr (kv_in_place<Bits, Rows>) {
    codes = step_in_place<Bits, Step>(block);
  } else {
    codes = decode_step<Bits, Step>(block);
  }
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, queries + r * row_bytes + Step * 4, sizeof four);
    __m512i& sum = sums[Step % Chains][r];
    sum = _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(four));
  }
  if constexpr (Step < 7) multiply_keys<Bits, Step + 1>(sums, block, queries, row_bytes);
}

/// Adds all chains of keys to the first.
template <int Bits, std::size_t Chain, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void join_keys(__m512i (&sums)[Chains][Rows]) noexcept {
  if constexpr (Chain < Chains) {
    constexpr unsigned shift = kv_in_place<Bits, Rows> ? step_shift<Bits>(Chain) : 0;
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const __m512i sum = shift == 0 ? sums[Chain][r] : _mm512_srai_epi32(sums[Chain][r], shift);
      sums[0][r] = _mm512_add_epi32(sums[0][r], sum);
    }
    join_keys<Bits, Chain + 1>(sums);
  }
}

/// 16 halves as floats.
[[gnu::always_inline]] inline __m512 load_halves(const std::byte* from) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// Scores of rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows>
inline void key_rows(const KeyTile& tile, std::size_t first_row, LinesAhead ahead) noexcept {
  const std::size_t row_bytes = block_inputs * tile.key_blocks;
  const std::size_t groups = tile.channel_keys ? 1 : tile.groups;
  const std::size_t group_blocks = tile.channel_keys ? tile.key_blocks : tile.blocks_per_group;
  const std::byte* header = tile.keys;
  float* scores = tile.scores + first_row * tile.score_stride;
  for (std::size_t panel = 0; panel < tile.panels; ++panel, header += tile.key_panel_bytes, scores += panel_outputs) {
    const std::byte* block = header + tile.key_header_bytes;
    const std::int8_t* queries = tile.queries + first_row * row_bytes;
    __m512 totals[Rows];
    __m512 offsets[Rows];
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) totals[r] = offsets[r] = _mm512_setzero_ps();
    std::size_t blocks_left = tile.key_blocks;
    for (std::size_t group = 0; group < groups; ++group) {
      __m512i sums[kv_chains<Rows>][Rows];
      _Pragma("GCC unroll 4") for (std::size_t c = 0; c < kv_chains<Rows>; ++c)
          _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) sums[c][r] = _mm512_setzero_si512();
      const std::size_t count = blocks_left < group_blocks ? blocks_left : group_blocks;
      blocks_left -= count;
      ask_for<Rows, 1>(ahead);
      for (std::size_t i = 0; i < count; ++i, block += Bits * line_bytes, queries += block_inputs) {
        ask_for<Rows, Bits>(ahead);
        multiply_keys<Bits, 0>(sums, block, queries, row_bytes);
      }
      join_keys<Bits, 1>(sums);
      __m512 scale = _mm512_set1_ps(1.0f);
      __m512 offset = _mm512_setzero_ps();
      if (!tile.channel_keys) {
        const std::byte* halves = header + group * 2 * group_scales_bytes;
        scale = load_halves(halves);
        offset = load_halves(halves + group_scales_bytes);
      }
      const float* query_sums = tile.query_sums + first_row * tile.groups + group;
      _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
        totals[r] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[0][r]), totals[r]);
        offsets[r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(query_sums[r * tile.groups]), offsets[r]);
      }
    }
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      const __m512 query_scale = _mm512_set1_ps(tile.query_scales[first_row + r]);
      _mm512_storeu_ps(scores + r * tile.score_stride, _mm512_fmadd_ps(query_scale, totals[r], offsets[r]));
    }
  }
}

/// See KeyTile. 8 rows at once as long as there are, the others in even pieces of at most 4. The first piece asks for
/// what is read next.
template <int Bits>
void key_tile(const KeyTile& tile) noexcept {
  LinesAhead ahead = lines_from(tile.next, tile.keys);
  std::size_t row = 0;
  while (row < tile.rows) {
    const std::size_t left = tile.rows - row;
    const std::size_t rows = left >= 8 ? 8 : left > 4 ? (left + 1) / 2 : left;
    switch (rows) {
      case 1:
        key_rows<Bits, 1>(tile, row, ahead);
        break;
      case 2:
        key_rows<Bits, 2>(tile, row, ahead);
        break;
      case 3:
        key_rows<Bits, 3>(tile, row, ahead);
        break;
      case 4:
        key_rows<Bits, 4>(tile, row, ahead);
        break;
      default:
        key_rows<Bits, 8>(tile, row, ahead);
        break;
    }
    row += rows;
    ahead = {};
  }
}

/// Steps of 4 positions in a page.
inline constexpr unsigned kv_page_steps = static_cast<unsigned>(kv_page_positions / step_inputs);

/// Weights of one row and one step in all lanes.
[[gnu::always_inline]] inline __m512i broadcast_weights(const std::uint8_t* weights) noexcept {
  std::int32_t four;
  __builtin_memcpy(&four, weights, sizeof four);
  return _mm512_set1_epi32(four);
}

/// Adds the products of steps [Step, 8) of one block of values. `first`: weights of a single row, already broadcast.
template <int Bits, unsigned Step, std::size_t Rows, std::size_t Chains>
[[gnu::always_inline]] inline void multiply_values(__m512i (&sums)[Chains][Rows], const std::byte* block,
                                                   const std::uint8_t* weights, const __m512i* first) noexcept {
  __m512i codes = decode_step<Bits, Step>(block);
  if constexpr (Bits == 8) codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
  _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
    const __m512i four = Rows == 1 ? first[Step] : broadcast_weights(weights + r * kv_page_positions + Step * 4);
    sums[Step % Chains][r] = _mm512_dpbusd_epi32(sums[Step % Chains][r], four, codes);
  }
  if constexpr (Step < 7) multiply_values<Bits, Step + 1>(sums, block, weights, first);
}

/// Adds to the results of rows [first_row, first_row + Rows).
template <int Bits, std::size_t Rows>
inline void value_rows(const ValueTile& tile, std::size_t first_row, LinesAhead ahead) noexcept {
  constexpr std::size_t chains = Rows <= 4 ? 2 : 1;
  const std::uint8_t* weights = tile.weights + first_row * kv_page_positions;
  __m512i first[Rows == 1 ? kv_page_steps : 1];
  if constexpr (Rows == 1) {
    _Pragma("GCC unroll 16") for (std::size_t s = 0; s < kv_page_steps; ++s) first[s] =
        broadcast_weights(weights + s * step_inputs);
  }
  ask_for<Rows, 4 * kv_page_positions / line_bytes>(ahead);
  const std::byte* block = tile.blocks;
  float* out = tile.out + first_row * tile.out_stride;
  for (std::size_t p = 0; p < tile.panels; ++p, out += panel_outputs) {
    __m512i sums[chains][Rows];
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      sums[0][r] = Bits == 8 ? _mm512_set1_epi32(tile.weight_sums[first_row + r] * 128) : _mm512_setzero_si512();
      if constexpr (chains == 2) sums[1][r] = _mm512_setzero_si512();
    }
    if constexpr (Rows == 1) {
      ask_for<Rows, 2 * Bits>(ahead);
      multiply_values<Bits, 0>(sums, block, weights, first);
      multiply_values<Bits, 0>(sums, block + Bits * line_bytes, weights, first + block_inputs / step_inputs);
      block += 2 * Bits * line_bytes;
    } else {
      for (std::size_t i = 0; i < kv_page_positions; i += block_inputs, block += Bits * line_bytes) {
        ask_for<Rows, Bits>(ahead);
        multiply_values<Bits, 0>(sums, block, weights + i, nullptr);
      }
    }
    _Pragma("GCC unroll 8") for (std::size_t r = 0; r < Rows; ++r) {
      if constexpr (chains == 2) sums[0][r] = _mm512_add_epi32(sums[0][r], sums[1][r]);
      float* values = out + r * tile.out_stride;
      const __m512 scale = _mm512_set1_ps(tile.weight_scales[first_row + r]);
      const __m512 offset = _mm512_set1_ps(tile.offset_sums[first_row + r]);
      const __m512 added = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[0][r]), offset);
      _mm512_storeu_ps(values, _mm512_add_ps(_mm512_loadu_ps(values), added));
    }
  }
}

/// See ValueTile. Rows go in the pieces of key_tile.
template <int Bits>
void value_tile(const ValueTile& tile) noexcept {
  LinesAhead ahead = lines_from(tile.next, tile.blocks);
  std::size_t row = 0;
  while (row < tile.rows) {
    const std::size_t left = tile.rows - row;
    const std::size_t rows = left >= 8 ? 8 : left > 4 ? (left + 1) / 2 : left;
    switch (rows) {
      case 1:
        value_rows<Bits, 1>(tile, row, ahead);
        break;
      case 2:
        value_rows<Bits, 2>(tile, row, ahead);
        break;
      case 3:
        value_rows<Bits, 3>(tile, row, ahead);
        break;
      case 4:
        value_rows<Bits, 4>(tile, row, ahead);
        break;
      default:
        value_rows<Bits, 8>(tile, row, ahead);
        break;
    }
    row += rows;
    ahead = {};
  }
}

/// The codes round(products * 255 / largest) of one row, their sum and step.
struct WeightCodes {
  std::int32_t sum = 0;
  float step = 0.0f;
};
[[gnu::always_inline]] inline WeightCodes quantize_weights(const __m512 (&products)[4], std::uint8_t* codes) noexcept {
  // max and min return their second operand where the first is not a number.
  __m512 best = _mm512_setzero_ps();
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) best = _mm512_max_ps(products[i], best);
  const float largest = _mm512_reduce_max_ps(best);
  const bool none = !(largest >= smallest_kv_weight);
  const __m512 inverse = _mm512_set1_ps(none ? 0.0f : 255.0f / largest);
  __m512i rounded[4];
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) rounded[i] =
      _mm512_cvtps_epi32(_mm512_min_ps(_mm512_mul_ps(products[i], inverse), _mm512_set1_ps(255.0f)));
  // Packing works within 128-bit lanes: the permutation puts the quadruples back in order.
  const __m512i packed =
      _mm512_packus_epi16(_mm512_packus_epi32(rounded[0], rounded[1]), _mm512_packus_epi32(rounded[2], rounded[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(codes, _mm512_permutexvar_epi32(order, packed));
  const __m512i quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), packed, _mm512_set1_epi8(1));
  return {_mm512_reduce_add_epi32(quads), none ? 0.0f : largest / 255.0f};
}

/// See WeightRow.
inline void weight_row(WeightRow& row) noexcept {
  __m512 products[4];
  __m512 offset_sum = _mm512_setzero_ps();
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
    const __m512 softmax = _mm512_loadu_ps(row.softmax + 16 * i);
    const std::byte* scales = row.scales + 32 * i;
    products[i] = _mm512_mul_ps(softmax, load_halves(scales));
    offset_sum = _mm512_fmadd_ps(softmax, load_halves(scales + 2 * kv_page_positions), offset_sum);
    offset_sum = _mm512_fmadd_ps(_mm512_set1_ps(row.middle), products[i], offset_sum);
  }
  const WeightCodes codes = quantize_weights(products, row.codes);
  row.code_sum = codes.sum;
  row.step = codes.step;
  row.offset_sum = _mm512_reduce_add_ps(offset_sum) - row.middle * codes.step * static_cast<float>(codes.sum);
}

/// 2^(scale * x) for x <= 0, at least 2^-100: 2^n times a polynomial of degree 5 on |f| <= 1/2, minimax with p(0) = 1,
/// relative error below 2e-7.
struct PowerOfTwo {
  __m512 scale;
  __m512 lowest;

  [[gnu::always_inline]] __m512 operator()(__m512 x) const noexcept {
    const __m512 to_integer = _mm512_set1_ps(0x1.8p23f);  // adding it leaves n in the low bits
    x = _mm512_max_ps(lowest, x);
    const __m512 shifted = _mm512_fmadd_ps(x, scale, to_integer);
    const __m512 f = _mm512_fmsub_ps(x, scale, _mm512_sub_ps(shifted, to_integer));
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0x1.5bba14p-10f), f, _mm512_set1_ps(0x1.3cea88p-7f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c6b752p-5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebf9bcp-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e42ap-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }
};

/// Bits of the first `count` positions of a page.
[[gnu::always_inline]] inline std::uint64_t first_positions(std::size_t count) noexcept {
  return count >= kv_page_positions ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

/// The positions of the page that row r sees, one bit each.
[[gnu::always_inline]] inline std::uint64_t seen_positions(const PageWeights& page, std::size_t r) noexcept {
  const std::uint64_t before = page.first == nullptr ? 0 : first_positions(page.first[r]);
  return first_positions(page.valid[r]) & ~before;
}

/// Maxima of all rows with the scores of the page among them. What a row gathered before shrinks where
/// its maximum grows.
[[gnu::always_inline]] inline void raise_maxima(const PageWeights& page, const PowerOfTwo& power) noexcept {
  for (std::size_t r = 0; r < page.rows; ++r) {
    const float* scores = page.scores + r * page.score_stride;
    const std::uint64_t seen = seen_positions(page, r);
    const float before = page.maxima[r];
    __m512 best = _mm512_set1_ps(before);
    if (seen == ~std::uint64_t{0}) [[likely]] {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) best =
          _mm512_max_ps(best, _mm512_loadu_ps(scores + 16 * i));
    } else {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) best =
          _mm512_mask_max_ps(best, static_cast<__mmask16>(seen >> (16 * i)), best, _mm512_loadu_ps(scores + 16 * i));
    }
    const float maximum = _mm512_reduce_max_ps(best);
    if (maximum == before) continue;
    const __m512 factor = power(_mm512_set1_ps(before - maximum));
    page.maxima[r] = maximum;
    page.sums[r] *= _mm512_cvtss_f32(factor);
    float* values = page.values + r * page.value_stride;
    for (std::size_t i = 0; i < page.value_columns; i += 16) {
      _mm512_storeu_ps(values + i, _mm512_mul_ps(_mm512_loadu_ps(values + i), factor));
    }
  }
}

/// Softmax weights in place of the scores, and their sums.
[[gnu::always_inline]] inline void weigh_scores(const PageWeights& page, const PowerOfTwo& power) noexcept {
  for (std::size_t r = 0; r < page.rows; ++r) {
    float* scores = page.scores + r * page.score_stride;
    const std::uint64_t seen = seen_positions(page, r);
    const __m512 maximum = _mm512_set1_ps(page.maxima[r]);
    __m512 softmax[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) softmax[i] =
        power(_mm512_sub_ps(_mm512_loadu_ps(scores + 16 * i), maximum));
    if (seen != ~std::uint64_t{0}) [[unlikely]] {
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) softmax[i] =
          _mm512_maskz_mov_ps(static_cast<__mmask16>(seen >> (16 * i)), softmax[i]);
    }
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) _mm512_storeu_ps(scores + 16 * i, softmax[i]);
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(softmax[0], softmax[1]), _mm512_add_ps(softmax[2], softmax[3]));
    page.sums[r] += _mm512_reduce_add_ps(sum);
  }
}

/// See PageWeights. One loop over the rows after another: a single one would wait for every maximum and sum, its chain
/// being longer than the processor looks ahead.
inline void page_weights(const PageWeights& page) noexcept {
  const float exponent_scale = page.scale * 0x1.715476p+0f;  // 1 / ln(2)
  const PowerOfTwo power{_mm512_set1_ps(exponent_scale), _mm512_set1_ps(-100.0f / exponent_scale)};
  raise_maxima(page, power);
  weigh_scores(page, power);
  for (std::size_t group = 0; group < page.groups; ++group) {
    const std::byte* halves = page.scales + group * page.group_bytes;
    __m512 scales[4];
    __m512 offsets[4];
    _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
      scales[i] = load_halves(halves + 32 * i);
      offsets[i] = load_halves(halves + 2 * kv_page_positions + 32 * i);
    }
    for (std::size_t r = 0; r < page.rows; ++r) {
      const std::size_t result = group * page.rows + r;
      __m512 products[4];
      __m512 offset_sum = _mm512_setzero_ps();
      _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
        const __m512 softmax = _mm512_loadu_ps(page.scores + r * page.score_stride + 16 * i);
        products[i] = _mm512_mul_ps(softmax, scales[i]);
        offset_sum = _mm512_fmadd_ps(softmax, offsets[i], offset_sum);
        offset_sum = _mm512_fmadd_ps(_mm512_set1_ps(page.middle), products[i], offset_sum);
      }
      const WeightCodes codes = quantize_weights(products, page.codes + result * kv_page_positions);
      page.code_sums[result] = codes.sum;
      page.steps[result] = codes.step;
      page.offset_sums[result] =
          _mm512_reduce_add_ps(offset_sum) - page.middle * codes.step * static_cast<float>(codes.sum);
    }
  }
}

CBQ_END_REGION
}  // namespace isa::avx512_vnni
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
