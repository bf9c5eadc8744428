// SPDX-License-Identifier: Apache-2.0
#pragma once

// Element types of weights, activations and results: float, half (IEEE binary16), bfloat16; double in tests and
// oracles. half and bfloat16 are plain 16-bit storage; conversions are exact in one direction and round to nearest,
// ties to even, in the other, in integer arithmetic that needs no hardware support. Kernels convert whole vectors with
// their own instructions and agree with these functions for all 65536 codes (NaNs keep their sign and stay quiet NaNs).

#include <bit>
#include <concepts>
#include <cstdint>

#include <cbq/config.hpp>

namespace cbq {

struct half {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(half, half) = default;  ///< equality of the codes
};

struct bfloat16 {
  std::uint16_t bits = 0;
  friend constexpr bool operator==(bfloat16, bfloat16) = default;  ///< equality of the codes
};

template <class T>
concept Element =
    std::same_as<T, float> || std::same_as<T, half> || std::same_as<T, bfloat16> || std::same_as<T, double>;

inline namespace CBQ_ABI {

[[nodiscard]] constexpr float to_float(float value) noexcept {
  return value;
}
[[nodiscard]] constexpr float to_float(double value) noexcept {
  return static_cast<float>(value);
}
[[nodiscard]] constexpr float to_float(bfloat16 value) noexcept {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(value.bits) << 16);
}
[[nodiscard]] constexpr float to_float(half value) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const std::uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, magnitude) | sign);
  }
  if (exponent == 31) {  // infinity, or NaN made quiet as the hardware does
    return __builtin_bit_cast(float, sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u));
  }
  return __builtin_bit_cast(float, sign | ((exponent + 112) << 23) | (mantissa << 13));
}

/// Rounds to nearest, ties to even; magnitudes from 65520 up become infinity.
[[nodiscard]] constexpr half to_half(float value) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return {static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu))};
  }
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and above
  if (magnitude < 0x38800000u) {                                                      // below 2^-14: subnormal or zero
    // Adding 0.5 aligns the mantissa so that its unit is 2^-24 and the addition rounds to nearest even.
    const float aligned = __builtin_bit_cast(float, magnitude) + 0.5f;
    return {static_cast<std::uint16_t>(sign | (__builtin_bit_cast(std::uint32_t, aligned) - 0x3f000000u))};
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

/// Rounds to nearest, ties to even; magnitudes beyond the largest bfloat16 become infinity.
[[nodiscard]] constexpr bfloat16 to_bfloat16(float value) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  const std::uint32_t odd = (bits >> 16) & 1u;
  return {static_cast<std::uint16_t>((bits + 0x7fffu + odd) >> 16)};
}

/// `value` as element type T, rounded to nearest even where T is narrower.
template <Element T>
[[nodiscard]] constexpr T from_float(float value) noexcept {
  if constexpr (std::same_as<T, half>) {
    return to_half(value);
  } else if constexpr (std::same_as<T, bfloat16>) {
    return to_bfloat16(value);
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
