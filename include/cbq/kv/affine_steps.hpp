// SPDX-License-Identifier: Apache-2.0
#pragma once

// What encoders hand to their kernels (affine_kernels_avx2.hpp, affine_kernels_avx512.hpp): pointers and numbers, so
// that functions compiled inside a target region share nothing with the rest of the program.

#include <cstddef>

#include <cbq/config.hpp>

namespace cbq {

/// code = clamp(round((x - offset) / divisor), 0, top); divisor is infinite where all codes are 0.
struct AffineSteps {
  float offset = 0;
  float divisor = 0;
  float top = 0;
};

/// What a group extends over.
struct AffineExtent {
  float low = 0;
  float high = 0;
  bool finite = true;
};

/// Sums over a group, with u = (x - offset) / divisor and c its code, each times the element's weight. Sixteen lanes,
/// added up as a tree: 8 apart, then 4, 2 and 1.
struct AffineSums {
  float w = 0;
  float c = 0;
  float u = 0;
  float cc = 0;
  float cu = 0;
  float error = 0;  ///< (u - c)^2
};

/// Where codes of consecutive channels go: one field of consecutive 32-bit words, 16 words per panel.
struct AffineFields {
  std::byte* words = nullptr;   ///< of the first panel
  std::size_t panel_bytes = 0;  ///< to the next
  int mask = 0;                 ///< of the field, before it is shifted
  int shift = 0;
  int from = 0;  ///< first bit of the code that the field holds
};

}  // namespace cbq
