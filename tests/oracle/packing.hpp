// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packed bytes as docs/packed_format.md states them, one code at the time.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <cbq/core/element.hpp>

#include "oracle/gemm.hpp"

namespace oracle {

/// Where a code of `bits` bits lies: bits [shift, shift + width) of byte `byte` of its block hold its bits from `from`.
struct Field {
  std::size_t byte = 0;
  unsigned shift = 0;
  unsigned width = 0;
  unsigned from = 0;
};

inline std::vector<Field> fields(int bits, std::size_t output, std::size_t inside) {
  const std::size_t s = inside / 4;
  const std::size_t at = 4 * output + inside % 4;
  const auto u = [](std::size_t x) { return static_cast<unsigned>(x); };
  switch (bits) {
    case 8:
      return {{64 * s + at, 0, 8, 0}};
    case 4:
      return {{64 * (s / 2) + at, 4 * u(s % 2), 4, 0}};
    case 2:
      return {{64 * (s / 4) + at, 2 * u(s % 4), 2, 0}};
    default:
      return {{64 * (s / 4) + at, 2 * u(s % 4), 2, 0}, {128 + at, u(s), 1, 2}};
  }
}

/// The packed form of `w`, whose scales are multiplied with the power of two that brings the largest magnitude into
/// [2^14, 2^15).
inline std::vector<std::byte> packed(const Weights& w) {
  float largest = 0;
  for (const float scale : w.scales) largest = std::fmax(largest, std::fabs(scale));
  const int exponent = largest == 0 ? 0 : 14 - std::ilogb(largest);
  const std::size_t header = w.affine ? 48 : 32;
  const auto block_size = static_cast<std::size_t>(64 * w.bits);
  const std::size_t blocks = (w.group + 31) / 32;
  const std::size_t last = w.groups == 0 ? 0 : (w.inputs - (w.groups - 1) * w.group + 31) / 32;
  const std::size_t panel = w.groups == 0 ? 0 : w.groups * header + ((w.groups - 1) * blocks + last) * block_size;
  std::vector<std::byte> bytes((w.outputs + 15) / 16 * panel);
  for (std::size_t n = 0; n < w.outputs && w.inputs != 0; ++n) {
    std::byte* const to = bytes.data() + n / 16 * panel;
    for (std::size_t g = 0; g < w.groups; ++g) {
      std::byte* const group = to + g * (header + blocks * block_size);
      const cbq::half scale = cbq::to_half(std::ldexp(w.scales[n * w.groups + g], exponent));
      std::memcpy(group + 2 * (n % 16), &scale, 2);
      if (w.affine) group[32 + n % 16] = static_cast<std::byte>(w.zeros[n * w.groups + g]);
    }
    for (std::size_t k = 0; k < w.inputs; ++k) {
      const std::size_t g = k / w.group;
      std::byte* const block = to + g * (header + blocks * block_size) + header + k % w.group / 32 * block_size;
      const unsigned code = w.codes[n * w.inputs + k];
      for (const Field& f : fields(w.bits, n % 16, k % w.group % 32)) {
        block[f.byte] |= static_cast<std::byte>((code >> f.from & ((1u << f.width) - 1u)) << f.shift);
      }
    }
  }
  return bytes;
}

}  // namespace oracle
