// SPDX-License-Identifier: Apache-2.0
#pragma once

// Weights for the 4-bit multiplier (<cbq/gemm/nibble_lanes.hpp>): codes of two outputs in one byte, in memory that the
// host brings. One scale and zero point per output.
//
//   panel    64 outputs: for each input 32 bytes, byte p = code of output p << 4 | code of output p + 32
//   behind   for every output, those that pad the last panel included: scale float, zero point int32, sum of codes
//            int32, three arrays
//
// Bits per weight: 4, and 96 / K for what lies behind.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/gemm/host_memory.hpp>
#include <cbq/gemm/nibble_tile.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// Packed weights; plain data. A view that pack_nibbles() returned is valid.
struct NibbleWeightsView {
  const std::byte* pairs = nullptr;  ///< panel after panel
  const float* scales = nullptr;
  const std::int32_t* zeros = nullptr;
  const std::int32_t* sums = nullptr;  ///< of the codes of an output
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

inline namespace CBQ_ABI {

/// Most inputs: what a product adds up before zero points are taken off stays far inside int32.
inline constexpr std::size_t most_nibble_inputs = std::size_t{1} << 20;
static_assert(4 * most_nibble_inputs * largest_nibble * largest_nibble < 0x7fffffff,
              "[cbq] four terms of products of 4-bit codes must fit in int32");

/// Bytes that pack_nibbles() writes. Errc::bad_shape: more than 2^20 inputs, or a size beyond 64 bits.
[[nodiscard]] constexpr Result<std::size_t> nibble_weights_size(std::size_t outputs, std::size_t inputs) noexcept {
  if (inputs > most_nibble_inputs) {
    return Error{Errc::bad_shape, "[cbq] pack_nibbles: int32 sums could overflow", "inputs", inputs,
                 most_nibble_inputs};
  }
  constexpr std::size_t parameters = sizeof(float) + 2 * sizeof(std::int32_t);
  return checked_product(divide_up(outputs, nibble_outputs), nibble_pairs * inputs + nibble_outputs * parameters);
}

namespace packing {

/// Whether a matrix of 4-bit codes has one finite scale per output, and a zero point per output or none.
[[nodiscard]] inline Status check_nibbles(const QuantizedMatrixView& matrix) noexcept {
  const auto& [codes, scales, zeros] = matrix;
  const Zero kind = zeros.data == nullptr ? Zero::symmetric : Zero::affine;
  // Without inputs, too, there is a scale per output, which check_shape() does not want then.
  QuantizedMatrixView filled = matrix;
  if (codes.columns == 0) filled.codes.columns = filled.codes.stride = 1;
  if (const Status valid = check_shape(filled, {.bits = 4, .zero = kind}); !valid) return valid;
  if (codes.rows != 0 && (scales.data == nullptr || (codes.data == nullptr && codes.columns != 0))) {
    return Error{Errc::bad_argument, "[cbq] pack_nibbles: the memory of the matrix is null", "matrix"};
  }
  for (std::size_t n = 0; n < codes.rows; ++n) {
    unsigned largest = zeros.data == nullptr ? 0u : *row(zeros, n);
    for (std::size_t k = 0; k < codes.columns; ++k) largest |= row(codes, n)[k];
    if (largest > largest_nibble) {
      return Error{Errc::bad_argument, "[cbq] pack_nibbles: codes and zero points have 4 bits",
                   ErrorText("output ") << n};
    }
    if (!is_finite(*row(scales, n))) {
      return Error{Errc::not_finite, "[cbq] pack_nibbles: a scale is not finite", ErrorText("output ") << n};
    }
  }
  return {};
}

}  // namespace packing

/// Packs N x K codes of 4 bits into `memory`, at least nibble_weights_size(N, K) bytes on a 4-byte boundary. `matrix`
/// has one scale per output and one zero point, or none: then it is 8. Errors: bad_shape, bad_argument (a code or zero
/// point above 15, alignment, null memory), not_finite (a scale).
[[nodiscard]] inline Result<NibbleWeightsView> pack_nibbles(const QuantizedMatrixView& matrix,
                                                            std::span<std::byte> memory) noexcept {
  const std::size_t outputs = matrix.codes.rows;
  const std::size_t inputs = matrix.codes.columns;
  const Result<std::size_t> size = nibble_weights_size(outputs, inputs);
  if (!size) return size.error();
  if (const Status valid = packing::check_nibbles(matrix); !valid) return valid.error();
  if (const Status valid = driver::check_memory(memory, *size, "pack_nibbles"); !valid) return valid.error();
  const std::size_t padded = divide_up(outputs, nibble_outputs) * nibble_outputs;
  std::byte* pairs = memory.data();
  auto* scales = reinterpret_cast<float*>(pairs + padded / 2 * inputs);
  auto* zeros = reinterpret_cast<std::int32_t*>(scales + padded);
  std::int32_t* sums = zeros + padded;
  for (std::size_t i = 0; i < padded / 2 * inputs; ++i) pairs[i] = std::byte{0};
  for (std::size_t n = 0; n < padded; ++n) {
    const bool real = n < outputs;
    scales[n] = real ? *row(matrix.scales, n) : 0.0f;
    zeros[n] = !real ? 0 : matrix.zeros.data == nullptr ? 8 : *row(matrix.zeros, n);
    sums[n] = 0;
    std::byte* pair = pairs + n / nibble_outputs * nibble_pairs * inputs + n % nibble_pairs;
    const int shift = n % nibble_outputs < nibble_pairs ? 4 : 0;
    for (std::size_t k = 0; real && k < inputs; ++k) {
      const std::uint8_t code = row(matrix.codes, n)[k];
      pair[k * nibble_pairs] |= static_cast<std::byte>(code << shift);
      sums[n] += code;
    }
  }
  return NibbleWeightsView{pairs, scales, zeros, sums, outputs, inputs};
}

}  // namespace CBQ_ABI
}  // namespace cbq
