// SPDX-License-Identifier: Apache-2.0
#pragma once

// Division of registers rounded to nearest on every ISA. xsimd 13 divides floats on NEON by a refined estimate of the
// reciprocal, off in the last bit: ties of a grid fall to the wrong side, and codes would depend on the machine.

#include <xsimd/xsimd.hpp>

#include <cbq/config.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// x / y of each lane, rounded to nearest.
template <class T, class Architecture>
[[nodiscard]] inline xsimd::batch<T, Architecture> divide(const xsimd::batch<T, Architecture>& x,
                                                          const xsimd::batch<T, Architecture>& y) noexcept {
  return xsimd::batch<T, Architecture>(x.data / y.data);
}

}  // namespace CBQ_ABI
}  // namespace cbq
