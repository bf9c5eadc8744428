// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantized matrices that tests write to files and read again.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include <cbq/core/view.hpp>
#include <cbq/scheme.hpp>

namespace support {

/// Codes, scales and zero points on a grid.
struct Matrix {
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  cbq::Grid grid;
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  std::vector<std::uint8_t> zeros;

  [[nodiscard]] cbq::QuantizedMatrixView view() const {
    const std::size_t groups = cbq::group_count(grid, inputs);
    return {cbq::matrix_view(codes.data(), outputs, inputs), cbq::matrix_view(scales.data(), outputs, groups),
            grid.zero == cbq::Zero::affine ? cbq::matrix_view(zeros.data(), outputs, groups)
                                           : cbq::MatrixView<const std::uint8_t>{}};
  }
};

inline cbq::Grid grid_of(int bits, int group, cbq::Zero zero) {
  return {.bits = bits,
          .granularity = group == 0 ? cbq::Granularity::per_channel : cbq::Granularity::per_group,
          .group = group,
          .zero = zero};
}

/// Scales with 8 significant bits, which each of the three types holds; of both signs where the grid is symmetric.
inline Matrix random_matrix(std::size_t outputs, std::size_t inputs, const cbq::Grid& grid) {
  std::mt19937 random(static_cast<std::uint32_t>(outputs * 1000 + inputs));
  Matrix m{outputs, inputs, grid, {}, {}, {}};
  const auto code = [&] { return static_cast<std::uint8_t>(random() & ((1u << grid.bits) - 1)); };
  for (std::size_t i = 0; i < outputs * inputs; ++i) m.codes.push_back(code());
  for (std::size_t i = 0; i < outputs * cbq::group_count(grid, inputs); ++i) {
    m.scales.push_back(std::ldexp(static_cast<float>(128 + random() % 128), -14));
    if (grid.zero == cbq::Zero::symmetric && random() % 2 == 1) m.scales.back() = -m.scales.back();
    if (grid.zero == cbq::Zero::affine) m.zeros.push_back(code());
  }
  return m;
}

template <class T>
bool equal(const cbq::MatrixView<const T>& view, const std::vector<T>& values) {
  bool same = view.rows * view.columns == values.size();
  for (std::size_t i = 0; same && i < values.size(); ++i) {
    same = cbq::row(view, i / view.columns)[i % view.columns] == values[i];
  }
  return same;
}

}  // namespace support
