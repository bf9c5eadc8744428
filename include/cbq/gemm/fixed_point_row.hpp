// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of floats as 24-bit fixed-point numbers of three int8 digits, so that integer dot products can multiply them
// with packed codes. Each block of 32 inputs has a power of two of its own:
//
//   x[k] = scale * (digit[0] + 256 * digit[1] + 65536 * digit[2]) + error
//   |error| <= scale / 2 < 2^-22.9 * largest |x| of the block (or 2^-123, where that is larger)
//
// The sum over a block is then exact, where floats would round 32 times. What is lost are digits of values that are far
// smaller than their neighbours: 24 bits below the largest of 32, and not 24 bits of their own. A multiply-add of
// floats costs one instruction and one conversion of a weight per lane; three digits cost 3/4 of an instruction with
// vpdpbusd and no conversion.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {

inline constexpr std::size_t row_digits = 3;

/// 32 values of one row; the last block of a row is padded with zeros.
struct FixedBlock {
  std::int8_t digits[block_inputs / step_inputs][row_digits][step_inputs];
  std::int32_t zero_terms[row_digits];  ///< -zero_factor * sum of the 32 digits of one kind
  float scale;
};

static_assert(sizeof(FixedBlock) == 112 && offsetof(FixedBlock, zero_terms) == 96,
              "[cbq] FixedBlock: kernels store vectors across its members, so it must have no padding");

/// One row of floats to convert.
struct FixedRow {
  const float* values = nullptr;
  std::size_t inputs = 0;
  std::int32_t zero_factor = 1;  ///< the zero point of symmetric weights; 1 where each group has its own
  FixedBlock* blocks = nullptr;  ///< ceil(inputs / 32)
};

/// Converts a row; false where a value is not finite, and the blocks are then of no use.
using FixedPointConverter = bool (*)(const FixedRow& row) noexcept;

// The scale is 2^(e - 22), e the exponent of the block's largest value; one more where rounding could otherwise pass
// the largest number of three digits, 127 * (1 + 256 + 65536) = 1.992 * 2^22. As in the bits of a float: fields of 23
// bits below a biased exponent.
inline constexpr std::int32_t fixed_exponent = 22;
inline constexpr std::int32_t fixed_room = 0x20000;           ///< carries into the exponent from 1.984 * 2^e
inline constexpr std::int32_t fixed_least_exponent = 27;      ///< biased: 2^-100; smaller blocks keep this scale
inline constexpr std::int32_t fixed_digit_bias = 0x00808080;  ///< digits are the bytes of value + bias, each minus 128

}  // namespace CBQ_ABI
}  // namespace cbq
