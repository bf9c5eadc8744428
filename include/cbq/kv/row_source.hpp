// SPDX-License-Identifier: Apache-2.0
#pragma once

// One position as a source of attention (<cbq/kv/online_softmax.hpp>): the exact row of the newest token in decoding,
// which would fill a lane in 16 of a panel and touch a cache line per element there. In the registers of the baseline:
// one position is not worth a kernel per instruction set.

#include <xsimd/xsimd.hpp>

#include <cstddef>

#include <cbq/gemm/float_panels.hpp>
#include <cbq/kv/online_softmax.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

/// The sum of a[i] * b[i].
[[nodiscard]] inline float dot(const float* a, const float* b, std::size_t count) noexcept {
  using Floats = xsimd::batch<float>;
  Floats sums(0.0f);
  std::size_t i = 0;
  for (; count - i >= Floats::size; i += Floats::size) {
    sums = sums + Floats::load_unaligned(a + i) * Floats::load_unaligned(b + i);
  }
  float sum = xsimd::reduce_add(sums);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

/// to [count] += factor * from
inline void add_scaled(float factor, const float* from, std::size_t count, float* to) noexcept {
  using Floats = xsimd::batch<float>;
  const Floats factors(factor);
  std::size_t i = 0;
  for (; count - i >= Floats::size; i += Floats::size) {
    (Floats::load_unaligned(to + i) + factors * Floats::load_unaligned(from + i)).store_unaligned(to + i);
  }
  for (; i < count; ++i) to[i] += factor * from[i];
}

/// Key and value of one head and the rows that read them.
struct RowSource {
  static constexpr std::size_t unit = float_panel_width;

  const float* key = nullptr;    ///< [width]
  const float* value = nullptr;  ///< [width]
  std::size_t width = 0;
  const float* queries = nullptr;  ///< [rows x width]
  std::size_t rows = 0;

  void scores(const Positions&, float* to) const noexcept {
    for (std::size_t r = 0; r < rows; ++r, to += block_positions) {
      __builtin_memset(to, 0, unit * sizeof(float));
      to[0] = dot(queries + r * width, key, width);
    }
  }

  void add_values(const Positions&, const float* weights, const RowSums& sums) const noexcept {
    for (std::size_t r = 0; r < rows; ++r) {
      add_scaled(weights[r * block_positions], value, width, sums.values + r * sums.stride);
    }
  }
};

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
