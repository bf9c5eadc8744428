// SPDX-License-Identifier: Apache-2.0

// A file that calls matmuls of every kind and must hold no kernel: a test looks for them in its object file. That the
// program links says that the other file has them all.

#include <cbq/gemm.hpp>
#include <cbq/gemm/extern_kernels.hpp>
#include <cbq/gemm/float_matmul.hpp>

#include <cstdio>
#include <vector>

namespace {

bool are_inputs(const std::vector<float>& y) {
  for (const float value : y) {
    if (value < 39.99f || value > 40.01f) return false;
  }
  return true;
}

/// y of ones through `outputs` x `inputs` codes of level 1: every result is the number of inputs.
template <cbq::Scheme S>
bool multiplies() {
  constexpr std::size_t tokens = 2;
  constexpr std::size_t outputs = 20;
  constexpr std::size_t inputs = 40;
  constexpr bool affine = S.weight.zero == cbq::Zero::affine;
  constexpr int zero = affine ? 0 : 1 << (S.weight.bits - 1);
  const std::vector<std::uint8_t> codes(outputs * inputs, static_cast<std::uint8_t>(zero + 1));
  const std::vector<std::uint8_t> zeros(outputs, 0);
  const std::vector<float> scales(outputs, 1.0f);
  cbq::QuantizedMatrixView matrix{.codes = cbq::matrix_view<const std::uint8_t>(codes.data(), outputs, inputs),
                                  .scales = cbq::matrix_view<const float>(scales.data(), outputs, 1),
                                  .zeros = {}};
  if (affine) matrix.zeros = cbq::matrix_view<const std::uint8_t>(zeros.data(), outputs, 1);
  const auto weights = cbq::PackedWeights<S>::from_codes(matrix);
  if (!weights) return false;
  const std::vector<float> x(tokens * inputs, 1.0f);
  std::vector<float> y(tokens * outputs);
  const auto input = cbq::matrix_view<const float>(x.data(), tokens, inputs);
  const auto result = cbq::matrix_view(y.data(), tokens, outputs);
  if constexpr (S.activation.bits == 16) {
    const std::vector<cbq::bfloat16> ones(8 * inputs, cbq::to_bfloat16(1.0f));  // enough for products of bfloat16
    std::vector<float> z(8 * outputs);
    const auto rows = cbq::matrix_view<const cbq::bfloat16>(ones.data(), 8, inputs);
    if (!cbq::matmul(rows, weights->view(), cbq::matrix_view(z.data(), 8, outputs)) || !are_inputs(z)) return false;
    if (!cbq::matmul(input, weights->view(), result)) return false;
  } else {
    cbq::QuantizedActivations<S> activations;
    if (!activations.quantize(input) || !cbq::matmul(activations.view(), weights->view(), result)) return false;
  }
  return are_inputs(y);
}

template <int Bits>
bool multiplies_all() {
  using cbq::make_scheme;
  return multiplies<make_scheme(Bits, 8, 0, cbq::Zero::symmetric)>() &&
         multiplies<make_scheme(Bits, 8, 0, cbq::Zero::affine)>() &&
         multiplies<make_scheme(Bits, 16, 0, cbq::Zero::symmetric)>() &&
         multiplies<make_scheme(Bits, 16, 0, cbq::Zero::affine)>();
}

bool multiplies_floats() {
  const float ones[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  float c[9];
  const auto a = cbq::matrix_view(ones, 3, 4);
  return cbq::float_matmul(a, cbq::transposed(a), cbq::matrix_view(&c[0], 3, 3)).has_value() && c[8] == 4.0f;
}

}  // namespace

int main() {
  const bool fine = multiplies_all<2>() && multiplies_all<3>() && multiplies_all<4>() && multiplies_all<8>();
  if (!fine || !multiplies_floats()) std::puts("a product is wrong");
  return fine && multiplies_floats() ? 0 : 1;
}
