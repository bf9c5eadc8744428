// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/trainable_linear.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cstddef>
#include <limits>
#include <vector>

#include <cbq/rounding/straight_through.hpp>
#include "support/files.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"

using cbq::Errc;
using Linear = cbq::TrainableLinear<cbq::StraightThrough<float>>;

namespace {

constexpr cbq::SerialExecutor serial;
constexpr std::size_t outputs = 5, inputs = 24, tokens = 7;
constexpr cbq::Grid grid = {
    .bits = 3, .granularity = cbq::Granularity::per_group, .group = 8, .zero = cbq::Zero::affine};

struct Fixture {
  std::vector<float> weights = support::normal(outputs * inputs, 1), bias = support::normal(outputs, 2);
  std::vector<float> x = support::normal(tokens * inputs, 3), dy = support::normal(tokens * outputs, 4);
  cbq::ExecutionContext<> context{serial, cbq::detect()};

  [[nodiscard]] Linear linear() const {
    return Linear::create(support::input(weights, inputs), bias, grid, {}, 0).value();
  }
  [[nodiscard]] std::vector<float> hard_weights(Linear& linear) const {
    std::vector<float> result(weights.size());
    REQUIRE(linear.rounding().hard_weights(support::view(result, inputs), serial));
    return result;
  }
  std::vector<float> forward(const Linear& linear) {
    std::vector<float> y(tokens * outputs);
    REQUIRE(linear.forward(support::input(x, inputs), support::view(y, outputs), context));
    return y;
  }
  // x W^T + bias in double.
  [[nodiscard]] double expected(const std::vector<float>& w, std::size_t t, std::size_t n) const {
    auto sum = static_cast<double>(bias[n]);
    for (std::size_t k = 0; k < inputs; ++k) {
      sum += static_cast<double>(x[t * inputs + k]) * static_cast<double>(w[n * inputs + k]);
    }
    return sum;
  }
};

// Moves every parameter by one sign step.
void move(Linear& linear) {
  for (const auto& view : linear.rounding().parameters()) {
    for (std::size_t i = 0; i < view.size; ++i) view.values[i] += i % 2 == 0 ? 0.3f : -0.3f;
  }
  linear.rounding().project();
}

}  // namespace

TEST_CASE("A trainable layer multiplies with what its rounding makes of the weights") {
  Fixture f;
  Linear linear = f.linear();
  CHECK(linear.outputs() == outputs);
  CHECK(linear.inputs() == inputs);
  std::vector<float> soft(f.weights.size());
  const auto check = [&] {
    const std::vector<float> y = f.forward(linear);
    for (std::size_t t = 0; t < tokens; ++t) {
      for (std::size_t n = 0; n < outputs; ++n) {
        CHECK(static_cast<double>(y[t * outputs + n]) == Catch::Approx(f.expected(soft, t, n)).margin(1e-4));
      }
    }
  };
  REQUIRE(linear.rounding().soft_weights(support::view(soft, inputs), serial));
  check();  // created with them
  const std::vector<float> before = f.forward(linear);
  move(linear);
  CHECK(f.forward(linear) == before);  // not refreshed yet
  REQUIRE(linear.refresh(f.context));
  REQUIRE(linear.rounding().soft_weights(support::view(soft, inputs), serial));
  check();
  REQUIRE(linear.refresh_hard(f.context));
  soft = f.hard_weights(linear);
  check();
}

TEST_CASE("Gradients of several backward passes reach the rounding together, once") {
  Fixture f;
  Linear linear = f.linear();
  std::vector<float> dx(tokens * inputs), upstream(f.weights.size(), 0.0f), soft(f.weights.size());
  REQUIRE(linear.rounding().soft_weights(support::view(soft, inputs), serial));
  const auto backward = [&](cbq::Accumulate accumulate) {
    REQUIRE(linear.backward(support::input(f.dy, outputs), support::input(f.x, inputs), support::view(dx, inputs),
                            accumulate, f.context));
  };
  backward(cbq::Accumulate::overwrite);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t k = 0; k < inputs; ++k) {
      double sum = 0;
      for (std::size_t n = 0; n < outputs; ++n) {
        sum += static_cast<double>(f.dy[t * outputs + n]) * static_cast<double>(soft[n * inputs + k]);
      }
      CHECK(static_cast<double>(dx[t * inputs + k]) == Catch::Approx(sum).margin(1e-4));
    }
  }
  const std::vector<float> once = dx;
  backward(cbq::Accumulate::add);
  for (std::size_t i = 0; i < dx.size(); ++i) CHECK(dx[i] == Catch::Approx(2 * once[i]).margin(1e-5));

  // Two passes are twice the outer product.
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < outputs; ++n) {
      for (std::size_t k = 0; k < inputs; ++k) {
        upstream[n * inputs + k] += 2 * f.dy[t * outputs + n] * f.x[t * inputs + k];
      }
    }
  }
  const auto gradients = [](auto& rounding) {
    std::vector<float> all;
    for (const auto& view : rounding.parameters()) {
      all.insert(all.end(), view.gradients, view.gradients + view.size);
    }
    return all;
  };
  auto reference = cbq::StraightThrough<float>::create(support::input(f.weights, inputs), grid, {}, 0).value();
  REQUIRE(reference.backward(support::input(upstream, inputs), {}, serial));
  REQUIRE(linear.update_gradients({}, f.context));
  const std::vector<float> found = gradients(linear.rounding()), wanted = gradients(reference);
  REQUIRE(found.size() == wanted.size());
  bool any = false;
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(found[i] == Catch::Approx(wanted[i]).margin(1e-4));
    any = any || found[i] != 0;
  }
  CHECK(any);
  REQUIRE(linear.update_gradients({}, f.context));  // cleared
  for (const float gradient : gradients(linear.rounding())) CHECK(gradient == 0.0f);
}

TEST_CASE("Hardened layers run with the codes that they hand out") {
  Fixture f;
  Linear linear = f.linear();
  move(linear);
  const std::vector<float> hard = f.hard_weights(linear);
  REQUIRE(linear.harden(f.context));
  std::vector<float> dequantized(f.weights.size());
  REQUIRE(cbq::dequantize(linear.codes().view(), grid, support::view(dequantized, inputs)));
  CHECK(dequantized == hard);
  const std::vector<float> y = f.forward(linear);

  Linear other = f.linear();  // at its start
  REQUIRE(f.forward(other) != y);
  REQUIRE(other.harden(linear.take_codes()));
  CHECK(f.forward(other) == y);
}

TEST_CASE("Layers refuse other layers' codes, bad grids and bad weights") {
  Fixture f;
  Linear linear = f.linear();
  for (const auto& [rows, columns, bits] : {std::array{4, 24, 3}, {5, 16, 3}, {5, 24, 2}}) {
    cbq::Grid other = grid;
    other.bits = bits;
    auto codes =
        cbq::QuantizedMatrix::allocate(static_cast<std::size_t>(rows), static_cast<std::size_t>(columns), other);
    REQUIRE(codes);
    CHECK(linear.harden(*std::move(codes)).error().code == Errc::bad_shape);
  }
  CHECK_FALSE(Linear::create(support::input(f.weights, inputs), f.bias, {.bits = 1}, {}, 0));
  f.weights[30] = std::numeric_limits<float>::quiet_NaN();
  const auto bad = Linear::create(support::input(f.weights, inputs), f.bias, grid, {}, 0);
  REQUIRE_FALSE(bad);
  CHECK(bad.error().code == Errc::not_finite);
  CHECK(support::message(bad.error()).find("row 1, column 6") != std::string::npos);
}
