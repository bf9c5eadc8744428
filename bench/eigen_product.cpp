// SPDX-License-Identifier: Apache-2.0

// Includes neither cbq nor Google Benchmark: see CBQ_BENCH_EIGEN_OPTIONS in CMakeLists.txt.

#include "eigen_product.hpp"

#include <Eigen/Core>

namespace bench {

void multiply_by_eigen(const FloatProduct& product) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const Eigen::Map<const Matrix> x(product.x, product.m, product.k);
  const Eigen::Map<const Matrix> w(product.w, product.n, product.k);
  Eigen::Map<Matrix> y(product.y, product.m, product.n);
  if (product.m == 1) {
    y.row(0).transpose().noalias() = w * x.row(0).transpose();  // the matrix-vector product, much the faster one
  } else {
    y.noalias() = x * w.transpose();
  }
}

void set_eigen_threads(int count) {
  Eigen::setNbThreads(count);
}

const char* eigen_simd() {
  return Eigen::SimdInstructionSetsInUse();
}

}  // namespace bench
