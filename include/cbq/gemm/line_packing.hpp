// SPDX-License-Identifier: Apache-2.0
#pragma once

// Codes and scales into the bytes of packed lines: four outputs x 32 inputs at the time. The codes of an output are a
// byte each in two 16-byte vectors; those of four outputs are joined and transposed into 16 bytes of each line. A step
// is 4 inputs, so a 64-bit word w holds two of them and one shift joins what a line wants side by side:
//
//   8 bits   line s             = step s
//   4 bits   line s / 2         = step s | step (s + 1) << 4 = low half of (w | w >> 28)
//   2 bits   line s / 4         = step s | step (s + 1) << 2, likewise with >> 30, | the same of the next two << 4
//   3 bits   as 2 bits; line 2  = bit 2 of step s at bit s
//
// The vectors are the compilers' own generic ones, SSE2 or NEON in a baseline build: about 10 instructions for 32
// codes. From memory that lies in no cache that is near half of what one core reads, and more on two (measured with
// cbq-bench, pack/codes/...).

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

using Words [[gnu::vector_size(16)]] = std::uint32_t;
using Longs [[gnu::vector_size(16)]] = std::uint64_t;

/// 32 codes of one output, a byte each, in the order of the inputs: 8 per 64-bit word.
struct BlockCodes {
  Longs half[2];
};

/// Codes of four outputs next to each other.
inline constexpr std::size_t quad_outputs = 4;
using QuadCodes = BlockCodes[quad_outputs];

/// `value` in each byte.
[[nodiscard]] constexpr std::uint64_t every_byte(unsigned value) noexcept {
  return 0x0101010101010101u * value;
}

/// The first `count` codes at `from`, then code 0; count <= 32.
[[nodiscard, gnu::always_inline]] inline BlockCodes load_codes(const void* from, std::size_t count) noexcept {
  BlockCodes codes = {};
  if (count == block_inputs) {
    __builtin_memcpy(&codes.half[0], from, sizeof codes.half[0]);
    __builtin_memcpy(&codes.half[1], static_cast<const std::byte*>(from) + sizeof codes.half[0], sizeof codes.half[1]);
  } else if (count != 0) {
    __builtin_memcpy(&codes, from, count);
  }
  return codes;
}

/// Two lines' words of four outputs.
struct Joined {
  Words even;  ///< of steps 0 and 1
  Words odd;   ///< of steps 2 and 3
};

/// From half a block of each output: step 2 j | step (2 j + 1) << (32 - Shift), byte by byte.
template <int Shift>
[[nodiscard, gnu::always_inline]] inline Joined join(const Longs (&w)[quad_outputs]) noexcept {
  Words joined[quad_outputs];
  _Pragma("GCC unroll 4") for (std::size_t o = 0; o < quad_outputs; ++o) {
    const Longs both = w[o] | w[o] >> Shift;
    __builtin_memcpy(&joined[o], &both, sizeof both);
  }
  const Words first = __builtin_shufflevector(joined[0], joined[1], 0, 2, 4, 6);
  const Words second = __builtin_shufflevector(joined[2], joined[3], 0, 2, 4, 6);
  return {__builtin_shufflevector(first, second, 0, 2, 4, 6), __builtin_shufflevector(first, second, 1, 3, 5, 7)};
}

/// Half `h` of each output's block, shifted right by `shift` and masked.
[[gnu::always_inline]] inline void take_half(const QuadCodes& codes, std::size_t h, int shift, std::uint64_t mask,
                                             Longs (&w)[quad_outputs]) noexcept {
  _Pragma("GCC unroll 4") for (std::size_t o = 0; o < quad_outputs; ++o) w[o] =
      codes[o].half[h] >> shift & (Longs{} + mask);
}

[[gnu::always_inline]] inline void store_words(const Words& words, std::byte* line) noexcept {
  __builtin_memcpy(line, &words, sizeof words);
}

/// Writes the codes of four outputs; `lines` points at their 16 bytes in the first line of the block. What codes above
/// the largest of `Bits` bits become is unspecified.
template <int Bits>
[[gnu::always_inline]] inline void store_codes(const QuadCodes& codes, std::byte* lines) noexcept {
  static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8, "[cbq] store_codes: Bits must be 2, 3, 4 or 8");
  Longs w[quad_outputs];
  [[maybe_unused]] Words high = {};
  _Pragma("GCC unroll 4") for (std::size_t h = 0; h < 2; ++h) {
    if constexpr (Bits == 8) {
      const auto line = [&](std::size_t step) { return lines + (4 * h + step) * line_bytes; };
      Words rows[quad_outputs];
      _Pragma("GCC unroll 4") for (std::size_t o = 0; o < quad_outputs; ++o)
          __builtin_memcpy(&rows[o], &codes[o].half[h], sizeof rows[o]);
      const Words low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
      const Words low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
      const Words high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
      const Words high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
      store_words(__builtin_shufflevector(low01, low23, 0, 1, 4, 5), line(0));
      store_words(__builtin_shufflevector(low01, low23, 2, 3, 6, 7), line(1));
      store_words(__builtin_shufflevector(high01, high23, 0, 1, 4, 5), line(2));
      store_words(__builtin_shufflevector(high01, high23, 2, 3, 6, 7), line(3));
    } else if constexpr (Bits == 4) {
      take_half(codes, h, 0, every_byte(15), w);
      const Joined joined = join<28>(w);
      store_words(joined.even, lines + 2 * h * line_bytes);
      store_words(joined.odd, lines + (2 * h + 1) * line_bytes);
    } else {
      take_half(codes, h, 0, every_byte(3), w);
      const Joined low = join<30>(w);
      store_words(low.even | low.odd << 4, lines + h * line_bytes);
      if constexpr (Bits == 3) {
        take_half(codes, h, 2, every_byte(1), w);
        const Joined bit = join<31>(w);
        high |= (bit.even | bit.odd << 2) << (4 * static_cast<unsigned>(h));
      }
    }
  }
  if constexpr (Bits == 3) store_words(high, lines + 2 * line_bytes);
}

using Ints [[gnu::vector_size(16)]] = std::int32_t;
using Floats [[gnu::vector_size(16)]] = float;

/// Writes 16 scales as half; scales[0] are those of outputs 0, 2, 4, 6, scales[1] of 1, 3, 5, 7, and so on. With groups
/// of 32 packing spends a fifth of its time on scales, so normal halves, which most are, are rounded without a branch.
inline void store_scales(const Floats (&scales)[4], std::byte* header) noexcept {
  constexpr std::int32_t smallest = 0x38800000;  // 2^-14
  constexpr std::int32_t limit = 0x477ff000;     // 65520, from where halves are infinite
  Ints outside = {};
  Ints stored[4];
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
    const Ints bits = __builtin_bit_cast(Ints, scales[i]);
    const Ints size = bits & 0x7fffffff;
    outside |= (size - smallest) | (limit - 1 - size);  // negative when outside
    stored[i] = (size + (0xfff - 0x38000000) + (size >> 13 & 1)) >> 13 | (bits >> 16 & 0x8000);
  }
  if ((outside[0] | outside[1] | outside[2] | outside[3]) < 0) {
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t lane = 0; lane < 4; ++lane) stored[i][lane] = to_half(scales[i][lane]).bits;
    }
  }
  const Ints halves[2] = {stored[0] | stored[1] << 16, stored[2] | stored[3] << 16};
  __builtin_memcpy(header, halves, sizeof halves);
}

}  // namespace packing
}  // namespace CBQ_ABI
}  // namespace cbq
