// SPDX-License-Identifier: Apache-2.0
#pragma once

// Cold copies of the float matrix itself, for libraries whose product takes it as it is.

#include <cstring>

#include "peer.hpp"

namespace peers {

/// y = x W^T with W[n x k] row-major.
using FloatProduct = void (*)(const Product& product, const float* w, std::size_t n, std::size_t k);

class FloatMatrix final : public Matrix {
 public:
  FloatMatrix(const Weights& weights, FloatProduct multiply)
      : weights_(weights), multiply_(multiply), copies_(copy_count(bytes())) {
    memory_.resize(copies_ * size());
    for (std::size_t i = 0; i < copies_; ++i) {
      for (std::size_t n = 0; n < weights.outputs; ++n) {
        std::memcpy(memory_.data() + i * size() + n * weights.inputs, weights.row(n), weights.inputs * sizeof(float));
      }
    }
  }

  std::size_t bytes() const override { return size() * sizeof(float); }
  void dequantize(std::size_t output, float* row) const override {
    std::memcpy(row, memory_.data() + output * weights_.inputs, weights_.inputs * sizeof(float));
  }
  std::size_t run(const Product& product) override {
    multiply_(product, memory_.data() + turn_++ % copies_ * size(), weights_.outputs, weights_.inputs);
    return 1;
  }

 private:
  std::size_t size() const { return weights_.outputs * weights_.inputs; }

  Weights weights_;
  FloatProduct multiply_;
  std::size_t copies_ = 0, turn_ = 0;
  std::vector<float> memory_;
};

}  // namespace peers
