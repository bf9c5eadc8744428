// SPDX-License-Identifier: Apache-2.0
#pragma once

// Linear operators that multiply in float: DenseLinear<T> with weights stored as float, half or bfloat16, and
// FakeQuantizedLinear, whose weights and activations were rounded to a scheme and back. The second one is what a packed
// operator computes up to the rounding of float sums, for any scheme that a QuantizedMatrix can hold; it is the
// reference that packed models are compared with, and what calibration optimizes. Cost: that of the dispatched float
// matmul; memory sizeof(T) per weight.

#include <cstddef>
#include <span>
#include <utility>

#include <cbq/gemm/float_matmul.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/quant/quantized_matrix.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace linear {

/// out = x W^T + bias + residual with packed float panels.
template <PanelElement T, Executor E>
[[nodiscard]] Status multiply_panels(const MatrixView<const float>& x, const FloatPanels<T>& weights, const float* bias,
                                     const LinearOutput& out, ExecutionContext<E>& context) noexcept {
  const FloatMatmulOptions<E> options{.executor = context.executor(), .cap = context.isa()};
  const FloatPanelsView<T> panels = weights.view();
  return with_epilogue(bias, out.residual,
                       [&](const auto& epilogue) { return float_matmul(x, panels, out.y, epilogue, options); });
}

/// The weights of one output, read back from panels.
template <PanelElement T>
void panel_row(const FloatPanelsView<T>& panels, std::size_t output, float* weights) noexcept {
  const T* from =
      panels.data + output / float_panel_width * float_panel_width * panels.inputs + output % float_panel_width;
  for (std::size_t k = 0; k < panels.inputs; ++k) weights[k] = to_float(from[k * float_panel_width]);
}

}  // namespace linear

/// y = x W^T + bias with W in T.
template <PanelElement T>
class DenseLinear {
 public:
  /// Copies `weights` [outputs x inputs], rounding to T, and `bias` (empty: none); inputs are rotated at run time.
  /// Errc::bad_shape, Errc::out_of_memory.
  template <Element From>
  [[nodiscard]] static Result<DenseLinear> create(const MatrixView<const From>& weights,
                                                  std::span<const float> bias = {},
                                                  InputRotation rotation = InputRotation::none) noexcept {
    Result<FloatPanels<T>> panels = FloatPanels<T>::pack(weights);
    if (!panels) return panels.error();
    Result<AlignedBuffer<float>> copy = linear::copy_bias(bias, weights.rows);
    if (!copy) return copy.error();
    DenseLinear result;
    result.weights_ = *std::move(panels);
    result.bias_ = *std::move(copy);
    result.rotation_ = rotation;
    return result;
  }

  [[nodiscard]] LinearInfo info() const noexcept {
    const FloatPanelsView<T> view = weights_.view();
    return {
        .outputs = view.outputs, .inputs = view.inputs, .scheme = {}, .bytes = weights_.bytes(), .rotation = rotation_};
  }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    if (const Status valid = linear::check_operands(info(), x.values(), out); !valid) return valid;
    const Result<MatrixView<const float>> values = x.rotated(rotation_, context);
    if (!values) return values.error();
    return linear::multiply_panels(*values, weights_, bias_.data(), out, context);
  }

  /// The weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    linear::panel_row(weights_.view(), output, weights);
  }

 private:
  FloatPanels<T> weights_;
  AlignedBuffer<float> bias_;
  InputRotation rotation_ = InputRotation::none;
};

/// y = x^ W^^T + bias: weights and activations rounded to a scheme, multiplied in float.
class FakeQuantizedLinear {
 public:
  /// Dequantizes `matrix` under scheme.weight; inputs are rotated at run time; `bias` may be empty. Errc::bad_shape,
  /// Errc::bad_argument, Errc::unsupported (activation grid), Errc::out_of_memory.
  [[nodiscard]] static Result<FakeQuantizedLinear> create(const QuantizedMatrixView& matrix, const Scheme& scheme,
                                                          std::span<const float> bias = {},
                                                          InputRotation rotation = InputRotation::none) noexcept {
    if (scheme.activation.bits != 16) {
      if (const Status valid = check_activation_grid(scheme.activation); !valid) return valid.error();
    }
    const std::size_t outputs = matrix.codes.rows;
    const std::size_t inputs = matrix.codes.columns;
    const Result<std::size_t> size = checked_product(outputs, inputs);
    if (!size) return size.error();
    Result<AlignedBuffer<float>> memory = AlignedBuffer<float>::allocate(*size);
    if (!memory) return memory.error();
    const MatrixView<float> weights = matrix_view(memory->data(), outputs, inputs);
    if (const Status valid = dequantize(matrix, scheme.weight, weights); !valid) return valid.error();
    Result<FloatPanels<float>> panels = FloatPanels<float>::pack(as_const(weights));
    if (!panels) return panels.error();
    Result<AlignedBuffer<float>> copy = linear::copy_bias(bias, outputs);
    if (!copy) return copy.error();
    FakeQuantizedLinear result;
    result.weights_ = *std::move(panels);
    result.bias_ = *std::move(copy);
    result.scheme_ = scheme;
    result.input_.rotation = rotation;
    return result;
  }

  [[nodiscard]] LinearInfo info() const noexcept {
    const FloatPanelsView<float> view = weights_.view();
    return {.outputs = view.outputs,
            .inputs = view.inputs,
            .scheme = scheme_,
            .bytes = weights_.bytes(),
            .rotation = input_.rotation};
  }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    if (const Status valid = linear::check_operands(info(), x.values(), out); !valid) return valid;
    const Result<MatrixView<const float>> rounded = x.fake_quantized(scheme_.activation, context, input_);
    if (!rounded) return rounded.error();
    return linear::multiply_panels(*rounded, weights_, bias_.data(), out, context);
  }

  /// Shrinks the ranges of activations, as ActivationSite learned it. Errc::bad_argument unless in (0, 1].
  [[nodiscard]] Status clip_activations(float multiplier) noexcept {
    if (const Status valid = check_clip(multiplier); !valid) return valid;
    input_.clip = multiplier;
    return {};
  }

  /// See PackedLinear::fix_activations().
  [[nodiscard]] Status fix_activations(const StaticGrid& grid) noexcept {
    return linear::fix_activations(input_, scheme_, grid);
  }

  /// The rounded weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    linear::panel_row(weights_.view(), output, weights);
  }

 private:
  FloatPanels<float> weights_;
  AlignedBuffer<float> bias_;
  Scheme scheme_ = {};
  InputRules input_ = {};
};

static_assert(LinearOperator<DenseLinear<float>> && LinearOperator<DenseLinear<half>>);
static_assert(LinearOperator<DenseLinear<bfloat16>> && LinearOperator<FakeQuantizedLinear>);

}  // namespace CBQ_ABI
}  // namespace cbq
