// SPDX-License-Identifier: Apache-2.0
#pragma once

// Epilogues: what happens to a result while it is still in the L1 cache. A plain value with one call operator, written
// without knowledge of SIMD; a host brings its own. It gets the finished dot product and its place, and returns what is
// stored.

#include <concepts>
#include <cstddef>

#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class E>
concept Epilogue = requires(const E& epilogue, float value, std::size_t row, std::size_t column) {
  { epilogue(value, row, column) } -> std::convertible_to<float>;
};

/// Stores the product as it is.
struct NoEpilogue {
  float operator()(float value, std::size_t, std::size_t) const noexcept { return value; }
};

/// Adds a bias per output; `bias` holds N floats.
struct AddBias {
  const float* bias = nullptr;
  float operator()(float value, std::size_t, std::size_t column) const noexcept { return value + bias[column]; }
};

/// Adds a matrix of the result's shape, which may be the result's own memory only if nothing else writes it.
struct AddResidual {
  MatrixView<const float> residual = {};
  float operator()(float value, std::size_t r, std::size_t column) const noexcept {
    return value + row(residual, r)[column];
  }
};

/// Multiplies by SiLU of a gate of the result's shape: value * gate / (1 + exp(-gate)).
struct SiluMultiply {
  MatrixView<const float> gate = {};
  float operator()(float value, std::size_t r, std::size_t column) const noexcept {
    const float g = row(gate, r)[column];
    return value * (g / (1.0f + __builtin_expf(-g)));
  }
};

static_assert(Epilogue<NoEpilogue> && Epilogue<AddBias> && Epilogue<AddResidual> && Epilogue<SiluMultiply>);

}  // namespace CBQ_ABI
}  // namespace cbq
