// SPDX-License-Identifier: Apache-2.0
#pragma once

// Eigen's float product behind plain pointers, so that the one file that contains it may be compiled for another
// instruction set than the rest of the program.

#include <cstddef>

namespace bench {

/// y[m x n] = x[m x k] w[n x k]^T, all row-major.
struct FloatProduct {
  const float* x = nullptr;
  const float* w = nullptr;
  float* y = nullptr;
  std::ptrdiff_t m = 0;
  std::ptrdiff_t n = 0;
  std::ptrdiff_t k = 0;
};

void multiply_by_eigen(const FloatProduct& product);

/// Threads of the products that follow.
void set_eigen_threads(int count);

/// The instruction sets that Eigen was compiled for.
[[nodiscard]] const char* eigen_simd();

}  // namespace bench
