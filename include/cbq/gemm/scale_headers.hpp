// SPDX-License-Identifier: Apache-2.0
#pragma once

// The scales of a panel as its headers hold them, when the largest of the matrix is known: made storable, which changes
// few (quant/scale.hpp), multiplied with one power of two and rounded to half.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/gemm/line_packing.hpp>
#include <cbq/gemm/packing.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

/// Whether all magnitudes are at least `least` and have 11 significant bits, so that storing changes none.
[[nodiscard]] inline bool are_stored_exactly(std::span<const float> scales, float least) noexcept {
  Ints smallest = Ints{} + 0x7fffffff;
  Ints bits_beyond = {};
  for (std::size_t i = 0; i < scales.size(); i += 4) {  // 16 for each group
    Ints bits;
    __builtin_memcpy(&bits, scales.data() + i, sizeof bits);
    const Ints size = bits & 0x7fffffff;
    smallest = size < smallest ? size : smallest;
    bits_beyond |= bits & 0x1fff;
  }
  bool exact = true;
  for (std::size_t lane = 0; lane < 4; ++lane) {
    exact = exact && bits_beyond[lane] == 0 && smallest[lane] >= __builtin_bit_cast(std::int32_t, least);
  }
  return exact;
}

/// are_stored_exactly() in a matrix whose largest scale is `largest`.
[[nodiscard]] inline bool are_stored_exactly_below(std::span<const float> scales, float largest) noexcept {
  if (!(largest >= smallest_scale)) return false;
  // Halves are normal from 2^-28 of the power of two below the largest.
  const int least = -14 - scale_exponent(largest);
  return are_stored_exactly(scales, least < -100 ? smallest_scale : power_of_two(least));
}

/// Makes the scales of the panel's outputs storable; whether a scale other than 0 changed.
[[nodiscard]] inline bool store_exactly(std::span<float> scales, const Panel& panel, float largest) noexcept {
  const bool any = largest >= smallest_scale;
  if (are_stored_exactly_below(scales, largest)) return false;
  bool changed = false;
  for (std::size_t g = 0; g < panel.layout->groups; ++g) {
    for (std::size_t o = 0; o < panel.count; ++o) {
      float& scale = scales[g * panel_outputs + o];
      const float stored = any ? storable_scale(scale, scale_exponent(largest)) : 1.0f;
      changed = changed || (scale != 0 && stored != scale);
      scale = stored;
    }
  }
  return changed;
}

/// Writes all headers of a panel.
inline void write_headers(const Panel& panel, std::span<const float> scales, std::span<const std::uint8_t> zeros,
                          float factor) noexcept {
  for (std::size_t g = 0; g < panel.layout->groups; ++g) {
    std::byte* const header = panel.data + g * panel.layout->group_bytes;
    Floats rows[4];
    __builtin_memcpy(rows, scales.data() + g * panel_outputs, sizeof rows);
    Floats turned[4];
    for (std::size_t i = 0; i < 4; i += 2) {
      turned[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 2, 4, 6) * factor;
      turned[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 1, 3, 5, 7) * factor;
    }
    store_scales(turned, header);
    if (!zeros.empty()) {
      __builtin_memcpy(header + group_scales_bytes, zeros.data() + g * panel_outputs, panel_outputs);
    }
  }
}

}  // namespace packing
}  // namespace CBQ_ABI
}  // namespace cbq
