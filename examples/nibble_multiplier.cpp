// SPDX-License-Identifier: Apache-2.0

// The 4-bit multiplier alone: two products in one 16-bit multiplication, their sums, and a small matrix product with
// zero points, against the definition.

#include <cbq/gemm/nibble_matmul.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <vector>

int main() {
  // One lane: weights 13 and 6 times activations 11, 4 and 15.
  const std::uint16_t lane = cbq::nibble_lane(13, 6);
  cbq::LaneSums sums;
  for (const unsigned activation : {11u, 4u, 15u}) {
    cbq::multiply_add(sums, lane, activation);
    std::printf("0x%04x * %2u = 0x%04x\n", unsigned{lane}, activation, lane * activation);
  }
  std::printf("13 * (11 + 4 + 15) = %d, 6 * (11 + 4 + 15) = %d\n", cbq::upper_sum(sums), cbq::lower_sum(sums));

  // 3 tokens x 300 inputs times 70 outputs, as codes with scales and zero points.
  constexpr std::size_t tokens = 3, outputs = 70, inputs = 300;
  std::vector<std::uint8_t> w(outputs * inputs), x(tokens * inputs), w_zeros(outputs, 7);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<std::uint8_t>(i * 11 % 16);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint8_t>(i * 5 % 13);
  const std::vector<float> w_scales(outputs, 0.5f), x_scales(tokens, 0.25f);
  const std::vector<std::uint8_t> x_zeros{6, 0, 15};

  const cbq::QuantizedMatrixView matrix{cbq::matrix_view<const std::uint8_t>(w.data(), outputs, inputs),
                                        cbq::matrix_view<const float>(w_scales.data(), outputs, 1),
                                        cbq::matrix_view<const std::uint8_t>(w_zeros.data(), outputs, 1)};
  const auto size = cbq::nibble_weights_size(outputs, inputs);
  if (!size) return 1;
  std::vector<float> memory(*size / sizeof(float));  // the host's; on a 4-byte boundary
  const auto packed = cbq::pack_nibbles(matrix, std::as_writable_bytes(std::span(memory)));
  if (!packed) return 1;
  std::vector<float> y(tokens * outputs);
  const cbq::NibbleTokens activations{cbq::matrix_view<const std::uint8_t>(x.data(), tokens, inputs), x_scales,
                                      x_zeros};
  if (!cbq::nibble_matmul(activations, *packed, cbq::matrix_view(y.data(), tokens, outputs))) return 1;

  int sum = 0;
  for (std::size_t k = 0; k < inputs; ++k) sum += (w[69 * inputs + k] - 7) * (x[2 * inputs + k] - 15);
  const float expected = static_cast<float>(sum) * (0.25f * 0.5f);
  std::printf("y[2][69] = %g, by the definition %g; %zu bytes for %zu weights\n", static_cast<double>(y.back()),
              static_cast<double>(expected), *size, w.size());
  return y.back() == expected ? 0 : 1;
}
