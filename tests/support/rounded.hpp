// SPDX-License-Identifier: Apache-2.0
#pragma once

// Matrices rounded to nearest, for tests of what runs on them.

#include <cstddef>
#include <vector>

#include <cbq/rounding/nearest.hpp>

namespace support {

/// Weights [outputs x inputs] on the grid.
inline cbq::QuantizedMatrix rounded(const std::vector<float>& weights, std::size_t inputs, const cbq::Grid& grid) {
  const auto view = cbq::matrix_view<const float>(weights.data(), weights.size() / inputs, inputs);
  auto matrix = cbq::round_nearest(view, grid, cbq::MinMaxRange{}, cbq::SerialExecutor{});
  return matrix ? *std::move(matrix) : cbq::QuantizedMatrix{};
}

}  // namespace support
