// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T of 4-bit weights and 4-bit activations by the 4-bit multiplier of Agile-Quant: two products in one 16-bit
// lane. Kernels for AVX2, AVX-512 BW and NEON, plain code elsewhere; sums are exact integers, the same everywhere. No
// operator of cbq uses it, because w4a4 through matmul() is faster on every instruction set (docs/nibble_multiplier.md
// has the figures); it is here to be compared with, and for vector units that have nothing better than a 16-bit
// product.
//
//   sum (w - zw) (a - za) = sum w a - zw (sum a - K za) - za sum w

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/cpu.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/view.hpp>
#include <cbq/gemm/nibble_kernels_avx2.hpp>
#include <cbq/gemm/nibble_kernels_avx512.hpp>
#include <cbq/gemm/nibble_kernels_neon.hpp>
#include <cbq/gemm/nibble_tile.hpp>
#include <cbq/gemm/nibble_weights.hpp>

namespace cbq {

/// M x K activations of 4 bits, a byte each: a code stands for scale * (code - zero).
struct NibbleTokens {
  MatrixView<const std::uint8_t> codes;   ///< 0 .. 15
  std::span<const float> scales;          ///< one per token
  std::span<const std::uint8_t> zeros{};  ///< one per token, 0 .. 15; empty: all are 8
};

inline namespace CBQ_ABI {

/// The kernel for `isa`, which the machine has.
[[nodiscard]] inline NibbleKernel nibble_kernel(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return &isa::avx512_vnni::nibble_tile;
    case Isa::avx2:
      return &isa::avx2::nibble_tile;
#elif defined(__aarch64__)
    case Isa::neon:
      return &isa::neon::nibble_tile;
#endif
    default:
      return &isa::scalar::nibble_tile;
  }
}

namespace driver {

[[nodiscard]] inline Status check_nibble_tokens(const NibbleTokens& x) noexcept {
  if ((x.codes.rows > 1 && x.codes.stride < x.codes.columns) || x.scales.size() != x.codes.rows ||
      (!x.zeros.empty() && x.zeros.size() != x.codes.rows)) {
    return Error{Errc::bad_shape, "[cbq] nibble_matmul: tokens have codes, a scale each, and a zero point each or none",
                 "x", ErrorText(x.scales.size()) << " scales, " << x.zeros.size() << " zero points", x.codes.rows};
  }
  for (std::size_t t = 0; t < x.codes.rows; ++t) {
    unsigned largest = x.zeros.empty() ? 0u : x.zeros[t];
    for (std::size_t k = 0; k < x.codes.columns; ++k) largest |= row(x.codes, t)[k];
    if (largest > largest_nibble) {
      return Error{Errc::bad_argument, "[cbq] nibble_matmul: codes and zero points have 4 bits",
                   ErrorText("token ") << t};
    }
  }
  return {};
}

/// One matmul, checked.
struct NibbleProduct {
  NibbleTokens x;
  NibbleWeightsView weights;
  MatrixView<float> y;
  NibbleKernel kernel;
};

/// Rows [first, first + count) of the outputs of one panel; at most 16.
inline void multiply_nibble_tile(const NibbleProduct& product, std::size_t panel, std::size_t first,
                                 std::size_t count) noexcept {
  const NibbleWeightsView& w = product.weights;
  std::int32_t sums[nibble_rows * nibble_outputs] = {};
  std::int32_t code_sums[nibble_rows] = {};
  product.kernel({.pairs = w.pairs + panel * nibble_pairs * w.inputs,
                  .inputs = w.inputs,
                  .codes = row(product.x.codes, first),
                  .stride = product.x.codes.stride,
                  .rows = count,
                  .sums = sums,
                  .code_sums = code_sums});
  const std::size_t output = panel * nibble_outputs;
  const std::size_t columns = w.outputs - output < nibble_outputs ? w.outputs - output : nibble_outputs;
  for (std::size_t r = 0; r < count; ++r) {
    const std::int32_t zero = product.x.zeros.empty() ? 8 : product.x.zeros[first + r];
    const std::int32_t levels = code_sums[r] - static_cast<std::int32_t>(w.inputs) * zero;
    const float scale = product.x.scales[first + r];
    float* y = row(product.y, first + r) + output;
    for (std::size_t c = 0; c < columns; ++c) {
      const std::int32_t sum = sums[r * nibble_outputs + c] - w.zeros[output + c] * levels - zero * w.sums[output + c];
      y[c] = static_cast<float>(sum) * (scale * w.scales[output + c]);
    }
  }
}

}  // namespace driver

/// y = x W^T; y: M x N, fully written. Allocates nothing. Errors, before any work: bad_shape; bad_argument (a code or
/// zero point above 15, null memory).
template <Executor E = SerialExecutor>
[[nodiscard]] Status nibble_matmul(const NibbleTokens& x, const NibbleWeightsView& weights, const MatrixView<float>& y,
                                   const E& executor = {}, Isa cap = detect()) {
  const std::size_t tokens = x.codes.rows;
  if (x.codes.columns != weights.inputs || y.rows != tokens || y.columns != weights.outputs ||
      (tokens > 1 && y.stride < y.columns)) {
    return Error{Errc::bad_shape, "[cbq] nibble_matmul: y is tokens x outputs, and x has the inputs of the weights",
                 "y", ErrorText(y.rows) << " x " << y.columns << " from " << x.codes.columns << " inputs",
                 ErrorText(tokens) << " x " << weights.outputs << " from " << weights.inputs << " inputs"};
  }
  if ((x.codes.data == nullptr && tokens * weights.inputs != 0) || (y.data == nullptr && tokens * y.columns != 0)) {
    return Error{Errc::bad_argument, "[cbq] nibble_matmul: the memory of x or y is null"};
  }
  if (const Status valid = driver::check_nibble_tokens(x); !valid) return valid;
  const driver::NibbleProduct product{x, weights, y, nibble_kernel(capped(cap))};
  // The codes of a piece stay in the L2 cache while all panels of weights pass.
  constexpr std::size_t piece_rows = 4 * nibble_rows;
  const std::size_t panels = divide_up(weights.outputs, nibble_outputs);
  executor.for_each_index(divide_up(tokens, piece_rows) * panels, [&](std::size_t index) {
    const std::size_t begin = index / panels * piece_rows;
    const std::size_t end = tokens - begin < piece_rows ? tokens : begin + piece_rows;
    for (std::size_t first = begin; first < end; first += nibble_rows) {
      const std::size_t count = end - first < nibble_rows ? end - first : nibble_rows;
      driver::multiply_nibble_tile(product, index % panels, first, count);
    }
  });
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
