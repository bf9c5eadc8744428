// SPDX-License-Identifier: Apache-2.0
#pragma once

// The activation functions of plain MLPs with their derivatives, for rows of floats and doubles; floats are activated
// by the kernel that models run.
//
//   ReLU   h = max(f, 0)        df = dh 1[f > 0]
//   GELU   h = f (1 + t) / 2    df = dh (1 + t + f t') / 2
//          t = tanh(c (f + a f^3)), t' = c (1 + 3 a f^2) (1 - t^2), c = sqrt(2 / pi), a = 0.044715
//          or t = erf(f / sqrt(2)), t' = c exp(-f^2 / 2)

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <cstddef>
#include <type_traits>

#include <cbq/nn/mlp.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace activation_gradient {

/// out = activation(x) for one row; out may be x.
template <class T>
void forward(Activation activation, const T* x, T* out, std::size_t size) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    activate_row(activation, {x, size}, out);
  } else {
    for (std::size_t i = 0; i < size; ++i) {
      const T f = x[i];
      const T gate = activation == Activation::gelu_erf
                         ? std::erf(f * T(0.7071067811865476))
                         : std::tanh(T(0.7978845608028654) * (f + T(0.044715) * f * f * f));
      out[i] = activation == Activation::relu ? (f > 0 ? f : T(0)) : f / 2 * (1 + gate);
    }
  }
}

/// From dh (in `gradient`) to df in place, for the f of the forward pass; of ReLU, f or h.
template <class T>
void backward(Activation activation, const T* f, T* gradient, std::size_t size) noexcept {
  using Batch = xsimd::batch<T>;
  const auto step = [activation](const Batch& x, const Batch& dh) -> Batch {
    if (activation == Activation::relu) return xsimd::select(x > T(0), dh, Batch(T(0)));
    const Batch c(T(0.7978845608028654)), one(T(1));
    const bool exact = activation == Activation::gelu_erf;
    const Batch t = exact ? xsimd::erf(x * T(0.7071067811865476)) : xsimd::tanh(c * (x + T(0.044715) * x * x * x));
    const Batch rise = exact ? c * xsimd::exp(T(-0.5) * x * x) : c * (one + T(0.134145) * x * x) * (one - t * t);
    return dh * T(0.5) * (one + t + x * rise);
  };
  std::size_t i = 0;
  for (; i + Batch::size <= size; i += Batch::size) {
    step(Batch::load_unaligned(f + i), Batch::load_unaligned(gradient + i)).store_unaligned(gradient + i);
  }
  for (; i < size; ++i) gradient[i] = step(Batch(f[i]), Batch(gradient[i])).get(0);
}

}  // namespace activation_gradient
}  // namespace CBQ_ABI
}  // namespace cbq
