// SPDX-License-Identifier: Apache-2.0
#pragma once

// The orthonormal Walsh-Hadamard transform of rows, in place: each block of n = 2^k consecutive elements becomes
//
//   y = n^(-1/2) H_n x,      H_1 = 1,   H_2n = (H_n H_n; H_n -H_n)
//
// It is symmetric and its own inverse, and it spreads one large element over n small ones. Applied to the input of
// down_proj inside the activation quantizer it makes 4-bit activations work (QuaRot, arXiv 2404.00456), at n log2 n
// additions per block; the weights take it once, offline. Widths that are no power of two use blocks of the largest
// power of two that divides them.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/checked.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/transform/hadamard_kernels.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The largest power of two that divides `width`; 1 for 0.
[[nodiscard]] constexpr std::size_t hadamard_size(std::size_t width) noexcept {
  return width == 0 ? 1 : width & (~width + 1);
}

/// Transforms each `block` elements of x. `block` is a power of two that divides x.size(); `isa` is already capped to
/// what the machine has (detect()), and does not change a bit of the result.
template <std::floating_point T>
void hadamard_row(std::span<T> x, std::size_t block, Isa isa) noexcept {
  const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(block)));
  for (std::size_t first = 0; first < x.size(); first += block) {
    if constexpr (std::same_as<T, float>) {
      if (block >= 32) {
        hadamard_block({.x = x.data() + first, .size = block, .scale = scale}, isa);
        continue;
      }
    }
    isa::scalar::hadamard(x.data() + first, block, scale);
  }
}

/// Transforms every row of x in blocks of `block` elements. Errc::bad_argument where block is no power of two,
/// Errc::bad_shape where it does not divide the width.
template <std::floating_point T, Executor E = SerialExecutor>
[[nodiscard]] Status hadamard_rows(const MatrixView<T>& x, std::size_t block, const E& executor = {},
                                   Isa cap = Isa::amx_int8) noexcept {
  if (block == 0 || (block & (block - 1)) != 0) {
    return Error{Errc::bad_argument, "a Hadamard block is a power of two", "block", block};
  }
  if (x.columns % block != 0 || x.stride < x.columns) {
    return Error{Errc::bad_shape, "Hadamard blocks must divide the width", "block", x.columns,
                 ErrorText("a multiple of ") << block};
  }
  constexpr std::size_t rows_per_task = 16;
  const Isa isa = capped(cap);
  executor.for_each_index(divide_up(x.rows, rows_per_task), [&](std::size_t task) {
    const std::size_t first = task * rows_per_task;
    for (std::size_t r = first; r < x.rows && r < first + rows_per_task; ++r) {
      hadamard_row(std::span<T>(row(x, r), x.columns), block, isa);
    }
  });
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
