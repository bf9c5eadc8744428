// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packed dense weights for the float matmul. The weights W [outputs x inputs] are cut into panels of 16 outputs; a
// panel holds its weights as [input][16], so that one 64-byte line of floats feeds one vector multiply-add for every
// row of activations and a matrix-vector product reads memory as one sequential stream. The last panel is padded with
// zeros; inputs are not padded.
//
//   data[(output / 16 * inputs + input) * 16 + output % 16] = W[output][input]
//
// Elements are float, half or bfloat16; the kernels convert while they load. Packing costs one pass over the weights.

#include <cstddef>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/element.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {

/// Outputs per panel.
inline constexpr std::size_t float_panel_width = 16;

/// Packed weights that somebody else owns.
template <class T>
struct FloatPanelsView {
  const T* data = nullptr;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

/// Inputs [first, first + count) of one panel.
struct PanelBlock {
  std::size_t panel = 0;
  std::size_t first = 0;
  std::size_t count = 0;
};

inline namespace CBQ_ABI {

template <class T>
concept PanelElement = std::same_as<T, float> || std::same_as<T, half> || std::same_as<T, bfloat16>;

/// Elements of T that packed weights [outputs x inputs] take, or Errc::bad_shape when that does not fit in 64 bits.
template <PanelElement T>
[[nodiscard]] constexpr Result<std::size_t> float_panels_size(std::size_t outputs, std::size_t inputs) noexcept {
  const Result<std::size_t> elements =
      checked_product(divide_up(outputs, float_panel_width), inputs, float_panel_width, sizeof(T));
  if (!elements) return elements.error();
  return *elements / sizeof(T);
}

/// Packs `weights` [outputs x inputs] into `memory` of at least float_panels_size<T>() elements (64-byte alignment is
/// fastest, none is needed), converting to T with rounding to nearest even. Errors: Errc::bad_shape.
template <PanelElement T, Element From>
[[nodiscard]] Result<FloatPanelsView<T>> pack_float_panels(MatrixView<const From> weights,
                                                           std::span<T> memory) noexcept {
  const Result<std::size_t> size = float_panels_size<T>(weights.rows, weights.columns);
  if (!size) return size.error();
  if (memory.size() < *size) {
    return Error{Errc::bad_shape, "too little memory for packed weights", "", memory.size(), *size};
  }
  if (weights.stride < weights.columns && weights.rows > 1) {
    return Error{Errc::bad_shape, "the stride is shorter than a row", "weights", weights.stride, weights.columns};
  }
  constexpr std::size_t width = float_panel_width;
  constexpr std::size_t depth = 64;  // inputs per pass: 16 passes over 4 KiB of panel stay in L1
  for (std::size_t output = 0; output < weights.rows; output += width) {
    T* panel = memory.data() + output * weights.columns;
    const std::size_t filled = weights.rows - output < width ? weights.rows - output : width;
    for (std::size_t first = 0; first < weights.columns; first += depth) {
      const std::size_t last = weights.columns - first < depth ? weights.columns : first + depth;
      for (std::size_t lane = 0; lane < width; ++lane) {
        const From* source = lane < filled ? row(weights, output + lane) : nullptr;
        for (std::size_t input = first; input < last; ++input) {
          panel[input * width + lane] = source != nullptr ? from_float<T>(to_float(source[input])) : T{};
        }
      }
    }
  }
  return FloatPanelsView<T>{memory.data(), weights.rows, weights.columns};
}

/// Owner of packed weights. Move-only.
template <PanelElement T>
class FloatPanels {
 public:
  FloatPanels() noexcept = default;

  /// Packs a copy of `weights`. Errors: Errc::bad_shape, Errc::out_of_memory.
  template <Element From>
  [[nodiscard]] static Result<FloatPanels> pack(MatrixView<const From> weights) noexcept {
    const Result<std::size_t> size = float_panels_size<T>(weights.rows, weights.columns);
    if (!size) return size.error();
    Result<AlignedBuffer<T>> memory = AlignedBuffer<T>::allocate(*size);
    if (!memory) return memory.error();
    const auto packed = pack_float_panels<T>(weights, std::span<T>(memory->data(), memory->size()));
    if (!packed) return packed.error();
    FloatPanels panels;
    panels.memory_ = std::move(*memory);
    panels.outputs_ = weights.rows;
    panels.inputs_ = weights.columns;
    return panels;
  }

  /// Valid while this object lives and is not moved from.
  [[nodiscard]] FloatPanelsView<T> view() const noexcept { return {memory_.data(), outputs_, inputs_}; }
  /// Bytes of packed weights.
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size() * sizeof(T); }

 private:
  AlignedBuffer<T> memory_;
  std::size_t outputs_ = 0;
  std::size_t inputs_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
