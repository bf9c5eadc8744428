// SPDX-License-Identifier: Apache-2.0
#pragma once

// Scales that fit 16 bits without loss. Packed weights and checkpoints hold each scale as a half times one power of two
// per matrix, so the search for good scales runs on exactly the scales that will be stored, and packing rounds nothing.
//
//   stored half h = scale * 2^e,   e such that the largest magnitude of the matrix lands in [2^14, 2^15)
//
// Scales of symmetric grids have a sign (see range.hpp), those of affine grids are positive; every rule here is one for
// magnitudes and keeps the sign. A scale with 11 significant bits is exact as long as it is at most 2^28 times smaller
// than the largest one. Smaller ones become subnormal halves, multiples of 2^-24 after normalization, and never less
// than one of them: a scale is never zero.

#include <cstddef>
#include <cstdint>

#include <cbq/core/element.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Below this no scale is found: weights of magnitude under about 2^-100 count as zero. Keeps every normalizing power
/// of two and every reciprocal inside the range of float.
inline constexpr float smallest_scale = 0x1p-100f;

/// Whether `value` is neither NaN nor infinite; looks at the bits, so -ffast-math cannot remove it.
[[nodiscard]] constexpr bool is_finite(float value) noexcept {
  return (__builtin_bit_cast(std::uint32_t, value) & 0x7f800000u) != 0x7f800000u;
}
[[nodiscard]] constexpr bool is_finite(double value) noexcept {
  return (__builtin_bit_cast(std::uint64_t, value) & 0x7ff0000000000000u) != 0x7ff0000000000000u;
}

/// |value|.
[[nodiscard]] constexpr float magnitude(float value) noexcept {
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, value) & 0x7fffffffu);
}

/// |value| with the sign of `sign`, zeros' signs included.
[[nodiscard]] constexpr float with_sign(float value, float sign) noexcept {
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, magnitude(value)) |
                                       (__builtin_bit_cast(std::uint32_t, sign) & 0x80000000u));
}

/// `scale` rounded to 11 significant bits, ties to even: the mantissa of a half. Finite scale; stays finite. Where the
/// magnitude of the result lies in the normal range of half, 2^-14 .. 65504, it is a half.
[[nodiscard]] constexpr float round_scale(float scale) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, magnitude(scale));
  const std::uint32_t odd = (bits >> 13) & 1u;
  const std::uint32_t rounded = (bits + 0xfffu + odd) & ~0x1fffu;
  constexpr std::uint32_t largest = 0x7f7fe000u;
  return with_sign(__builtin_bit_cast(float, rounded < largest ? rounded : largest), scale);
}

/// 2^exponent; -126 <= exponent <= 127.
[[nodiscard]] constexpr float power_of_two(int exponent) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(exponent + 127) << 23);
}

/// The e that brings the largest magnitude `largest` into [2^14, 2^15): h = scale * 2^e. 0 under `smallest_scale`.
[[nodiscard]] constexpr int scale_exponent(float largest) noexcept {
  if (!(largest >= smallest_scale)) return 0;
  return 14 - (static_cast<int>(__builtin_bit_cast(std::uint32_t, largest) >> 23) - 127);
}

/// The scale nearest to `scale` that half holds after multiplication by 2^exponent, of at least the smallest magnitude
/// (zero becomes that too, and at least 2^-120), with the sign of `scale`; |scale| * 2^exponent < 2^15.
[[nodiscard]] constexpr float storable_scale(float scale, int exponent) noexcept {
  // One step at the time: 2^-exponent alone may be subnormal.
  const float multiplier = power_of_two(exponent);
  const auto unscaled = [exponent](float value) {
    const int first = exponent / 2;
    return value * power_of_two(-first) * power_of_two(first - exponent);
  };
  const float smallest = unscaled(0x1p-24f) < 0x1p-120f ? 0x1p-120f : unscaled(0x1p-24f);
  const float rounded = unscaled(to_float(to_half(scale * multiplier)));
  return magnitude(rounded) < smallest ? with_sign(smallest, scale) : rounded;
}

/// The largest magnitude of the finite scales; 0 when there are none.
[[nodiscard]] constexpr float largest_scale(const MatrixView<const float>& scales) noexcept {
  float largest = 0;
  for (std::size_t r = 0; r < scales.rows; ++r) {
    for (std::size_t c = 0; c < scales.columns; ++c) {
      const float size = magnitude(row(scales, r)[c]);
      largest = size > largest && is_finite(size) ? size : largest;
    }
  }
  return largest;
}

/// Makes all scales of one matrix storable together; zeros (groups without a value) become the smallest scale, and 1 in
/// a matrix that has no scale from `smallest_scale` up. Finite scales.
constexpr void make_storable(const MatrixView<float>& scales) noexcept {
  const float largest = largest_scale(as_const(scales));
  const int exponent = scale_exponent(largest);
  for (std::size_t r = 0; r < scales.rows; ++r) {
    for (std::size_t c = 0; c < scales.columns; ++c) {
      float& scale = row(scales, r)[c];
      scale = largest >= smallest_scale ? storable_scale(scale, exponent) : 1.0f;
    }
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
