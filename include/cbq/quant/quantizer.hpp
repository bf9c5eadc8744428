// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a quantizer offers: three operations on matrices, and for those that can be trained two more. AffineQuantizer is
// the model; code that takes any quantizer constrains it by these concepts.

#include <concepts>
#include <cstdint>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Fits parameters to data, maps elements to codes and back.
template <class Q>
concept Quantizer =
    requires(const Q& quantizer, const MatrixView<const typename Q::Value>& x, const typename Q::Params& params,
             const MatrixView<std::uint8_t>& codes, const MatrixView<typename Q::Value>& out) {
      { quantizer.fit(x) } -> std::same_as<Result<typename Q::Params>>;
      { quantizer.quantize(x, params, codes) } -> std::same_as<Status>;
      { quantizer.dequantize(as_const(codes), params, out) } -> std::same_as<Status>;
    };

/// Adds the value that codes stand for in one step, and the straight-through gradient of it.
template <class Q>
concept DifferentiableQuantizer =
    Quantizer<Q> &&
    requires(const Q& quantizer, const MatrixView<const typename Q::Value>& x, const typename Q::Params& params,
             const MatrixView<typename Q::Value>& out, const MatrixView<const typename Q::Compute>& upstream,
             const typename Q::Gradients& gradients) {
      { quantizer.fake_quantize(x, params, out) } -> std::same_as<Status>;
      { quantizer.backward(x, params, upstream, gradients) } -> std::same_as<Status>;
    };

}  // namespace CBQ_ABI
}  // namespace cbq
