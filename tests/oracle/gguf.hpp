// SPDX-License-Identifier: Apache-2.0
#pragma once

// GGUF blocks element by element in double, written from the format's tables: for each element, where its bits are.
// Shares nothing with <cbq/io/gguf_blocks.hpp>.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>

namespace oracle {

inline double half_at(const unsigned char* p) {
  const int code = p[0] + 256 * p[1];
  const int exponent = code / 1024 % 32;
  const int fraction = code % 1024;
  double value = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) {
    value = fraction == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return code >= 32768 ? -value : value;
}

// `count` bits from bit `first` of a run of bytes.
inline int bits_at(const unsigned char* p, std::size_t first, std::size_t count) {
  int value = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t bit = first + i;
    value |= ((p[bit / 8] >> (bit % 8)) & 1) << i;
  }
  return value;
}

inline int signed_byte(unsigned char b) {
  return b >= 128 ? b - 256 : b;
}

// Element `i` of a block of the type with GGUF number `type`.
inline double gguf_element(int type, const unsigned char* p, std::size_t i) {
  const auto nibble = [&](const unsigned char* codes) { return bits_at(codes, 8 * (i % 16) + 4 * (i / 16), 4); };
  switch (type) {
    case 8:
      return half_at(p) * signed_byte(p[2 + i]);
    case 2:
      return half_at(p) * (nibble(p + 2) - 8);
    case 3:
      return half_at(p) * nibble(p + 4) + half_at(p + 2);
    case 6:
      return half_at(p) * (nibble(p + 6) + 16 * bits_at(p + 2, i, 1) - 16);
    case 7:
      return half_at(p) * (nibble(p + 8) + 16 * bits_at(p + 4, i, 1)) + half_at(p + 2);
    case 12: {
      const std::size_t sub = i / 32;
      const unsigned char* s = p + 4;
      // Scales 0..3 in bits 0-5 of bytes 0..3, minima 0..3 in those of bytes 4..7; of the others the low four bits in
      // bytes 8..11 (scale low half, minimum high half) and the upper two above the 6-bit numbers.
      const int scale = sub < 4 ? bits_at(s + sub, 0, 6) : bits_at(s + sub + 4, 0, 4) + 16 * bits_at(s + sub - 4, 6, 2);
      const int minimum =
          sub < 4 ? bits_at(s + sub + 4, 0, 6) : bits_at(s + sub + 4, 4, 4) + 16 * bits_at(s + sub, 6, 2);
      const int code = bits_at(p + 16 + 32 * (i / 64) + i % 32, 4 * (i / 32 % 2), 4);
      return half_at(p) * scale * code - half_at(p + 2) * minimum;
    }
    case 14: {
      const std::size_t half_block = i / 128;
      const std::size_t quarter = i % 128 / 32;
      const std::size_t l = i % 32;
      const int low = bits_at(p + 64 * half_block + 32 * (quarter % 2) + l, 4 * (quarter / 2), 4);
      const int high = bits_at(p + 128 + 32 * half_block + l, 2 * quarter, 2);
      return half_at(p + 208) * signed_byte(p[192 + i / 16]) * (low + 16 * high - 32);
    }
    default:
      std::abort();
  }
}

}  // namespace oracle
