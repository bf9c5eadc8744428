// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cbq/gemm.hpp>

namespace {

// y = x W^T of small integers that both grids hold exactly, so that y must equal the plain sums to the last bit.
template <cbq::Scheme S>
bool matmul_runs_right(cbq::Isa cap) {
  constexpr std::size_t tokens = 3, outputs = 20, inputs = 40;  // a panel with a rest, a group with a rest
  constexpr std::size_t groups = 2;
  std::uint8_t codes[outputs * inputs];
  float scales[outputs * groups];
  std::uint8_t zeros[outputs * groups];
  float x[tokens * inputs];
  for (std::size_t i = 0; i < outputs * inputs; ++i) codes[i] = static_cast<std::uint8_t>(i * 7 % 16);
  for (std::size_t i = 0; i < outputs * groups; ++i) scales[i] = i % 3 == 0 ? 0.5f : 1.0f;
  for (std::size_t i = 0; i < outputs * groups; ++i) zeros[i] = static_cast<std::uint8_t>(i % 16);
  for (std::size_t i = 0; i < tokens * inputs; ++i) x[i] = static_cast<float>(i * 5 % 255) - 127.0f;
  for (std::size_t t = 0; t < tokens; ++t) x[t * inputs] = 127.0f;  // the largest magnitude makes the row's scale 1

  cbq::QuantizedMatrixView matrix;
  matrix.codes = cbq::matrix_view<const std::uint8_t>(codes, outputs, inputs);
  matrix.scales = cbq::matrix_view<const float>(scales, outputs, groups);
  constexpr bool affine = S.weight.zero == cbq::Zero::affine;
  if (affine) matrix.zeros = cbq::matrix_view<const std::uint8_t>(zeros, outputs, groups);

  const auto weights = cbq::PackedWeights<S>::from_codes(matrix);
  const auto bytes = cbq::activations_size<S>(tokens, inputs);
  if (!weights || !bytes) return false;
  auto memory = cbq::AlignedBuffer<std::byte>::allocate(*bytes);
  if (!memory) return false;
  const auto activations = cbq::quantize_activations<S>(cbq::matrix_view<const float>(x, tokens, inputs),
                                                        {memory->data(), memory->size()}, cbq::SerialExecutor{}, cap);
  if (!activations) return false;
  float y[tokens * outputs];
  const auto status = cbq::matmul<S>(*activations, weights->view(), cbq::matrix_view(&y[0], tokens, outputs),
                                     cbq::NoEpilogue{}, cbq::SerialExecutor{}, cap);
  if (!status) return false;

  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < outputs; ++n) {
      float expected = 0;
      for (std::size_t k = 0; k < inputs; ++k) {
        const std::size_t group = n * groups + k / 32;
        const int zero = affine ? zeros[group] : 8;
        expected += x[t * inputs + k] * scales[group] * static_cast<float>(codes[n * inputs + k] - zero);
      }
      if (y[t * outputs + n] != expected) return false;
    }
  }
  return true;
}

inline bool matmul_runs_right(cbq::Isa cap) {
  return matmul_runs_right<cbq::schemes::w4a8_g32>(cap) &&
         matmul_runs_right<cbq::make_scheme(4, 8, 32, cbq::Zero::affine)>(cap);
}

}  // namespace
