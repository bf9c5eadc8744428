// SPDX-License-Identifier: Apache-2.0

#include "rotated_weights.hpp"

#include <cstdint>
#include <random>

namespace bench {

cbq::Result<cbq::QuantizedMatrix> random_matrix(std::size_t outputs, std::size_t inputs, const cbq::Grid& grid) {
  auto matrix = cbq::QuantizedMatrix::allocate(outputs, inputs, grid);
  if (!matrix) return matrix;
  std::minstd_rand generator(1);
  const auto below = [&generator](unsigned limit) { return static_cast<unsigned>(generator() >> 8) % limit; };
  const auto levels = static_cast<unsigned>(cbq::max_code(grid)) + 1;
  const auto for_each = [](const auto& view, auto&& write) {
    for (std::size_t i = 0; i < view.rows * view.columns; ++i) write(view.data[i]);
  };
  for_each(matrix->codes(), [&](std::uint8_t& code) { code = static_cast<std::uint8_t>(below(levels)); });
  for_each(matrix->zeros(), [&](std::uint8_t& zero) { zero = static_cast<std::uint8_t>(below(levels)); });
  for_each(matrix->scales(), [&](float& scale) { scale = static_cast<float>(1024 + below(1024)) * 0x1p-17f; });
  return matrix;
}

}  // namespace bench
