// SPDX-License-Identifier: Apache-2.0

// LoRA-Rounding on a single matrix, without model or blocks: 3-bit codes are chosen for what the layer computes on
// samples of its inputs, which are correlated, by training offsets of rank 16 and the scales.

#include <cbq/reconstruct/adam.hpp>
#include <cbq/reconstruct/trainable_linear.hpp>
#include <cbq/rounding/lora.hpp>
#include <cstddef>
#include <cstdio>
#include <random>
#include <vector>

constexpr std::size_t outputs = 64, inputs = 128, samples = 512, steps = 300;

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> weights(outputs * inputs), x(samples * inputs), mixing(8 * inputs);
  for (float& w : weights) w = 0.05f * normal(random);
  for (float& m : mixing) m = normal(random);
  for (std::size_t t = 0; t < samples; ++t) {  // noise, and eight factors that all inputs share
    float factors[8];
    for (float& f : factors) f = normal(random);
    for (std::size_t k = 0; k < inputs; ++k) {
      x[t * inputs + k] = 0.3f * normal(random);
      for (std::size_t f = 0; f < 8; ++f) x[t * inputs + k] += factors[f] * mixing[f * inputs + k];
    }
  }
  const cbq::SerialExecutor executor;
  cbq::ExecutionContext<> context(executor);
  const auto matrix = cbq::matrix_view<const float>(weights.data(), outputs, inputs);
  const auto tokens = cbq::matrix_view<const float>(x.data(), samples, inputs);
  std::vector<float> wanted(samples * outputs), y(wanted.size()), dy(wanted.size()), dx(x.size());
  const auto result = cbq::matrix_view(y.data(), samples, outputs);
  cbq::DenseGradient<float>(matrix).forward(tokens, cbq::matrix_view(wanted.data(), samples, outputs), context).value();

  const cbq::Grid grid = {.bits = 3, .granularity = cbq::Granularity::per_channel, .zero = cbq::Zero::affine};
  auto layer = cbq::TrainableLinear<cbq::LoraRounding<float>>::create(matrix, {}, grid, {.rank = 16}, 1).value();
  const auto lost = [&] {  // share of the signal, and its gradient
    layer.forward(tokens, result, context).value();
    double error = 0, signal = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
      dy[i] = (y[i] - wanted[i]) / samples;
      error += static_cast<double>(y[i] - wanted[i]) * static_cast<double>(y[i] - wanted[i]);
      signal += static_cast<double>(wanted[i]) * static_cast<double>(wanted[i]);
    }
    return error / signal;
  };
  layer.refresh_hard(context).value();
  const double before = lost();  // the codes are the nearest ones still

  auto adam = cbq::Adam<float>::create(layer.rounding().parameters()).value();
  for (std::size_t step = 0; step < steps; ++step) {
    // The last steps see hard codes and train the scales alone.
    if (step == steps * 9 / 10) layer.rounding().set_phase(cbq::RoundingPhase::hardened);
    layer.refresh(context).value();
    (void)lost();
    const auto gradient = cbq::matrix_view<const float>(dy.data(), samples, outputs);
    const auto unused = cbq::matrix_view(dx.data(), samples, inputs);
    layer.backward(gradient, tokens, unused, cbq::Accumulate::overwrite, context).value();
    layer.update_gradients({static_cast<double>(step) / steps}, context).value();
    adam.step(layer.rounding().parameters(), cbq::decay_factor(cbq::Decay::linear, step, steps)).value();
    layer.rounding().project();
  }
  layer.harden(context).value();
  const double after = lost();
  const cbq::QuantizedMatrix codes = layer.take_codes();  // ready to be packed
  std::printf("%zu weights, %zu trained parameters\n", weights.size(), layer.rounding().trained_parameters());
  std::printf("share of the signal lost: %.4f with the nearest codes, %.4f with the trained ones\n", before, after);
  return after < 0.9 * before && codes.outputs() == outputs ? 0 : 1;
}
