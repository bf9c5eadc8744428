// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packed weights of one linear layer under a scheme S: a view into memory that the host brings, and an owner for hosts
// that would rather not. A view that pack() returned is valid, so that kernels check nothing. Scales are stored as half
// with one power of two for the whole matrix, chosen so that the largest magnitude lies in [2^14, 2^15): every scale of
// at most 11 significant bits within 2^28 of the largest is kept exactly, with its sign.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/core/element.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {

/// Packed N x K weights of any scheme. Plain data: it may cross files and be rebuilt from a stored copy of the bytes.
/// Write
/// `= {}`: `multiplier` has no initializer, because one would make an unoptimized constructor of vector instructions
/// that files with other flags share.
struct PackedMatrix {
  const std::byte* data = nullptr;  ///< packed_bytes(layout) bytes, of any alignment
  PackedLayout layout = {};
  float multiplier;  ///< the power of two that stored scales are multiplied with
};

/// Packed weights whose scheme the compiler knows.
template <Scheme S>
struct PackedWeightsView : PackedMatrix {};

inline namespace CBQ_ABI {

/// Bytes that pack<S>() writes for an `outputs` x `inputs` matrix.
template <Scheme S>
[[nodiscard]] constexpr Result<std::size_t> packed_size(std::size_t outputs, std::size_t inputs) noexcept {
  const Result<PackedLayout> layout = packed_layout(checked<S>().weight, outputs, inputs);
  if (!layout) return layout.error();
  return packed_bytes(*layout);
}

namespace packing {

/// 2^e with the largest magnitude times 2^-e in [2^14, 2^15); 1 where all scales are zero.
[[nodiscard]] inline Result<float> scale_multiplier(const MatrixView<const float>& scales) noexcept {
  std::uint32_t largest = 0;
  for (std::size_t n = 0; n < scales.rows; ++n) {
    for (std::size_t g = 0; g < scales.columns; ++g) {
      const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, row(scales, n)[g]) & 0x7fffffffu;
      if (bits >= 0x7f800000u) {  // infinity or NaN
        return Error{Errc::not_finite, "[cbq] pack: scales must be finite",
                     ErrorText("output ") << n << ", group " << g};
      }
      largest = bits > largest ? bits : largest;
    }
  }
  if (largest < 0x00800000u) return 1.0f;  // zero or subnormal: nothing to normalize
  const std::uint32_t exponent = largest >> 23;
  return __builtin_bit_cast(float, (exponent > 14 ? exponent - 14 : 1u) << 23);
}

/// Packs the codes of outputs [first, first + 16) into one zeroed panel; Errc::bad_argument on a code above the
/// largest.
[[nodiscard]] inline Status pack_panel(const QuantizedMatrixView& matrix, const PackedLayout& layout,
                                       std::size_t group_inputs, std::size_t first, std::byte* panel) noexcept {
  const std::size_t count = layout.outputs - first < panel_outputs ? layout.outputs - first : panel_outputs;
  const unsigned largest = (1u << layout.bits) - 1u;
  for (std::size_t output = 0; output < count; ++output) {
    const std::uint8_t* codes = row(matrix.codes, first + output);
    for (std::size_t group = 0; group < layout.groups; ++group) {
      const std::size_t begin = group * group_inputs;
      const std::size_t length = layout.inputs - begin < group_inputs ? layout.inputs - begin : group_inputs;
      std::byte* blocks = panel + group * layout.group_bytes + layout.header_bytes;
      for (std::size_t i = 0; i < length; ++i) {
        const unsigned code = codes[begin + i];
        if (code > largest) {
          return Error{Errc::bad_argument, "[cbq] pack: a code does not fit the scheme's bits",
                       ErrorText("output ") << first + output << ", input " << begin + i, code,
                       ErrorText("at most ") << largest};
        }
        set_block_code(blocks + i / block_inputs * block_bytes(layout.bits), layout.bits, output, i % block_inputs,
                       code);
      }
    }
  }
  return {};
}

/// pack() for a grid known at run time.
[[nodiscard]] inline Result<PackedMatrix> pack_matrix(const QuantizedMatrixView& matrix, const Grid& grid,
                                                      std::span<std::byte> memory) noexcept {
  const Result<PackedLayout> layout = packed_layout(grid, matrix.codes.rows, matrix.codes.columns);
  if (!layout) return layout.error();
  const auto fits = [&](const auto& view) { return view.rows == layout->outputs && view.columns == layout->groups; };
  if (!fits(matrix.scales)) {
    return Error{Errc::bad_shape, "[cbq] pack: scales must be outputs x groups", "scales",
                 ErrorText(matrix.scales.rows) << " x " << matrix.scales.columns,
                 ErrorText(layout->outputs) << " x " << layout->groups};
  }
  if (grid.zero == Zero::affine ? !fits(matrix.zeros) : matrix.zeros.data != nullptr) {
    return Error{Errc::bad_shape, "[cbq] pack: zeros must be outputs x groups when affine and absent when symmetric",
                 "zeros", ErrorText(matrix.zeros.rows) << " x " << matrix.zeros.columns,
                 ErrorText(layout->outputs) << " x " << layout->groups};
  }
  if (memory.size() < packed_bytes(*layout)) {
    return Error{Errc::bad_shape, "[cbq] pack: the memory is too small", "memory", memory.size(),
                 packed_bytes(*layout)};
  }
  const Result<float> multiplier = packing::scale_multiplier(matrix.scales);
  if (!multiplier) return multiplier.error();
  if (packed_bytes(*layout) != 0) __builtin_memset(memory.data(), 0, packed_bytes(*layout));
  const float inverse = 1.0f / *multiplier;

  for (std::size_t p = 0; p < layout->panels; ++p) {
    std::byte* panel = memory.data() + p * layout->panel_bytes;
    const Status packed =
        packing::pack_panel(matrix, *layout, group_length(grid, layout->inputs), p * panel_outputs, panel);
    if (!packed) return packed.error();
    for (std::size_t output = 0; output < panel_outputs && p * panel_outputs + output < layout->outputs; ++output) {
      const std::size_t n = p * panel_outputs + output;
      for (std::size_t group = 0; group < layout->groups; ++group) {
        const half scale = to_half(row(matrix.scales, n)[group] * inverse);
        __builtin_memcpy(panel + group * layout->group_bytes + output * sizeof scale, &scale, sizeof scale);
        if (grid.zero == Zero::affine) {
          const std::uint8_t zero = row(matrix.zeros, n)[group];
          if (zero > max_code(grid)) {
            return Error{Errc::bad_argument, "[cbq] pack: a zero point does not fit the scheme's bits",
                         ErrorText("output ") << n << ", group " << group, zero,
                         ErrorText("at most ") << max_code(grid)};
          }
          panel[group * layout->group_bytes + group_scales_bytes + output] = std::byte{zero};
        }
      }
    }
  }
  return PackedMatrix{memory.data(), *layout, *multiplier};
}

}  // namespace packing

/// Packs `matrix` (N x K codes, N x groups scales, zeros if S is affine) into `memory` of at least packed_size<S>()
/// bytes; 64-byte alignment is fastest, none is needed. The view points into `memory`. Errors: bad_shape (sizes that do
/// not fit each other or the memory), bad_argument (a code or zero point beyond the grid), not_finite (scales).
template <Scheme S>
[[nodiscard]] Result<PackedWeightsView<S>> pack(const QuantizedMatrixView& matrix,
                                                std::span<std::byte> memory) noexcept {
  const Result<PackedMatrix> packed = packing::pack_matrix(matrix, checked<S>().weight, memory);
  if (!packed) return packed.error();
  return PackedWeightsView<S>{*packed};
}

/// Packed weights with memory of their own.
template <Scheme S>
class PackedWeights {
 public:
  /// Allocates and packs; errors as pack<S>(), and out_of_memory.
  [[nodiscard]] static Result<PackedWeights> from_codes(const QuantizedMatrixView& matrix) noexcept {
    const Result<std::size_t> size = packed_size<S>(matrix.codes.rows, matrix.codes.columns);
    if (!size) return size.error();
    Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(*size);
    if (!memory) return memory.error();
    const Result<PackedWeightsView<S>> view = pack<S>(matrix, {memory->data(), memory->size()});
    if (!view) return view.error();
    PackedWeights weights;
    weights.memory_ = *std::move(memory);
    weights.view_ = *view;
    return weights;
  }

  [[nodiscard]] const PackedWeightsView<S>& view() const noexcept { return view_; }
  [[nodiscard]] std::size_t outputs() const noexcept { return view_.layout.outputs; }
  [[nodiscard]] std::size_t inputs() const noexcept { return view_.layout.inputs; }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size(); }

 private:
  AlignedBuffer<std::byte> memory_;
  PackedWeightsView<S> view_ = {};
};

/// Code, scale and zero point of one weight, read back from the packed bytes; for tests, tools and debuggers.
struct UnpackedWeight {
  unsigned code = 0;
  float scale = 0.0f;
  int zero = 0;
};
[[nodiscard]] inline UnpackedWeight unpack(const PackedMatrix& weights, std::size_t output,
                                           std::size_t input) noexcept {
  const PackedLayout& layout = weights.layout;
  const std::size_t block_index = input / block_inputs;
  const std::size_t group = layout.groups == 1 ? 0 : input / (layout.blocks_per_group * block_inputs);
  const std::byte* header = weights.data + output / panel_outputs * layout.panel_bytes + group * layout.group_bytes;
  const std::size_t lane = output % panel_outputs;
  const std::byte* block =
      header + layout.header_bytes + (block_index - group * layout.blocks_per_group) * block_bytes(layout.bits);
  half scale;
  __builtin_memcpy(&scale, header + lane * sizeof scale, sizeof scale);
  UnpackedWeight weight;
  weight.code = block_code(block, layout.bits, lane, input % block_inputs);
  weight.scale = to_float(scale) * weights.multiplier;
  weight.zero =
      layout.zero == Zero::affine ? static_cast<int>(header[group_scales_bytes + lane]) : 1 << (layout.bits - 1);
  return weight;
}

}  // namespace CBQ_ABI
}  // namespace cbq
