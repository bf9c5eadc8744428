// SPDX-License-Identifier: Apache-2.0

// Quantizes a weight matrix to 4 bits and multiplies three tokens with it.

#include <cbq/cbq.hpp>
#include <cstdio>
#include <vector>

int main() {
  constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g128;         // 4-bit weights, a scale per 128; 8-bit activations
  const std::vector<float> w(64 * 256, 0.02f), x(3 * 256, 1.0f);  // 64 outputs, 256 inputs; 3 tokens
  std::vector<float> y(3 * 64);
  const auto codes = cbq::round_nearest(cbq::matrix_view(w.data(), 64, 256), scheme.weight).value();
  const auto weights = cbq::PackedWeights<scheme>::from_codes(codes.view()).value();
  cbq::QuantizedActivations<scheme> tokens;
  tokens.quantize(cbq::matrix_view(x.data(), 3, 256)).value();
  cbq::matmul(tokens.view(), weights.view(), cbq::matrix_view(y.data(), 3, 64)).value();
  std::printf("y[0][0] = %.3f, in float %.3f; %zu bytes instead of %zu\n", y[0], 256 * 0.02f, weights.bytes(),
              w.size() * 4);
}
