// SPDX-License-Identifier: Apache-2.0
#pragma once

// RuntimePackedLinear: PackedLinear for hosts that learn their schemes from a file. One type for all schemes of
// visit_scheme(); kernels are chosen by a switch over bits and zero point, once per call. Same bits and speed as
// PackedLinear<S>; costs the instantiation of every kernel in the file that uses it.

#include <cstddef>
#include <span>
#include <utility>

#include <cbq/nn/packed_linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace linear {

/// Kernels for any packed scheme. A template, so that only files that multiply compile them.
template <class = void>
[[nodiscard]] ProductKernels runtime_kernels(const Scheme& scheme, Isa isa) noexcept {
  const auto with_bits = [&]<int Bits>() {
    const bool affine = scheme.weight.zero == Zero::affine;
    if (scheme.activation.bits == 16) {
      return affine ? float_kernels<Bits, Zero::affine>(isa) : float_kernels<Bits, Zero::symmetric>(isa);
    }
    return affine ? integer_kernels<Bits, Zero::affine>(isa) : integer_kernels<Bits, Zero::symmetric>(isa);
  };
  switch (scheme.weight.bits) {
    case 2:
      return with_bits.template operator()<2>();
    case 3:
      return with_bits.template operator()<3>();
    case 4:
      return with_bits.template operator()<4>();
    default:
      return with_bits.template operator()<8>();
  }
}

}  // namespace linear

/// y = x W^T + bias with W packed under a scheme known at run time.
class RuntimePackedLinear {
 public:
  /// Packs `matrix`, whose inputs are rotated at run time; `bias` may be empty. Errors as PackedLinear::create(), and
  /// Errc::unsupported for a scheme without packed kernels.
  [[nodiscard]] static Result<RuntimePackedLinear> create(const QuantizedMatrixView& matrix, const Scheme& scheme,
                                                          std::span<const float> bias = {},
                                                          InputRotation rotation = InputRotation::none) noexcept {
    if (const Status known = check_packed_scheme(scheme); !known) return known.error();
    Result<linear::PackedStorage> storage = linear::pack_storage(matrix, scheme.weight, bias);
    if (!storage) return storage.error();
    RuntimePackedLinear result;
    result.storage_ = *std::move(storage);
    result.storage_.input.rotation = rotation;
    result.scheme_ = scheme;
    return result;
  }

  /// Weights that are packed under `scheme` already, for example in a mapped PackedFile, and outlive this operator.
  /// Errors as create(), but for those of packing; Errc::bad_shape when they are packed otherwise.
  [[nodiscard]] static Result<RuntimePackedLinear> view(const PackedMatrix& weights, const Scheme& scheme,
                                                        std::span<const float> bias = {},
                                                        InputRotation rotation = InputRotation::none) noexcept {
    if (const Status known = check_packed_scheme(scheme); !known) return known.error();
    Result<linear::PackedStorage> storage = linear::view_storage(weights, scheme.weight, bias);
    if (!storage) return storage.error();
    RuntimePackedLinear result;
    result.storage_ = *std::move(storage);
    result.storage_.input.rotation = rotation;
    result.scheme_ = scheme;
    return result;
  }

  [[nodiscard]] LinearInfo info() const noexcept { return linear::packed_info(storage_, scheme_); }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    const linear::ProductKernels kernels = linear::runtime_kernels(scheme_, context.isa());
    return linear::multiply_packed(kernels, storage_, scheme_, x, out, context);
  }

  /// See linear::forward_all().
  template <Executor E>
  [[nodiscard]] static Status forward_group(std::span<const LinearCall<RuntimePackedLinear>> calls, LinearInput& x,
                                            ExecutionContext<E>& context) noexcept {
    return linear::forward_packed_group(calls, x, context);
  }
  template <class = void>  // as runtime_kernels()
  [[nodiscard]] linear::PackedCall packed_call(const LinearOutput& out, Isa isa) const noexcept {
    return {.kernel = linear::runtime_kernels(scheme_, isa).integer, .storage = &storage_, .out = out};
  }

  /// Shrinks the ranges of activations, as ActivationSite learned it. Errc::bad_argument unless in (0, 1].
  [[nodiscard]] Status clip_activations(float multiplier) noexcept {
    if (const Status valid = check_clip(multiplier); !valid) return valid;
    storage_.input.clip = multiplier;
    return {};
  }

  /// See PackedLinear::fix_activations().
  [[nodiscard]] Status fix_activations(const StaticGrid& grid) noexcept {
    return linear::fix_activations(storage_.input, scheme_, grid);
  }

  /// The weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    linear::unpack_row(storage_.matrix, output, weights);
  }

 private:
  linear::PackedStorage storage_;
  Scheme scheme_ = {};
};

static_assert(LinearOperator<RuntimePackedLinear>);

}  // namespace CBQ_ABI
}  // namespace cbq
