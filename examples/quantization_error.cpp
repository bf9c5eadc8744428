// SPDX-License-Identifier: Apache-2.0

// Prints what quantization costs, as the table of docs/quantizers.md: squared errors relative to the squared weights of
// nearest rounding with several range finders, one of them the program's own.

#include <cbq/quant.hpp>
#include <cbq/rounding.hpp>
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <utility>
#include <vector>

namespace {

constexpr std::size_t outputs = 64;
constexpr std::size_t inputs = 1024;

/// The best of many positive scales: a range finder is any type with this function.
struct PositiveScale {
  [[nodiscard]] static cbq::CodeGrid find(std::span<const float> x, const cbq::Grid& grid,
                                          cbq::ScalePrecision precision) noexcept {
    cbq::CodeGrid best = cbq::MinMaxRange{}.find(x, grid, precision);
    if (best.scale == 0) return best;
    cbq::CodeGrid at = best;
    double least = cbq::measure(x, best).squared_error;
    for (int step = 30; step <= 220; ++step) {
      at.scale = cbq::round_scale(best.scale * static_cast<float>(step) / 200.0f);
      const double error = cbq::measure(x, at).squared_error;
      if (error >= least) continue;
      least = error;
      best = at;
    }
    return best;
  }
};
static_assert(cbq::RangeFinder<PositiveScale>);

/// Uniform in (0, 1), the same on every platform.
double uniform(std::mt19937& random) {
  return (static_cast<double>(random()) + 0.5) / 4294967296.0;
}

std::vector<float> gaussian_weights() {
  std::mt19937 random(1);
  std::vector<float> weights(outputs * inputs);
  for (float& w : weights) {
    const double radius = std::sqrt(-2 * std::log(uniform(random)));
    w = static_cast<float>(radius * std::cos(6.283185307179586 * uniform(random)));
  }
  return weights;
}

std::vector<float> laplace_weights() {
  std::mt19937 random(2);
  std::vector<float> weights(outputs * inputs);
  for (float& w : weights) {
    const double magnitude = -std::log(uniform(random));
    w = static_cast<float>(uniform(random) < 0.5 ? -magnitude : magnitude);
  }
  return weights;
}

template <cbq::RangeFinder Finder>
double error_of(const std::vector<float>& weights, const cbq::Grid& grid, const Finder& finder) {
  const auto matrix = cbq::matrix_view(weights.data(), outputs, inputs);
  const cbq::QuantizedMatrix quantized = cbq::round_nearest(matrix, grid, finder).value();
  return cbq::quantization_error(matrix, quantized.view(), grid).value();
}

void print_line(const char* name, const std::vector<float>& weights, cbq::Grid grid) {
  const double covering = error_of(weights, grid, cbq::MinMaxRange{});
  const double positive = error_of(weights, grid, PositiveScale{});
  const double signed_scale = error_of(weights, grid, cbq::MseRange{});
  grid.zero = cbq::Zero::affine;
  const double affine = error_of(weights, grid, cbq::MseRange{});
  std::printf("| %s | %d | %4d | %.3e | %.3f | %.3f | %.3f |\n", name, grid.bits, grid.group, covering,
              positive / covering, signed_scale / covering, affine / covering);
}

}  // namespace

int main() {
  std::printf("| weights | bits | group | min-max | positive scale | MseRange | MseRange, affine |\n");
  std::printf("|---|---|---|---|---|---|---|\n");
  for (const auto& [name, weights] : {std::pair{"Gauss", gaussian_weights()}, {"Laplace", laplace_weights()}}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const int group : {32, 128, 1024}) {
        print_line(name, weights, {.bits = bits, .granularity = cbq::Granularity::per_group, .group = group});
      }
    }
  }
}
