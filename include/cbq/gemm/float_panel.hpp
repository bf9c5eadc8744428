// SPDX-License-Identifier: Apache-2.0
#pragma once

// What kernels that pack floats are told, and why they need no division. Kernels go through a panel group by group:
// each finds the scales that cover it (MinMaxRange at half's precision) or takes those that are there, and rounds and
// writes the lines of its blocks. Headers come later, when the largest scale of the matrix is known.
//
// Codes are round(fl(x / s)), half to even, where fl rounds to float. Scales that half holds have 11 significant bits,
// a tie t = n + 1/2 of at most 8-bit codes has 9, so t s is a float; and as x is one, fl(x / s) lies on the same side
// of t as x / s does, or on it where that does: the next float to t s is at least half a unit of t away after division,
// and exactly half only where t is a power of two below which units are half as large. So the code is round(x / s). It
// follows from floats a < 1 / s < b on both sides of the inverse: fma(x, a, 1.5 * 2^23) and fma(x, b, 1.5 * 2^23) round
// numbers on both sides of x / s once, to an integer in their low bits. Where these are equal, they are the code; where
// not, which is for 1 weight in a million and for ties, 16 outputs are divided. |x a| and |x b| must be less than 2^22,
// or the sums leave the range whose unit is 1: true for ranges that cover the row; with given scales all are divided.

#include <cstddef>
#include <cstdint>

#include <cbq/core/element.hpp>
#include <cbq/core/view.hpp>
#include <cbq/gemm/packing.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

/// Where scales come from.
enum class Scales : unsigned char {
  cover,  ///< found: those that MinMaxRange finds
  given,  ///< there already
};

/// One panel of a matrix of floats.
template <class T>
struct FloatPanel {
  MatrixView<const T> weights;    ///< the whole matrix
  Panel panel;                    ///< which outputs, and where they go
  float* scales = nullptr;        ///< groups x 16; 0 stands for a group of zeros
  std::uint8_t* zeros = nullptr;  ///< groups x 16; affine grids only
  Scales origin = Scales::cover;
};

/// Packs a panel but for its headers. False when a weight is not finite and scales were to be found: then scales and
/// bytes are unspecified.
template <class T>
using FloatPanelKernel = bool (*)(const FloatPanel<T>&) noexcept;

/// 1.5 * 2^23: adding it rounds to an integer, which the low bits of the sum hold.
inline constexpr float rounding_magic = 12582912.0f;
inline constexpr std::int32_t rounding_magic_bits = 0x4b400000;

/// Bytes that rows are read ahead, or two groups, up to 16 KiB, if that is more: into the second-level cache, as the
/// same inputs of 16 rows whose length is a multiple of 4 KiB share one set of a first-level cache and would drive each
/// other out.
inline constexpr std::size_t float_read_distance = 2048;

/// Rows of one block: those of the matrix, or a copy with zeros where the matrix has no weights.
template <class T>
struct BlockRows {
  const T* from = nullptr;
  std::size_t stride = 0;
};

/// Memory for such a copy.
template <class T>
struct alignas(64) BlockCopy {
  T values[panel_outputs * block_inputs];
};

/// One group of a panel.
struct GroupSpan {
  std::size_t index = 0;
  std::size_t first = 0;  ///< input
  std::size_t count = 0;  ///< inputs
};

[[nodiscard, gnu::always_inline]] inline GroupSpan group_span(const Panel& panel, std::size_t index) noexcept {
  const std::size_t first = index * panel.group_inputs;
  const std::size_t rest = panel.layout->inputs - first;
  return {index, first, rest < panel.group_inputs ? rest : panel.group_inputs};
}

/// Asks for the 16 rows that are read a distance behind `input`, in this panel or the next; nothing at a matrix's end.
template <class T>
[[gnu::always_inline]] inline void read_ahead(const FloatPanel<T>& job, std::size_t input) noexcept {
  constexpr std::size_t least = float_read_distance / sizeof(T);
  const MatrixView<const T>& w = job.weights;
  const std::size_t group = 2 * job.panel.group_inputs;
  std::size_t ahead = input + (group < least ? least : group > 8 * least ? 8 * least : group);
  std::size_t n = job.panel.first;
  if (ahead >= w.columns) {
    n += panel_outputs;
    ahead -= w.columns;
  }
  if (n + panel_outputs > w.rows || ahead >= w.columns) return;
  const T* from = w.data + n * w.stride + ahead;
  for (std::size_t o = 0; o < panel_outputs; ++o, from += o < panel_outputs ? w.stride : 0) {
    __builtin_prefetch(from, 0, 2);
    if constexpr (sizeof(T) == 4) {
      const std::uintptr_t next_line = reinterpret_cast<std::uintptr_t>(from) + 64;  // may lie past the array
      __builtin_prefetch(reinterpret_cast<const void*>(next_line), 0, 2);
    }
  }
}

template <class T>
[[gnu::noinline, gnu::cold]] void copy_block(const FloatPanel<T>& job, std::size_t input, std::size_t inputs,
                                             BlockCopy<T>& copy) noexcept {
  __builtin_memset(static_cast<void*>(&copy), 0, sizeof copy);
  for (std::size_t o = 0; o < job.panel.count; ++o) {
    const T* const from = job.weights.data + (job.panel.first + o) * job.weights.stride + input;
    __builtin_memcpy(copy.values + o * block_inputs, from, inputs * sizeof(T));
  }
}

/// The rows of the block of `inputs` inputs from `input`.
template <class T>
[[nodiscard, gnu::always_inline]] inline BlockRows<T> block_rows(const FloatPanel<T>& job, std::size_t input,
                                                                 std::size_t inputs, BlockCopy<T>& copy) noexcept {
  if (__builtin_expect(job.panel.count == panel_outputs && inputs == block_inputs, 1)) {
    return {job.weights.data + job.panel.first * job.weights.stride + input, job.weights.stride};
  }
  copy_block(job, input, inputs, copy);
  return {copy.values, block_inputs};
}

/// Which bytes of step `step` of a block with `outputs` outputs and `inputs` inputs hold codes: bit 4 output + input.
[[nodiscard, gnu::always_inline]] inline std::uint64_t step_mask(std::size_t step, std::size_t outputs,
                                                                 std::size_t inputs) noexcept {
  const std::size_t left = inputs > 4 * step ? inputs - 4 * step : 0;
  const std::uint64_t each = left >= 4 ? 15u : (1u << left) - 1u;
  const std::uint64_t all = each * 0x1111111111111111u;
  return outputs == panel_outputs ? all : all & ((std::uint64_t{1} << 4 * outputs) - 1u);
}

}  // namespace packing
}  // namespace CBQ_ABI
}  // namespace cbq
