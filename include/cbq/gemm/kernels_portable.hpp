// SPDX-License-Identifier: Apache-2.0
#pragma once

// The xsimd kernel: whatever SIMD the including file is compiled for (SSE2 in a baseline x86-64 build, NEON on Arm,
// SVE, RVV, WASM, VSX), for machines without a hand-written kernel. A 32-bit lane holds 4 codes of one output; masked,
// they are two 16-bit lanes, and a product of an at most 8-bit code with an int8 activation fits 16 bits. Narrow codes
// sum 16 products of 15 * 127 in int16 before widening; 8-bit codes widen each product. A header of its own, because
// xsimd costs compile time: pass `PortableKernels` to matmul, or include <cbq/cbq.hpp>, whose linear operators do.

#include <cstddef>
#include <cstdint>

#include <xsimd/xsimd.hpp>

#include <cbq/gemm/dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::portable {

using Shorts = xsimd::batch<std::int16_t>;
using Ints = xsimd::batch<std::int32_t>;
/// Outputs in one register; a panel is a whole number of registers up to 512 bits.
inline constexpr std::size_t lane_outputs = Ints::size < panel_outputs ? Ints::size : panel_outputs;
static_assert(panel_outputs % lane_outputs == 0 && Ints::size <= panel_outputs,
              "[cbq] kernels_portable: a vector register must not be wider than a panel (512 bits)");

inline Shorts load_line(const std::byte* from) noexcept {
  return xsimd::bitwise_cast<std::int16_t>(
      xsimd::batch<std::uint8_t>::load_unaligned(reinterpret_cast<const std::uint8_t*>(from)));
}

/// Codes of step `Step`, one byte each, as pairs of bytes in 16-bit lanes.
template <int Bits, int Step>
Shorts decode_step(const std::byte* block) noexcept {
  // Logical right shifts drag bits of the upper byte into the lower one; the mask removes them.
  const auto shifted = [](Shorts line, int right) {
    return right == 0 ? line : xsimd::bitwise_cast<std::int16_t>(xsimd::bitwise_cast<std::uint16_t>(line) >> right);
  };
  if constexpr (Bits == 8) {
    return load_line(block + Step * line_bytes);
  } else if constexpr (Bits == 4) {
    return shifted(load_line(block + Step / 2 * line_bytes), 4 * (Step % 2)) & Shorts(0x0f0f);
  } else {
    const Shorts low = shifted(load_line(block + Step / 4 * line_bytes), 2 * (Step % 4)) & Shorts(0x0303);
    if constexpr (Bits == 2) {
      return low;
    } else {
      const Shorts high = shifted(load_line(block + 2 * line_bytes), Step) & Shorts(0x0101);
      return low | (high << 2);
    }
  }
}

/// Sum of the two int16 halves of every int32 lane.
inline Ints widen_pairs(Shorts pairs) noexcept {
  const Ints both = xsimd::bitwise_cast<std::int32_t>(pairs);
  return ((both << 16) >> 16) + (both >> 16);
}

/// Products of steps [Step, 8) of one block with one row. int16 sums: 8 steps x 2 products x 15 * 127 = 30480.
template <int Bits, int Step>
void multiply_steps(Ints& sum, Shorts& pairs, const std::byte* block, const std::int8_t* codes) noexcept {
  const Shorts weights = decode_step<Bits, Step>(block);
  const auto pair = [codes](std::size_t low, std::size_t high) {
    return xsimd::bitwise_cast<std::int16_t>(
        Ints(static_cast<std::int32_t>(static_cast<std::uint32_t>(static_cast<std::uint16_t>(codes[low])) |
                                       static_cast<std::uint32_t>(static_cast<std::uint16_t>(codes[high])) << 16)));
  };
  const Shorts even = (weights & Shorts(0xff)) * pair(Step * 4, Step * 4 + 2);
  const Shorts odd = xsimd::bitwise_cast<std::int16_t>(xsimd::bitwise_cast<std::uint16_t>(weights) >> 8) *
                     pair(Step * 4 + 1, Step * 4 + 3);
  if constexpr (Bits == 8) {
    sum += widen_pairs(even) + widen_pairs(odd);
  } else {
    pairs += even + odd;
  }
  if constexpr (Step < 7) multiply_steps<Bits, Step + 1>(sum, pairs, block, codes);
}

/// `lane_outputs` outputs of one panel times one row.
template <int Bits, Zero Z>
void multiply_row(const IntegerTile& tile, const std::byte* panel, std::size_t first_output, std::size_t row,
                  float* out) noexcept {
  float totals[lane_outputs] = {};
  const std::int8_t* codes = tile.codes + row * block_inputs;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group) {
    Ints sum(0);
    const std::byte* block = panel + tile.header_bytes + first_output * step_inputs;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    for (std::size_t i = 0; i < count; ++i) {
      Shorts pairs(std::int16_t{0});
      multiply_steps<Bits, 0>(sum, pairs, block, codes);
      if constexpr (Bits != 8) sum += widen_pairs(pairs);
      block += block_bytes(Bits);
      codes += block_inputs * tile.panel_rows;
    }
    std::int32_t sums[lane_outputs];
    sum.store_unaligned(sums);
    const float row_scale = tile.group_scales == nullptr ? 1.0f : tile.group_scales[group * tile.panel_rows + row];
    for (std::size_t c = 0; c < lane_outputs; ++c) {
      std::int32_t term = tile.zero_terms[group * tile.panel_rows + row];
      if constexpr (Z == Zero::affine) {
        term *= static_cast<std::int32_t>(panel[group_scales_bytes + first_output + c]);
      }
      const float scale = to_float(isa::scalar::load_half(panel + (first_output + c) * sizeof(half))) * row_scale;
      totals[c] = __builtin_fmaf(scale, static_cast<float>(sums[c] + term), totals[c]);
    }
    panel += tile.group_bytes;
  }
  const float scale = tile.row_scales[row] * tile.weight_multiplier;
  for (std::size_t c = 0; c < lane_outputs; ++c) out[row * tile.out_stride + first_output + c] = totals[c] * scale;
}

/// See IntegerTile.
template <int Bits, Zero Z>
void integer_tile(const IntegerTile& tile) noexcept {
  for (std::size_t p = 0; p < tile.panels; ++p) {
    const std::byte* panel = tile.panel + p * tile.panel_bytes;
    for (std::size_t output = 0; output < panel_outputs; output += lane_outputs) {
      for (std::size_t row = 0; row < tile.panel_rows; ++row) {
        multiply_row<Bits, Z>(tile, panel, output, row, tile.out + p * panel_outputs);
      }
    }
  }
}

/// See DecodeJob.
template <int Bits, Zero Z, int Step>
void decode_steps(const std::byte* block, const std::byte* header, float multiplier, std::size_t first_output,
                  float* out) noexcept {
  using Floats = xsimd::batch<float>;
  float scales[lane_outputs];
  float zeros[lane_outputs];
  for (std::size_t c = 0; c < lane_outputs; ++c) {
    scales[c] = to_float(isa::scalar::load_half(header + (first_output + c) * sizeof(half))) * multiplier;
    zeros[c] = Z == Zero::affine ? static_cast<float>(header[group_scales_bytes + first_output + c])
                                 : static_cast<float>(1 << (Bits - 1));
  }
  const Floats scale = Floats::load_unaligned(scales);
  const Floats zero = Floats::load_unaligned(zeros);
  const auto step = xsimd::bitwise_cast<std::uint32_t>(decode_step<Bits, Step>(block + first_output * step_inputs));
  for (int i = 0; i < 4; ++i) {
    const Ints code = xsimd::bitwise_cast<std::int32_t>((step >> (8 * i)) & xsimd::batch<std::uint32_t>(255u));
    (scale * (xsimd::to_float(code) - zero))
        .store_unaligned(out + static_cast<std::size_t>(i) * panel_outputs + first_output);
  }
  if constexpr (Step < 7) {
    decode_steps<Bits, Z, Step + 1>(block, header, multiplier, first_output, out + step_inputs * panel_outputs);
  }
}

/// See DecodeJob.
template <int Bits, Zero Z>
void decode_panel(const DecodeJob& job) noexcept {
  for (std::size_t input = 0; input < job.inputs; input += block_inputs) {
    const std::size_t block = job.first_block + input / block_inputs;
    const std::byte* header = job.panel + block / job.blocks_per_group * job.group_bytes;
    const std::byte* codes = header + job.header_bytes + block % job.blocks_per_group * block_bytes(Bits);
    const std::size_t wanted = job.inputs - input < block_inputs ? job.inputs - input : block_inputs;
    float whole[block_inputs * panel_outputs];
    for (std::size_t output = 0; output < panel_outputs; output += lane_outputs) {
      decode_steps<Bits, Z, 0>(codes, header, job.multiplier, output, whole);
    }
    __builtin_memcpy(job.out + input * panel_outputs, whole, wanted * panel_outputs * sizeof(float));
  }
}

}  // namespace isa::portable

/// The kernels of RegionKernels, and xsimd's where those have only the scalar one.
struct PortableKernels {
  template <int Bits, Zero Z>
  [[nodiscard]] static IntegerKernel integer_tile(Isa isa) noexcept {
    return isa == Isa::portable ? &isa::portable::integer_tile<Bits, Z> : RegionKernels::integer_tile<Bits, Z>(isa);
  }
  template <int Bits, Zero Z>
  [[nodiscard]] static DecodeKernel decode_panel(Isa isa) noexcept {
    return isa == Isa::portable ? &isa::portable::decode_panel<Bits, Z> : RegionKernels::decode_panel<Bits, Z>(isa);
  }
  template <int Bits, Zero Z>
  [[nodiscard]] static WeightOnlyKernels weight_only_tile(Isa isa) noexcept {
    return RegionKernels::weight_only_tile<Bits, Z>(isa);
  }
  template <int Bits, Zero Z>
  [[nodiscard]] static Bfloat16Kernels bfloat16_tile(Isa isa) noexcept {
    return RegionKernels::bfloat16_tile<Bits, Z>(isa);
  }
};

}  // namespace CBQ_ABI
}  // namespace cbq
