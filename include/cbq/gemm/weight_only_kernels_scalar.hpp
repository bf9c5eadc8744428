// SPDX-License-Identifier: Apache-2.0
#pragma once

// Plain decoding of packed panels and plain conversion to fixed point: what every other one must equal bit for bit.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/integer_kernels_scalar.hpp>
#include <cbq/gemm/weight_only_tile.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::scalar {

/// See DecodeJob.
template <int Bits, Zero Z>
void decode_panel(const DecodeJob& job) noexcept {
  for (std::size_t input = 0; input < job.inputs; ++input) {
    const std::size_t block = job.first_block + input / block_inputs;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const std::byte* codes = header + job.header_bytes + block % job.blocks_per_group * block_bytes(Bits);
    for (std::size_t output = 0; output < panel_outputs; ++output) {
      const int zero = Z == Zero::affine ? static_cast<int>(header[group_scales_bytes + output]) : 1 << (Bits - 1);
      const int code = static_cast<int>(block_code(codes, Bits, output, input % block_inputs));
      const float scale = to_float(load_half(header + output * sizeof(half))) * job.multiplier;
      job.out[input * panel_outputs + output] = scale * static_cast<float>(code - zero);
    }
  }
}

/// Converts at most 32 values to one block; false where one is not finite, and the block is then of no use.
inline bool to_fixed_block(const float* values, std::size_t count, std::int32_t zero_factor,
                           FixedBlock& block) noexcept {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t bits = __builtin_bit_cast(std::int32_t, values[i]) & 0x7fffffff;
    if (bits > largest) largest = bits;
  }
  if (largest >= 0x7f800000) return false;
  const std::int32_t wanted = (largest + fixed_room) >> 23;
  const std::int32_t exponent = wanted < fixed_least_exponent ? fixed_least_exponent : wanted;
  const float factor = __builtin_bit_cast(float, (254 + fixed_exponent - exponent) << 23);
  block = {};
  block.scale = __builtin_bit_cast(float, (exponent - fixed_exponent) << 23);
  for (std::size_t i = 0; i < count; ++i) {
    const auto value = static_cast<std::int32_t>(__builtin_lrintf(values[i] * factor));
    for (std::size_t d = 0; d < row_digits; ++d) {
      const int digit = (((value + fixed_digit_bias) >> (8 * d)) & 255) - 128;
      block.digits[i / step_inputs][d][i % step_inputs] = static_cast<std::int8_t>(digit);
      block.zero_terms[d] -= zero_factor * digit;
    }
  }
  return true;
}

/// See FixedPointConverter.
inline bool to_fixed_point(const FixedRow& row) noexcept {
  FixedBlock* block = row.blocks;
  for (std::size_t input = 0; input < row.inputs; input += block_inputs, ++block) {
    const std::size_t count = row.inputs - input < block_inputs ? row.inputs - input : block_inputs;
    if (!to_fixed_block(row.values + input, count, row.zero_factor, *block)) return false;
  }
  return true;
}

}  // namespace isa::scalar
}  // namespace CBQ_ABI
}  // namespace cbq
