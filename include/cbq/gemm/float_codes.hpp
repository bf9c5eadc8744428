// SPDX-License-Identifier: Apache-2.0
#pragma once

// Codes and largest magnitudes of float rows for packing: what quant/rows.hpp computes, bit for bit, with bytes written
// by vectors, as packing has the time of one pass over memory. Generic vectors of 4 floats: SSE2 or NEON in a baseline
// build.
//
//   code = round(clamp(x / scale, -zero, max_code - zero)) + zero, half to even by adding 1.5 * 2^23

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/gemm/line_packing.hpp>
#include <cbq/quant/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

/// The bits of the largest magnitude; those of infinities and NaNs are above all others.
[[nodiscard]] inline std::uint32_t largest_magnitude(std::span<const float> x) noexcept {
  Ints largest[2] = {};
  std::size_t i = 0;
  for (; x.size() - i >= 8; i += 8) {
    _Pragma("GCC unroll 2") for (std::size_t v = 0; v < 2; ++v) {
      Ints bits;
      __builtin_memcpy(&bits, x.data() + i + 4 * v, sizeof bits);
      bits &= 0x7fffffff;
      largest[v] = bits > largest[v] ? bits : largest[v];
    }
  }
  std::int32_t most = 0;
  const auto raise = [&most](std::int32_t bits) { most = bits > most ? bits : most; };
  for (std::size_t lane = 0; lane < 4; ++lane) {
    raise(largest[0][lane]);
    raise(largest[1][lane]);
  }
  for (; i < x.size(); ++i) raise(__builtin_bit_cast(std::int32_t, x[i]) & 0x7fffffff);
  return static_cast<std::uint32_t>(most);
}

/// quantize_row() for finite x.
inline void float_codes(std::span<const float> x, const CodeGrid& grid, std::uint8_t* codes) noexcept {
  using Sixteen [[gnu::vector_size(64)]] = std::int32_t;
  using Narrow [[gnu::vector_size(16)]] = std::uint8_t;
  constexpr float magic = 12582912.0f;  // its unit is 1
  constexpr std::int32_t magic_bits = 0x4b400000;
  const Floats scale = Floats{} + grid.scale;
  const Floats low = Floats{} - static_cast<float>(grid.zero);
  const Floats high = Floats{} + static_cast<float>(grid.max_code - grid.zero);
  std::size_t i = 0;
  for (; x.size() - i >= 16; i += 16) {
    Ints four[4];
    _Pragma("GCC unroll 4") for (std::size_t v = 0; v < 4; ++v) {
      Floats value;
      __builtin_memcpy(&value, x.data() + i + 4 * v, sizeof value);
      value /= scale;
      value = value > low ? value : low;
      value = value < high ? value : high;
      four[v] = __builtin_bit_cast(Ints, value + magic) - (magic_bits - grid.zero);
    }
    Sixteen wide;
    __builtin_memcpy(&wide, four, sizeof wide);
    const Narrow bytes = __builtin_convertvector(wide, Narrow);
    __builtin_memcpy(codes + i, &bytes, sizeof bytes);
  }
  if (i < x.size()) quantize_row(x.subspan(i), grid, codes + i);
}

}  // namespace packing
}  // namespace CBQ_ABI
}  // namespace cbq
