// SPDX-License-Identifier: Apache-2.0
#pragma once

// RuntimePackedLinear: PackedLinear for hosts that learn their schemes from a file. One type for all schemes of
// visit_scheme(); the product is chosen by a switch over bits and zero point, once per call. Same bits and speed as
// PackedLinear<S>; costs the instantiation of every product in the file that uses it.

#include <cstddef>
#include <span>
#include <utility>

#include <cbq/nn/packed_linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace linear {

/// Calls f.template operator()<P>() with the product_scheme of `scheme`, one of visit_scheme()'s.
template <class F>
[[nodiscard]] Status visit_product(const Scheme& scheme, const F& f) {
  const auto with_zero = [&]<int Bits, int Activation>() -> Status {
    if (scheme.weight.zero == Zero::affine)
      return f.template operator()<make_scheme(Bits, Activation, 0, Zero::affine)>();
    return f.template operator()<make_scheme(Bits, Activation, 0, Zero::symmetric)>();
  };
  const auto with_bits = [&]<int Activation>() -> Status {
    switch (scheme.weight.bits) {
      case 2:
        return with_zero.template operator()<2, Activation>();
      case 3:
        return with_zero.template operator()<3, Activation>();
      case 4:
        return with_zero.template operator()<4, Activation>();
      default:
        return with_zero.template operator()<8, Activation>();
    }
  };
  return scheme.activation.bits == 16 ? with_bits.template operator()<16>() : with_bits.template operator()<8>();
}

/// x as integer kernels for `scheme` read it, whatever the template argument says; errors as LinearInput::quantized().
template <Executor E>
[[nodiscard]] Result<QuantizedActivationsView<schemes::w8a8>> quantized(LinearInput& x, const Scheme& scheme,
                                                                        ExecutionContext<E>& context) noexcept {
  using View = QuantizedActivationsView<schemes::w8a8>;
  return visit_scheme(scheme, [&]<Scheme S>() -> Result<View> {
    if constexpr (S.activation.bits == 16) {
      return Error{Errc::unsupported, "the scheme's activations stay in floating point"};
    } else {
      const Result<QuantizedActivationsView<S>> view = x.template quantized<S>(context);
      if (!view) return view.error();
      return as_activations<schemes::w8a8>(*view);
    }
  });
}

}  // namespace linear

/// y = x W^T + bias with W packed under a scheme known at run time.
class RuntimePackedLinear {
 public:
  /// Packs `matrix`; `bias` may be empty. Errors as PackedLinear::create(), and Errc::unsupported for a scheme without
  /// packed kernels.
  [[nodiscard]] static Result<RuntimePackedLinear> create(const QuantizedMatrixView& matrix, const Scheme& scheme,
                                                          std::span<const float> bias = {}) noexcept {
    Result<linear::OwnedPackedBytes> packed =
        visit_scheme(scheme, [&]<Scheme S>() { return linear::pack_owned<linear::packing_scheme<S>>(matrix); });
    if (!packed) return packed.error();
    Result<AlignedBuffer<float>> copy = linear::copy_bias(bias, matrix.codes.rows);
    if (!copy) return copy.error();
    RuntimePackedLinear result;
    result.weights_ = *std::move(packed);
    result.bias_ = *std::move(copy);
    result.scheme_ = scheme;
    return result;
  }

  [[nodiscard]] LinearInfo info() const noexcept {
    const PackedLayout& layout = weights_.bytes.layout;
    return {.outputs = layout.outputs, .inputs = layout.inputs, .scheme = scheme_, .bytes = weights_.memory.size()};
  }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    if (const Status valid = linear::check_operands(info(), x.values(), out); !valid) return valid;
    QuantizedActivationsView<schemes::w8a8> codes;
    if (scheme_.activation.bits != 16) {
      const auto quantized = linear::quantized(x, scheme_, context);
      if (!quantized) return quantized.error();
      codes = *quantized;
    }
    return linear::visit_product(scheme_, [&]<Scheme P>() -> Status {
      const PackedWeightsView<P> weights = linear::as_weights<P>(weights_.bytes);
      if constexpr (P.activation.bits == 16) {
        return linear::multiply_packed(x.values(), weights, bias_.data(), out, context);
      } else {
        return linear::multiply_packed(linear::as_activations<P>(codes), weights, bias_.data(), out, context);
      }
    });
  }

  /// The weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    linear::unpack_row(weights_.bytes, output, weights);
  }

 private:
  linear::OwnedPackedBytes weights_;
  AlignedBuffer<float> bias_;
  Scheme scheme_ = {};
};

static_assert(LinearOperator<RuntimePackedLinear>);

}  // namespace CBQ_ABI
}  // namespace cbq
