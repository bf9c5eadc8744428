// SPDX-License-Identifier: Apache-2.0
#pragma once

// Panel sources: the right-hand side of the float matmul, seen as panels of 16 outputs. A source is a plain value with
// the members `outputs` and `inputs` and one free function that the driver finds by argument-dependent lookup:
//
//   const float* float_panel(const B& b, const PanelBlock& block, float* scratch, Isa isa) noexcept;
//
// It returns inputs [block.first, block.first + block.count) of panel block.panel as floats, [input][16], outputs
// beyond the last as zeros: either in place, or written to `scratch`, which holds block.count * 16 floats on a 64-byte
// boundary. `isa` is already capped to what the machine has. block.first is a multiple of 256 and block.count at most
// 256, so blocks never cut a quantization group of 2^n <= 256 inputs. Each panel block is asked for once per 128 rows
// of the left-hand side. Quantized weights become a source by decoding here; this header brings packed floats and the
// two unpacked operands.

#include <concepts>
#include <cstddef>

#include <cbq/gemm/float_dispatch.hpp>

namespace cbq {

/// B stored as [inputs x outputs]: the matmul is A * B.
struct RowMajorOperand {
  const float* data = nullptr;
  std::size_t stride = 0;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

/// B stored as [outputs x inputs], like weights: the matmul is A * B^T.
struct TransposedOperand {
  const float* data = nullptr;
  std::size_t stride = 0;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

inline namespace CBQ_ABI {

template <class B>
concept PanelSource = requires(const B& b, const PanelBlock& block, float* scratch, Isa isa) {
  { b.outputs } -> std::convertible_to<std::size_t>;
  { b.inputs } -> std::convertible_to<std::size_t>;
  { float_panel(b, block, scratch, isa) } -> std::same_as<const float*>;
};

/// The operand B of A * B, stored as [inputs x outputs].
[[nodiscard]] constexpr RowMajorOperand row_major(const MatrixView<const float>& b) noexcept {
  return {b.data, b.stride, b.columns, b.rows};
}

/// The operand B of A * B^T, stored as [outputs x inputs].
[[nodiscard]] constexpr TransposedOperand transposed(const MatrixView<const float>& b) noexcept {
  return {b.data, b.stride, b.rows, b.columns};
}

/// Packed floats are used in place, other elements are converted.
template <PanelElement T>
[[nodiscard]] const float* float_panel(const FloatPanelsView<T>& b, const PanelBlock& block, float* scratch,
                                       Isa isa) noexcept {
  const T* from = b.data + (block.panel * b.inputs + block.first) * float_panel_width;
  if constexpr (std::same_as<T, float>) {
    return from;
  } else {
    float_narrow_kernels<T>(isa).decode(from, block.count * float_panel_width, scratch);
    return scratch;
  }
}

[[nodiscard]] inline const float* float_panel(const RowMajorOperand& b, const PanelBlock& block, float* scratch,
                                              Isa) noexcept {
  constexpr std::size_t width = float_panel_width;
  if (block.count == 0) return scratch;  // without inputs there may be no memory to point into
  const std::size_t first = block.panel * width;
  const float* from = b.data + block.first * b.stride + first;
  if (b.outputs - first >= width) {
    for (std::size_t k = 0; k < block.count; ++k) {
      __builtin_memcpy(scratch + k * width, from + k * b.stride, width * sizeof(float));
    }
    return scratch;
  }
  for (std::size_t k = 0; k < block.count; ++k) {
    for (std::size_t lane = 0; lane < width; ++lane) {
      scratch[k * width + lane] = first + lane < b.outputs ? from[k * b.stride + lane] : 0.0f;
    }
  }
  return scratch;
}

[[nodiscard]] inline const float* float_panel(const TransposedOperand& b, const PanelBlock& block, float* scratch,
                                              Isa isa) noexcept {
  constexpr std::size_t width = float_panel_width;
  if (block.count == 0) return scratch;  // without inputs there may be no memory to point into
  const std::size_t first = block.panel * width;
  const float* from = b.data + first * b.stride + block.first;
  const std::size_t filled = b.outputs - first < width ? b.outputs - first : width;
  const std::size_t blocks = filled == width ? block.count / width : 0;
  const FloatTransposeKernel transpose = float_transpose_kernel(isa);
  for (std::size_t i = 0; i < blocks; ++i) {
    transpose(
        {.from = from + i * width, .from_stride = b.stride, .to = scratch + i * width * width, .to_stride = width});
  }
  for (std::size_t lane = 0; lane < width; ++lane) {
    for (std::size_t k = blocks * width; k < block.count; ++k) {
      scratch[k * width + lane] = lane < filled ? from[lane * b.stride + k] : 0.0f;
    }
  }
  return scratch;
}

static_assert(PanelSource<FloatPanelsView<float>> && PanelSource<FloatPanelsView<half>>);
static_assert(PanelSource<FloatPanelsView<bfloat16>> && PanelSource<RowMajorOperand> && PanelSource<TransposedOperand>);

}  // namespace CBQ_ABI
}  // namespace cbq
