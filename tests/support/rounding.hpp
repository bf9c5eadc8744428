// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the tests of all trainable roundings do. Oracles are plain loops in double.

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/rounding/trainable.hpp>
#include "oracle/quant.hpp"

namespace support {

using cbq::Grid;
using cbq::MatrixView;
using cbq::Zero;

// Last task first, two threads: results must not notice.
struct Backwards {
  [[nodiscard]] static std::size_t concurrency() { return 2; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    std::thread other([&] {
      for (std::size_t i = count; i-- > count / 2;) task(i);
    });
    for (std::size_t i = count / 2; i-- > 0;) task(i);
    other.join();
  }
};

constexpr Grid grid_of(int bits, int group, Zero zero) {
  return {.bits = bits,
          .granularity = group == 0 ? cbq::Granularity::per_channel : cbq::Granularity::per_group,
          .group = group,
          .zero = zero};
}

template <class T>
std::vector<T> random_values(std::size_t size, std::uint32_t seed, double magnitude) {
  std::vector<T> out;
  for (const float v : oracle::random_weights(size, seed, magnitude)) out.push_back(static_cast<T>(v));
  return out;
}

// A rounding of random weights after a few blind steps, so that no parameter is where it started.
template <class R>
struct Trained {
  using T = typename R::Scalar;
  std::size_t rows, columns;
  std::vector<T> weights, upstream;
  R rounding;

  Trained(std::size_t n, std::size_t k, const Grid& grid, const typename R::Options& options, double progress = 0.3)
      : rows(n), columns(k), weights(random_values<T>(n * k, 7, 0.05)), upstream(random_values<T>(n * k, 8, 1.0)) {
    auto made = R::create(view(weights), grid, options, 3);
    REQUIRE(made);
    rounding = std::move(*made);
    for (int turn = 0; turn < 3; ++turn) {
      std::uint32_t seed = 20;
      for (const auto& p : rounding.parameters()) {
        const std::vector<T> moves = random_values<T>(p.size, seed++, 0.15);
        for (std::size_t i = 0; i < p.size; ++i) p.values[i] += moves[i];
      }
      rounding.project();
    }
    REQUIRE(rounding.backward(view(upstream), cbq::Penalty{progress}, cbq::SerialExecutor{}));
  }
  [[nodiscard]] MatrixView<const T> view(const std::vector<T>& x) const { return {x.data(), rows, columns, columns}; }
  [[nodiscard]] MatrixView<T> out(std::vector<T>& x) const { return {x.data(), rows, columns, columns}; }

  template <class E>
  [[nodiscard]] std::vector<T> soft(const E& executor) const {
    std::vector<T> values(weights.size());
    REQUIRE(rounding.soft_weights(out(values), executor));
    return values;
  }
  template <class E>
  [[nodiscard]] std::vector<T> hard(const E& executor) const {
    std::vector<T> values(weights.size());
    REQUIRE(rounding.hard_weights(out(values), executor));
    return values;
  }
  [[nodiscard]] std::vector<T> gradients() {
    std::vector<T> values;
    for (const auto& p : rounding.parameters()) values.insert(values.end(), p.gradients, p.gradients + p.size);
    return values;
  }
  // sum G o W^, what the gradients are of.
  [[nodiscard]] double loss() const {
    const std::vector<T> w = soft(cbq::SerialExecutor{});
    double sum = 0;
    for (std::size_t i = 0; i < w.size(); ++i) sum += static_cast<double>(w[i]) * static_cast<double>(upstream[i]);
    return sum;
  }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Hard weights are the dequantized codes bit for bit, codes and scales are valid, executors change nothing.
template <class R>
void check_rounding(const typename R::Options& options, std::size_t rows) {
  constexpr std::size_t columns = 300;  // two tiles, short last groups and tails of registers
  for (const int bits : {2, 3, 4, 8}) {
    for (const int group : {0, 32, 64, 128}) {
      for (const Zero zero : {Zero::symmetric, Zero::affine}) {
        CAPTURE(bits, group, zero == Zero::affine);
        const Grid grid = grid_of(bits, group, zero);
        Trained<R> trained(rows, columns, grid, options);
        const auto matrix = trained.rounding.harden();
        REQUIRE(matrix);
        CHECK(cbq::check_values(matrix->view(), grid));
        std::vector<typename R::Scalar> decoded(rows * columns);
        REQUIRE(cbq::dequantize(matrix->view(), grid, trained.out(decoded)));
        CHECK(same_bits(trained.hard(cbq::SerialExecutor{}), decoded));
        CHECK(trained.rounding.bytes() == R::bytes_for(rows, columns, grid, options));
        std::size_t parameters = 0;
        for (const auto& p : trained.rounding.parameters()) parameters += p.size;
        CHECK(trained.rounding.trained_parameters() == parameters);
        if (bits != 4) continue;
        CHECK(same_bits(trained.hard(Backwards{}), decoded));
        CHECK(same_bits(trained.soft(Backwards{}), trained.soft(cbq::SerialExecutor{})));
        for (const double progress : {0.1, 0.8}) {
          REQUIRE(trained.rounding.backward(trained.view(trained.upstream), {progress}, cbq::SerialExecutor{}));
          const auto serial = trained.gradients();
          REQUIRE(trained.rounding.backward(trained.view(trained.upstream), {progress}, Backwards{}));
          CHECK(same_bits(trained.gradients(), serial));
        }
      }
    }
  }
}

// Bad input of every method: shapes and weights are named, nothing is made.
template <class R>
void check_refusals(const typename R::Options& options) {
  std::vector<float> w(8 * 40, 0.5f);
  const Grid grid = grid_of(4, 32, Zero::affine);
  const auto code = [&](const MatrixView<const float>& view, const Grid& wanted) {
    const auto made = R::create(view, wanted, options, 1);
    REQUIRE(!made);
    return made.error().code;
  };
  CHECK(code({w.data(), 8, 40, 39}, grid) == cbq::Errc::bad_shape);
  CHECK(code({w.data(), 8, 40, 40}, {.bits = 9}) == cbq::Errc::bad_argument);
  CHECK(code({w.data(), 8, 40, 40}, {.bits = 4, .granularity = cbq::Granularity::per_tensor}) ==
        cbq::Errc::unsupported);
  auto made = R::create({w.data(), 8, 40, 40}, grid, options, 1);
  REQUIRE(made);
  std::vector<float> out(8 * 40);
  const MatrixView<float> narrow{out.data(), 8, 39, 39};
  CHECK(made->soft_weights(narrow, cbq::SerialExecutor{}).error().code == cbq::Errc::bad_shape);
  CHECK(made->hard_weights(narrow, cbq::SerialExecutor{}).error().code == cbq::Errc::bad_shape);
  CHECK(made->backward(cbq::as_const(narrow), {}, cbq::SerialExecutor{}).error().code == cbq::Errc::bad_shape);
  w[3 * 40 + 7] = std::numeric_limits<float>::quiet_NaN();
  CHECK(code({w.data(), 8, 40, 40}, grid) == cbq::Errc::not_finite);
}

// dL/dv and dL/ds of straight-through rounding: central differences of its surrogate, rounding a constant distance and
// the clamp's choice kept.
struct StraightGradient {
  double offset = 0;
  double step = 0;
};
inline StraightGradient straight_gradient(double w, double v, double g, double step, int zero, int top) {
  const double rounded = std::nearbyint(w / step + v), distance = rounded - (w / step + v);
  const double low = -zero, high = top - zero;
  const bool inside = low <= rounded && rounded <= high;
  const double limit = rounded < low ? low : high;
  const auto value = [&](double s, double offset) { return s * (inside ? w / s + offset + distance : limit); };
  const double h = 1e-6 * std::fabs(step);
  return {g * (value(step, v + 1e-6) - value(step, v - 1e-6)) / 2e-6,
          g * (value(step + h, v) - value(step - h, v)) / (2 * h)};
}

}  // namespace support
