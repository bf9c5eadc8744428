// SPDX-License-Identifier: Apache-2.0
#pragma once

// PackedLinear<S>: the linear operator that engines ship. Weights stay packed; activations are quantized per token (and
// shared with other operators of the same input) or stay float. The product is instantiated once per (bits, zero point,
// activations quantized or float), not once per scheme: the group length is a number in the layout.

#include <cstddef>
#include <span>
#include <utility>

#include <cbq/gemm/matmul.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>
#include <cbq/nn/linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace linear {

/// The scheme that packs the same bytes as S: activations do not matter to weights.
template <Scheme S>
inline constexpr Scheme packing_scheme = {.weight = checked<S>().weight};

/// The scheme whose product is that of S.
template <Scheme S>
inline constexpr Scheme product_scheme =
    make_scheme(checked<S>().weight.bits, S.activation.bits == 16 ? 16 : 8, 0, S.weight.zero);

/// Activations quantized for one scheme as those of another one that reads them the same way.
template <Scheme To, Scheme From>
[[nodiscard]] constexpr QuantizedActivationsView<To> as_activations(const QuantizedActivationsView<From>& x) noexcept {
  QuantizedActivationsView<To> view;
  view.codes = x.codes;
  view.zero_terms = x.zero_terms;
  view.scales = x.scales;
  view.layout = x.layout;
  view.tokens = x.tokens;
  return view;
}

/// Packed weights of any scheme; plain data. What does not depend on the scheme at compile time works on this.
struct PackedBytes {
  const std::byte* data = nullptr;
  PackedLayout layout = {};
  float multiplier = 1.0f;
  Zero zero = Zero::symmetric;
};

/// The view that kernels for S read.
template <Scheme S>
[[nodiscard]] constexpr PackedWeightsView<S> as_weights(const PackedBytes& bytes) noexcept {
  PackedWeightsView<S> view;
  view.data = bytes.data;
  view.layout = bytes.layout;
  view.multiplier = bytes.multiplier;
  return view;
}

/// The `inputs` weights of one output as floats, read back from packed bytes: scale * (code - zero), rounded once.
inline void unpack_row(const PackedBytes& weights, std::size_t output, float* out) noexcept {
  const PackedLayout& layout = weights.layout;
  const std::size_t lane = output % panel_outputs;
  const std::size_t length = layout.blocks_per_group * block_inputs;  // only a last group may be shorter
  const std::byte* group = weights.data + output / panel_outputs * layout.panel_bytes;
  for (std::size_t first = 0; first < layout.inputs; first += length, group += layout.group_bytes) {
    half stored;
    __builtin_memcpy(&stored, group + lane * sizeof stored, sizeof stored);
    const float scale = to_float(stored) * weights.multiplier;
    const int zero =
        weights.zero == Zero::affine ? static_cast<int>(group[group_scales_bytes + lane]) : 1 << (layout.bits - 1);
    const std::size_t count = layout.inputs - first < length ? layout.inputs - first : length;
    for (std::size_t i = 0; i < count; ++i) {
      const std::byte* block = group + layout.header_bytes + i / block_inputs * block_bytes(layout.bits);
      const int code = static_cast<int>(block_code(block, layout.bits, lane, i % block_inputs));
      out[first + i] = scale * static_cast<float>(code - zero);
    }
  }
}

/// Packed weights with their memory.
struct OwnedPackedBytes {
  AlignedBuffer<std::byte> memory;
  PackedBytes bytes = {};
};

/// Packs `matrix` under S, a packing_scheme. Errors as pack<S>(), and out_of_memory.
template <Scheme S>
[[nodiscard]] Result<OwnedPackedBytes> pack_owned(const QuantizedMatrixView& matrix) noexcept {
  const Result<std::size_t> size = packed_size<S>(matrix.codes.rows, matrix.codes.columns);
  if (!size) return size.error();
  Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(*size);
  if (!memory) return memory.error();
  const auto view = pack<S>(matrix, std::span<std::byte>(memory->data(), memory->size()));
  if (!view) return view.error();
  OwnedPackedBytes result;
  result.memory = *std::move(memory);
  result.bytes = {view->data, view->layout, view->multiplier, S.weight.zero};
  return result;
}

/// out = x W^T + bias + residual; x: QuantizedActivationsView<S> or floats, S: a product_scheme.
template <Scheme S, class X, Executor E>
[[nodiscard]] Status multiply_packed(const X& x, const PackedWeightsView<S>& weights, const float* bias,
                                     const LinearOutput& out, ExecutionContext<E>& context) noexcept {
  return with_epilogue(bias, out.residual, [&](const auto& epilogue) {
    return matmul<S>(x, weights, out.y, epilogue, context.executor(), context.isa());
  });
}

}  // namespace linear

/// y = x W^T + bias with W packed under S.
template <Scheme S>
class PackedLinear {
 public:
  static constexpr Scheme scheme = checked<S>();

  /// Packs `matrix`; `bias` may be empty. Errors as pack<S>(), and out_of_memory.
  [[nodiscard]] static Result<PackedLinear> create(const QuantizedMatrixView& matrix,
                                                   std::span<const float> bias = {}) noexcept {
    Result<linear::OwnedPackedBytes> packed = linear::pack_owned<linear::packing_scheme<S>>(matrix);
    if (!packed) return packed.error();
    Result<AlignedBuffer<float>> copy = linear::copy_bias(bias, matrix.codes.rows);
    if (!copy) return copy.error();
    PackedLinear result;
    result.weights_ = *std::move(packed);
    result.bias_ = *std::move(copy);
    return result;
  }

  [[nodiscard]] PackedWeightsView<S> weights() const noexcept { return linear::as_weights<S>(weights_.bytes); }
  [[nodiscard]] LinearInfo info() const noexcept {
    const PackedLayout& layout = weights_.bytes.layout;
    return {.outputs = layout.outputs, .inputs = layout.inputs, .scheme = S, .bytes = weights_.memory.size()};
  }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    if (const Status valid = linear::check_operands(info(), x.values(), out); !valid) return valid;
    constexpr Scheme product = linear::product_scheme<S>;
    const PackedWeightsView<product> weights = linear::as_weights<product>(weights_.bytes);
    if constexpr (S.activation.bits == 16) {
      return linear::multiply_packed(x.values(), weights, bias_.data(), out, context);
    } else {
      const Result<QuantizedActivationsView<S>> quantized = x.template quantized<S>(context);
      if (!quantized) return quantized.error();
      return linear::multiply_packed(linear::as_activations<product>(*quantized), weights, bias_.data(), out, context);
    }
  }

  /// The weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    linear::unpack_row(weights_.bytes, output, weights);
  }

 private:
  linear::OwnedPackedBytes weights_;
  AlignedBuffer<float> bias_;
};

static_assert(LinearOperator<PackedLinear<schemes::w4a8_g128>> && LinearOperator<PackedLinear<schemes::w4a16_g128>>);

}  // namespace CBQ_ABI
}  // namespace cbq
