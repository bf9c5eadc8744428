// SPDX-License-Identifier: Apache-2.0
#pragma once

// AVX2, FMA, F16C; no dot-product instruction. pmaddubsw multiplies unsigned codes with signed activations and adds
// pairs in int16. How many products fit before pmaddwd widens them depends on both operands (short_blocks() in
// integer_tile.hpp): of 4-bit codes one block with 8-bit activations, 8 * 2 * 15 * 127 = 30480, and nine with 4-bit
// ones, 9 * 8 * 2 * 15 * 15 = 32400: 1.4 and 1.6 times the speed of widening each on Zen 4
// (docs/nibble_multiplier.md). 8-bit codes would saturate (2 * 255 * 127 = 64770): they are widened to int16
// first. Register tile: 4 rows x 16 outputs, two registers of 8; sums of int32 and float, which are touched once per
// run of blocks, live in memory.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::avx2 {

static_assert(short_blocks(4, 127) == 1 && short_blocks(4, 15) == 9 && short_blocks(3, 127) == 2,
              "[cbq] one block of 4-bit codes must fit int16 sums");
static_assert(2 * 255 * 127 > 32767, "[cbq] 8-bit codes would fit pmaddubsw: widening them is needless");

CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

inline __m256i load(const std::byte* from) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

/// Codes of step `Step`, one byte each: 8 outputs x 4 inputs. `block` points at the wanted half of the first line.
template <int Bits, int Step>
[[gnu::always_inline]] inline __m256i decode_step(const std::byte* block) noexcept {
  if constexpr (Bits == 8) {
    return load(block + Step * 64);
  } else if constexpr (Bits == 4) {
    const __m256i line = load(block + Step / 2 * 64);
    return _mm256_and_si256(Step % 2 == 0 ? line : _mm256_srli_epi16(line, 4), _mm256_set1_epi8(15));
  } else {
    const __m256i line = load(block + Step / 4 * 64);
    const __m256i low =
        _mm256_and_si256(Step % 4 == 0 ? line : _mm256_srli_epi16(line, 2 * (Step % 4)), _mm256_set1_epi8(3));
    if constexpr (Bits == 2) {
      return low;
    } else {
      const __m256i high_line = load(block + 2 * 64);
      const __m256i high = Step < 2 ? _mm256_slli_epi16(high_line, Step < 2 ? 2 - Step : 0)
                                    : _mm256_srli_epi16(high_line, Step < 2 ? 0 : Step - 2);
      return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(4)));
    }
  }
}

/// Adds the products of one step: to int16 sums of one block for narrow codes, to int32 sums for 8-bit codes.
template <int Bits, int Step, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void multiply_steps(__m256i (&sums)[Rows][Halves], const std::byte* block,
                                                  const std::int8_t* codes) noexcept {
  __m256i weights[Halves];
  _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) weights[h] = decode_step<Bits, Step>(block + 32 * h);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, codes + r * block_inputs + Step * 4, sizeof four);
    const __m256i activations = _mm256_set1_epi32(four);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
      if constexpr (Bits == 8) {
        const __m256i even = _mm256_madd_epi16(_mm256_and_si256(weights[h], _mm256_set1_epi16(255)),
                                               _mm256_srai_epi16(_mm256_slli_epi16(activations, 8), 8));
        const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(weights[h], 8), _mm256_srai_epi16(activations, 8));
        sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_add_epi32(even, odd));
      } else {
        sums[r][h] = _mm256_add_epi16(sums[r][h], _mm256_maddubs_epi16(weights[h], activations));
        // Keeps GCC from turning the chain of additions into a tree, which needs more registers than there are.
        asm("" : "+x"(sums[r][h]));
      }
    }
  }
  if constexpr (Step < 7) multiply_steps<Bits, Step + 1, Rows, Halves>(sums, block, codes);
}

/// Blocks that follow one another, of one panel and some rows.
struct BlockRun {
  const std::byte* block = nullptr;
  const std::int8_t* codes = nullptr;
  std::size_t stride = 0;  // of codes
  std::size_t blocks = 0;
};

/// Adds the products of at least one block, at most as many as int16 sums hold.
template <int Bits, std::size_t Rows, std::size_t Halves>
[[gnu::always_inline]] inline void multiply_run(__m256i (&sums)[Rows][Halves], BlockRun run) noexcept {
  __m256i pairs[Rows][Halves];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) pairs[r][h] = _mm256_setzero_si256();
  do {
    multiply_steps<Bits, 0, Rows, Halves>(pairs, run.block, run.codes);
    run.block += Bits * 64;
    run.codes += run.stride;
  } while (--run.blocks != 0);
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
    sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(pairs[r][h], _mm256_set1_epi16(1)));
  }
}

/// 8 * Halves outputs of one panel times rows [first_row, first_row + Rows).
template <int Bits, Zero Z, std::size_t Rows, std::size_t Halves>
inline void multiply_rows(const IntegerTile& tile, const std::byte* panel, std::size_t first_output,
                          std::size_t first_row, float* out) noexcept {
  __m256 totals[Rows][Halves];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r)
      _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) totals[r][h] = _mm256_setzero_ps();
  const std::int8_t* codes = tile.codes + first_row * block_inputs;
  const std::int32_t* zero_terms = tile.zero_terms + first_row;
  const float* group_scales = tile.group_scales == nullptr ? nullptr : tile.group_scales + first_row;
  const std::size_t block_stride = block_inputs * tile.panel_rows;
  const std::size_t depth = short_blocks(Bits, tile.largest_code);
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    __m256i sums[Rows][Halves];
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
      __m256i zero = _mm256_setzero_si256();
      if constexpr (Z == Zero::affine) {
        const std::byte* zeros = panel + group_scales_bytes + first_output + 8 * h;
        zero = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros)));
      }
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
        const __m256i term = _mm256_set1_epi32(zero_terms[r]);
        sums[r][h] = Z == Zero::affine ? _mm256_mullo_epi32(zero, term) : term;
      }
    }
    const std::byte* block = panel + tile.header_bytes + first_output * step_inputs;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    if constexpr (Bits == 8) {
      for (std::size_t i = 0; i < count; ++i, block += Bits * 64, codes += block_stride) {
        multiply_steps<Bits, 0, Rows, Halves>(sums, block, codes);
      }
    } else {
      // A run of one block, known to be one, is no loop.
      const std::size_t whole = depth == 1 ? count : 0;
      for (std::size_t i = 0; i < whole; ++i, block += Bits * 64, codes += block_stride) {
        multiply_run<Bits, Rows, Halves>(sums, {block, codes, block_stride, 1});
      }
      for (std::size_t i = whole; i < count;) {
        const std::size_t run = count - i < depth ? count - i : depth;
        multiply_run<Bits, Rows, Halves>(sums, {block, codes, block_stride, run});
        block += run * Bits * 64;
        codes += run * block_stride;
        i += run;
      }
    }
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h) {
      const std::byte* scales = panel + (first_output + 8 * h) * sizeof(half);
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
      if (group_scales == nullptr) {
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][h] =
            _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[r][h]), totals[r][h]);
      } else {
        _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][h] = _mm256_fmadd_ps(
            _mm256_mul_ps(scale, _mm256_set1_ps(group_scales[r])), _mm256_cvtepi32_ps(sums[r][h]), totals[r][h]);
      }
    }
    if (group_scales != nullptr) group_scales += tile.panel_rows;
    zero_terms += tile.panel_rows;
    panel += tile.group_bytes;
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const __m256 scale = _mm256_set1_ps(tile.row_scales[first_row + r] * tile.weight_multiplier);
    float* values = out + (first_row + r) * tile.out_stride + first_output;
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < Halves; ++h)
        _mm256_storeu_ps(values + 8 * h, _mm256_mul_ps(totals[r][h], scale));
  }
}

/// See IntegerTile. A panel is read from memory once for 4 rows; of 8-bit codes, whose products need more registers,
/// more than two rows take 8 outputs at a time.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  constexpr std::size_t halves = Bits == 8 ? 1 : 2;
  for (std::size_t p = 0; p < tile.panels; ++p) {
    const std::byte* panel = tile.panel + p * tile.panel_bytes;
    float* out = tile.out + p * panel_outputs;
    for (std::size_t row = 0; row < tile.panel_rows; row += 4) {
      const std::size_t rows = tile.panel_rows - row;
      if (rows == 1) {
        multiply_rows<Bits, Z, 1, 2>(tile, panel, 0, row, out);
      } else if (rows == 2) {
        multiply_rows<Bits, Z, 2, 2>(tile, panel, 0, row, out);
      } else {
        for (std::size_t output = 0; output < panel_outputs; output += 8 * halves) {
          if (rows == 3) {
            multiply_rows<Bits, Z, 3, halves>(tile, panel, output, row, out);
          } else {
            multiply_rows<Bits, Z, 4, halves>(tile, panel, output, row, out);
          }
        }
      }
    }
  }
}

/// See isa::scalar::row_range.
inline RowRange row_range(const float* values, std::size_t count) noexcept {
  __m256 lowest = _mm256_setzero_ps();
  __m256 highest = _mm256_setzero_ps();
  __m256i largest_bits = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 value = _mm256_loadu_ps(values + i);
    lowest = _mm256_min_ps(value, lowest);
    highest = _mm256_max_ps(value, highest);
    largest_bits =
        _mm256_max_epi32(largest_bits, _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff)));
  }
  float low[8], high[8];
  std::int32_t bits[8];
  _mm256_storeu_ps(low, lowest);
  _mm256_storeu_ps(high, highest);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits), largest_bits);
  RowRange range;
  for (std::size_t lane = 0; lane < 8; ++lane) {
    range.lowest = low[lane] < range.lowest ? low[lane] : range.lowest;
    range.highest = high[lane] > range.highest ? high[lane] : range.highest;
    range.finite = range.finite && bits[lane] < 0x7f800000;
  }
  for (; i < count; ++i) {
    std::int32_t value_bits;
    __builtin_memcpy(&value_bits, values + i, sizeof value_bits);
    range.lowest = values[i] < range.lowest ? values[i] : range.lowest;
    range.highest = values[i] > range.highest ? values[i] : range.highest;
    range.finite = range.finite && (value_bits & 0x7f800000) != 0x7f800000;
  }
  return range;
}

/// Quantizes 8 values to int32 codes.
inline __m256i quantize_eight(const float* values, const ActivationRow& row) noexcept {
  const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(values), _mm256_set1_ps(row.inverse_scale));
  return _mm256_cvtps_epi32(
      _mm256_min_ps(_mm256_set1_ps(row.highest), _mm256_max_ps(_mm256_set1_ps(row.lowest), scaled)));
}

/// See isa::scalar::quantize_row.
inline void quantize_row(const ActivationRow& row) noexcept {
  std::int8_t* out = row.codes;
  for (std::size_t first = 0, group = 0; first < row.inputs; first += row.group, ++group) {
    const std::size_t length = row.inputs - first < row.group ? row.inputs - first : row.group;
    __m256i sums = _mm256_setzero_si256();
    for (std::size_t begin = 0; begin < length; begin += block_inputs) {
      const float* values = row.values + first + begin;
      float padded[block_inputs];
      if (length - begin < block_inputs) {
        for (std::size_t i = 0; i < block_inputs; ++i) padded[i] = begin + i < length ? values[i] : 0.0f;
        values = padded;
      }
      const __m256i a = quantize_eight(values, row);
      const __m256i b = quantize_eight(values + 8, row);
      const __m256i c = quantize_eight(values + 16, row);
      const __m256i d = quantize_eight(values + 24, row);
      sums = _mm256_add_epi32(sums, _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d)));
      // Packing works within 128-bit lanes: the permutation puts the quadruples back in order.
      const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
      const __m256i ordered = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), ordered);
      out += block_inputs * row.panel_rows;
    }
    std::int32_t lanes[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sums);
    std::int32_t sum = 0;
    for (std::size_t lane = 0; lane < 8; ++lane) sum += lanes[lane];
    row.zero_terms[group * row.panel_rows] = row.zero_factor * sum;
  }
}

CBQ_END_REGION
}  // namespace isa::avx2
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
