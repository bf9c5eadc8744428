// SPDX-License-Identifier: Apache-2.0

// Eigen's float product, compiled with CBQ_BENCH_EIGEN_OPTIONS.

#include "../eigen_product.hpp"
#include "float_matrix.hpp"

namespace peers {
namespace {

void multiply(const Product& product, const float* w, std::size_t n, std::size_t k) {
  bench::set_eigen_threads(static_cast<int>(product.threads));
  bench::multiply_by_eigen({.x = product.x,
                            .w = w,
                            .y = product.y,
                            .m = static_cast<std::ptrdiff_t>(product.m),
                            .n = static_cast<std::ptrdiff_t>(n),
                            .k = static_cast<std::ptrdiff_t>(k)});
}

class EigenPeer final : public Peer {
 public:
  std::string name() const override { return std::string("Eigen (") + bench::eigen_simd() + ")"; }
  std::vector<Format> formats() const override { return {{"float", "float", Activations::float32}}; }
  std::unique_ptr<Matrix> prepare(std::size_t, const Weights& weights) override {
    return std::make_unique<FloatMatrix>(weights, &multiply);
  }
};

}  // namespace

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<EigenPeer>();
}

}  // namespace peers
