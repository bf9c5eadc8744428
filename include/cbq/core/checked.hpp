// SPDX-License-Identifier: Apache-2.0
#pragma once

// Size arithmetic that reports overflow. Every size that comes from a shape, a file or a caller is computed here before
// anything is allocated or indexed with it.

#include <cstddef>
#include <cstdint>

#include <cbq/core/result.hpp>

namespace cbq {

static_assert(sizeof(std::size_t) == 8, "[cbq] sizes are computed in 64 bits; 32-bit targets are not supported");

inline namespace CBQ_ABI {

/// Product of one or more sizes, or Errc::bad_shape when it does not fit in 64 bits.
template <std::same_as<std::size_t>... Sizes>
[[nodiscard]] constexpr Result<std::size_t> checked_product(Sizes... sizes) noexcept {
  std::size_t product = 1;
  bool overflow = false;
  bool zero = false;
  ((overflow = __builtin_mul_overflow(product, sizes, &product) || overflow, zero = zero || sizes == 0), ...);
  if (zero) return std::size_t{0};  // whatever overflowed before it
  if (overflow) return Error{Errc::bad_shape, "the product of the sizes does not fit in 64 bits"};
  return product;
}

/// Sum of one or more sizes, or Errc::bad_shape when it does not fit in 64 bits.
template <std::same_as<std::size_t>... Sizes>
[[nodiscard]] constexpr Result<std::size_t> checked_sum(Sizes... sizes) noexcept {
  std::size_t sum = 0;
  bool overflow = false;
  ((overflow = __builtin_add_overflow(sum, sizes, &sum) || overflow), ...);
  if (overflow) return Error{Errc::bad_shape, "the sum of the sizes does not fit in 64 bits"};
  return sum;
}

/// ceil(numerator / denominator) without overflow; denominator > 0.
[[nodiscard]] constexpr std::size_t divide_up(std::size_t numerator, std::size_t denominator) noexcept {
  return numerator / denominator + (numerator % denominator != 0 ? 1 : 0);
}

}  // namespace CBQ_ABI
}  // namespace cbq
