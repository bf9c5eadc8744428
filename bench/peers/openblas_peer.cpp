// SPDX-License-Identifier: Apache-2.0

// OpenBLAS's float product.

#include <cblas.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "float_matrix.hpp"

namespace peers {
namespace {

void multiply(const Product& product, const float* w, std::size_t outputs, std::size_t inputs) {
  const auto m = static_cast<blasint>(product.m);
  const auto n = static_cast<blasint>(outputs);
  const auto k = static_cast<blasint>(inputs);
#if defined(_OPENMP)
  omp_set_num_threads(static_cast<int>(product.threads));  // what a build with OpenMP listens to
#endif
  openblas_set_num_threads(static_cast<int>(product.threads));
  if (m == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, n, k, 1.0f, w, k, product.x, 1, 0.0f, product.y, 1);
  } else {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, k, 1.0f, product.x, k, w, k, 0.0f, product.y, n);
  }
}

class OpenBlas final : public Peer {
 public:
  std::string name() const override {
    const std::string config = openblas_get_config();  // "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
    return config.substr(0, config.find(' ', config.find(' ') + 1)) + " (" + openblas_get_corename() + ")";
  }
  std::vector<Format> formats() const override { return {{"float", "float", Activations::float32}}; }
  std::unique_ptr<Matrix> prepare(std::size_t, const Weights& weights) override {
    return std::make_unique<FloatMatrix>(weights, &multiply);
  }
};

}  // namespace

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<OpenBlas>();
}

}  // namespace peers
