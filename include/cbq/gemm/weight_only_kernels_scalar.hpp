// SPDX-License-Identifier: Apache-2.0
#pragma once

// Plain decoding of packed panels: what every other decoder must equal bit for bit.

#include <cstddef>

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

}  // namespace isa::scalar
}  // namespace CBQ_ABI
}  // namespace cbq
