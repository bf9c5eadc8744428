// SPDX-License-Identifier: Apache-2.0
#pragma once

// Plain references for packed matmul: random quantized matrices and sums written down from the definition.

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <cbq/scheme.hpp>

namespace oracle {

/// A weight matrix as one number per code, scale and zero point.
struct Weights {
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  std::size_t group = 0;   // inputs per scale
  std::size_t groups = 0;  // per output
  bool affine = false;
  int bits = 0;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;

  [[nodiscard]] int zero(std::size_t output, std::size_t input) const {
    return affine ? zeros[output * groups + input / group] : 1 << (bits - 1);
  }
  [[nodiscard]] int level(std::size_t output, std::size_t input) const {
    return codes[output * inputs + input] - zero(output, input);
  }
  [[nodiscard]] float scale(std::size_t output, std::size_t input) const {
    return scales[output * groups + input / group];
  }

  [[nodiscard]] cbq::QuantizedMatrixView view() const {
    cbq::QuantizedMatrixView matrix{
        cbq::matrix_view(codes.data(), outputs, inputs), cbq::matrix_view(scales.data(), outputs, groups), {}};
    if (affine) matrix.zeros = cbq::matrix_view(zeros.data(), outputs, groups);
    return matrix;
  }
};

enum class Codes { random, lowest, highest };

/// Weights with codes of the given kind; scales are powers of two times 1..7, exact in half, and have random signs
/// where the grid is symmetric.
inline Weights weights(const cbq::Grid& grid, std::size_t outputs, std::size_t inputs, Codes kind,
                       std::mt19937& random) {
  Weights w;
  w.outputs = outputs;
  w.inputs = inputs;
  w.group = grid.group == 0 ? (inputs == 0 ? 1 : inputs) : static_cast<std::size_t>(grid.group);
  w.groups = (inputs + w.group - 1) / w.group;
  w.affine = grid.zero == cbq::Zero::affine;
  w.bits = grid.bits;
  const unsigned largest = (1u << grid.bits) - 1u;
  const auto any_code = [&] {
    return static_cast<std::uint8_t>(kind == Codes::random    ? random() % (largest + 1)
                                     : kind == Codes::highest ? largest
                                                              : 0u);
  };
  for (std::size_t i = 0; i < outputs * inputs; ++i) w.codes.push_back(any_code());
  for (std::size_t i = 0; i < outputs * w.groups; ++i) {
    const float sign = !w.affine && random() % 2 == 1 ? -1.0f : 1.0f;
    w.scales.push_back(sign * static_cast<float>(1 + random() % 7) * 0x1p-6f);
    if (w.affine)
      w.zeros.push_back(
          static_cast<std::uint8_t>(kind == Codes::random ? random() % (largest + 1) : largest - any_code()));
  }
  return w;
}

/// Activation codes of one row read back from cbq's panels; see the layout in <cbq/gemm/activations.hpp>.
template <class View>
int activation_code(const View& x, std::size_t token, std::size_t input, std::size_t group,
                    std::size_t blocks_per_group) {
  const std::size_t panel_rows = x.shape.rows;
  const std::size_t slice = x.shape.inputs;
  const std::size_t first = token / panel_rows * panel_rows;
  const std::size_t rows = x.tokens - first < panel_rows ? x.tokens - first : panel_rows;
  // Slices of one row: each group has its own.
  const std::size_t group_slices = (blocks_per_group * 32 + slice - 1) / slice;
  const std::size_t last_inputs = (x.layout.blocks - (x.layout.groups - 1) * blocks_per_group) * 32;
  const std::size_t slices = (x.layout.groups - 1) * group_slices + (last_inputs + slice - 1) / slice;
  const std::size_t index = input / group * group_slices + input % group / slice;
  return x.codes[first * slices * slice + (index * rows + token - first) * slice + input % group % slice];
}

/// Activation scale of one token and group in units of the token's, read back from cbq's panels; 1 where there is none.
template <class View>
float group_scale(const View& x, std::size_t token, std::size_t group) {
  if (x.group_scales == nullptr) return 1.0f;
  const std::size_t first = token / x.shape.rows * x.shape.rows;
  const std::size_t rows = x.tokens - first < x.shape.rows ? x.tokens - first : x.shape.rows;
  return x.group_scales[first * x.layout.groups + group * rows + token - first];
}

}  // namespace oracle
