// SPDX-License-Identifier: Apache-2.0
#pragma once

// One linear layer whose inputs are correlated, and the shortest loop that trains a rounding on it. The relative error
// is |X (W^ - W)^T|^2 / |X W^T|^2.

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <vector>

#include <cbq/reconstruct/adam.hpp>
#include <cbq/rounding/trainable.hpp>
#include "oracle/quant.hpp"

namespace support {

class Layer {
 public:
  static constexpr std::size_t outputs = 24, inputs = 96, samples = 400;

  Layer() : weights(oracle::random_weights(outputs * inputs, 31, 0.05)) {
    const std::vector<float> noise = oracle::random_weights(samples * inputs, 32, 1.0);
    const std::vector<float> factors = oracle::random_weights(samples * 4, 33, 1.0);
    const std::vector<float> mixing = oracle::random_weights(4 * inputs, 34, 1.0);
    activations = noise;
    for (std::size_t t = 0; t < samples; ++t) {
      for (std::size_t k = 0; k < inputs; ++k) {
        for (std::size_t f = 0; f < 4; ++f) activations[t * inputs + k] += factors[t * 4 + f] * mixing[f * inputs + k];
      }
    }
    hessian.assign(inputs * inputs, 0.0);
    for (std::size_t t = 0; t < samples; ++t) {
      for (std::size_t i = 0; i < inputs; ++i) {
        for (std::size_t j = 0; j < inputs; ++j) {
          hessian[i * inputs + j] += static_cast<double>(activations[t * inputs + i]) *
                                     static_cast<double>(activations[t * inputs + j]) / samples;
        }
      }
    }
    scale = 1;
    const std::vector<float> nothing(weights.size(), 0.0f);
    scale = error(nothing);
  }

  [[nodiscard]] cbq::MatrixView<const float> view() const { return {weights.data(), outputs, inputs, inputs}; }
  [[nodiscard]] cbq::MatrixView<const float> inputs_view() const {
    return {activations.data(), samples, inputs, inputs};
  }

  // The relative error of W^ and, where wanted, its gradient.
  double error(const std::vector<float>& quantized, std::vector<float>* gradient = nullptr) const {
    double sum = 0;
    std::vector<double> product(inputs);
    for (std::size_t n = 0; n < outputs; ++n) {
      product.assign(inputs, 0.0);
      for (std::size_t j = 0; j < inputs; ++j) {
        const double d = static_cast<double>(quantized[n * inputs + j]) - static_cast<double>(weights[n * inputs + j]);
        for (std::size_t k = 0; k < inputs; ++k) product[k] += d * hessian[j * inputs + k];
      }
      for (std::size_t k = 0; k < inputs; ++k) {
        const double d = static_cast<double>(quantized[n * inputs + k]) - static_cast<double>(weights[n * inputs + k]);
        sum += d * product[k];
        if (gradient != nullptr) (*gradient)[n * inputs + k] = static_cast<float>(2 * product[k] / scale);
      }
    }
    return sum / scale;
  }

  // The error with hard weights after `steps` steps of Adam, the last tenth of them hardened.
  template <cbq::TrainableRounding R>
  double train(R& rounding, std::size_t steps) const {
    const auto list = rounding.parameters();
    auto adam = cbq::Adam<float>::create({list.begin(), list.end()});
    REQUIRE(adam);
    std::vector<float> quantized(weights.size()), gradient(weights.size());
    for (std::size_t t = 0; t < steps; ++t) {
      if (t == steps - steps / 10) rounding.set_phase(cbq::RoundingPhase::hardened);
      REQUIRE(rounding.soft_weights(cbq::matrix_view(quantized.data(), outputs, inputs), cbq::SerialExecutor{}));
      (void)error(quantized, &gradient);
      const cbq::Penalty penalty{static_cast<double>(t) / static_cast<double>(steps)};
      REQUIRE(rounding.backward({gradient.data(), outputs, inputs, inputs}, penalty, cbq::SerialExecutor{}));
      const auto views = rounding.parameters();
      REQUIRE(adam->step({views.begin(), views.end()}, cbq::decay_factor(cbq::Decay::linear, t, steps)));
      rounding.project();
    }
    REQUIRE(rounding.hard_weights(cbq::matrix_view(quantized.data(), outputs, inputs), cbq::SerialExecutor{}));
    return error(quantized);
  }

  std::vector<float> weights, activations;
  std::vector<double> hessian;
  double scale = 1;
};

}  // namespace support
