// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/rotated_site.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/mlp_gradient.hpp>

#include "support/kernels.hpp"
#include "support/nn.hpp"
#include "support/trained_linear.hpp"

using namespace cbq;

namespace {

constexpr std::size_t tokens = 21, width = 3 * 32;  // three blocks of 32

template <class T>
using Site = RotatedSite<ActivationSite<T>>;

constexpr Grid four_bits = {.bits = 4, .granularity = Granularity::per_token, .zero = Zero::affine};

template <class T>
Site<T> site(const Grid& grid, InputRotation rotation, ClipMultiplier clip = ClipMultiplier::fixed) {
  return Site<T>(*ActivationSite<T>::create(grid, clip), rotation);
}

template <class T>
std::vector<T> rotated(std::vector<T> x) {
  REQUIRE(hadamard_rows(matrix_view(x.data(), x.size() / width, width), 32));
  return x;
}

template <class T, class A>
std::vector<T> forward(const A& of, const std::vector<T>& x) {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<T> out(x.size());
  const std::size_t rows = x.size() / width;
  REQUIRE(of.forward(matrix_view<const T>(x.data(), rows, width), matrix_view(out.data(), rows, width), context));
  std::vector<T> same = x;
  const auto in_place = matrix_view(same.data(), rows, width);
  REQUIRE(of.forward(as_const(in_place), in_place, context));
  CHECK(same == out);
  return out;
}

template <class A, class T = typename A::Scalar>
std::vector<T> backward(A& of, const std::vector<T>& x, std::vector<T> slopes) {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::vector<T> rounded = forward(of, x);
  const std::size_t rows = x.size() / width;
  REQUIRE(of.backward(matrix_view(slopes.data(), rows, width), matrix_view<const T>(x.data(), rows, width),
                      matrix_view<const T>(rounded.data(), rows, width), context));
  return slopes;
}

}  // namespace

TEST_CASE("A site without rotation is the site") {
  CHECK(Site<float>().is_identity());
  CHECK_FALSE(site<float>(four_bits, InputRotation::none).is_identity());
  CHECK_FALSE(site<float>(Grid{}, InputRotation::hadamard).is_identity());
  const std::vector<float> x = support::normal(tokens * width, 1);
  CHECK(forward(site<float>(four_bits, InputRotation::none), x) ==
        forward(*ActivationSite<float>::create(four_bits), x));
}

TEST_CASE("A rotated site rotates first, and then rounds") {
  const std::vector<float> x = support::normal(tokens * width, 1);
  CHECK(forward(site<float>(Grid{}, InputRotation::hadamard), x) == rotated(x));
  CHECK(forward(site<float>(four_bits, InputRotation::hadamard), x) ==
        forward(*ActivationSite<float>::create(four_bits), rotated(x)));
}

TEST_CASE("The gradient passes the rotation backwards") {
  const std::vector<double> x = support::doubles(support::normal(tokens * width, 1));
  const std::vector<double> slopes = support::doubles(support::normal(tokens * width, 2));
  auto plain = site<double>(Grid{}, InputRotation::hadamard);
  CHECK(backward(plain, x, slopes) == rotated(slopes));
  // What is clipped after the rotation gets no gradient; the clip itself sees rotated values.
  auto rounding = site<double>(four_bits, InputRotation::hadamard, ClipMultiplier::learned);
  auto reference = *ActivationSite<double>::create(four_bits, ClipMultiplier::learned);
  rounding.clip() = reference.clip() = 0.5;
  const std::vector<double> wanted = backward(reference, rotated(x), slopes);
  CHECK(wanted != slopes);
  CHECK(backward(rounding, x, slopes) == rotated(wanted));
  CHECK(rounding.clip_gradient() == reference.clip_gradient());
  CHECK(rounding.clip_gradient() != 0);
}

TEST_CASE("Gradients of an MLP with a rotated input of its last matrix equal central differences") {
  using Linear = support::TrainedLinear<double>;
  constexpr std::size_t hidden = 10;
  const auto linear = [](std::size_t outputs, std::size_t inputs, unsigned seed) {
    return Linear{outputs, inputs, support::normal(outputs * inputs, seed), {}};
  };
  auto mlp = *GatedMlpGradient<Linear, Site<double>>::create({linear(width, hidden, 1),
                                                              linear(width, hidden, 2),
                                                              linear(hidden, width, 3),
                                                              {},
                                                              site<double>(Grid{}, InputRotation::hadamard)});
  std::vector<double> x = support::doubles(support::normal(3 * hidden, 4));
  const std::vector<double> slopes = support::doubles(support::normal(3 * hidden, 5));
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto view = [](const std::vector<double>& v) { return matrix_view<const double>(v.data(), 3, hidden); };
  decltype(mlp)::Tape tape;
  const auto loss = [&] {
    std::vector<double> y(x.size());
    REQUIRE(mlp.forward(view(x), matrix_view(y.data(), 3, hidden), tape, context));
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * slopes[i];
    return sum;
  };
  (void)loss();
  std::vector<double> dx(x.size());
  REQUIRE(mlp.backward(view(slopes), view(x), tape, matrix_view(dx.data(), 3, hidden), context));
  const std::vector<double> down = mlp.parts().down.gradient;
  const auto check = [&](double& value, double gradient) {
    constexpr double h = 1e-5;
    const double kept = value;
    value = kept + h;
    const double above = loss();
    value = kept - h;
    const double below = loss();
    value = kept;
    CHECK(gradient == Catch::Approx((above - below) / (2 * h)).epsilon(1e-6).margin(1e-7));
  };
  for (std::size_t i = 0; i < x.size(); ++i) check(x[i], dx[i]);
  for (std::size_t i = 0; i < down.size(); i += 37) check(mlp.parts().down.weights[i], down[i]);
}

TEST_CASE("A rotated site names the token that is not finite, and has the same bits for any executor") {
  const auto of = site<float>(four_bits, InputRotation::hadamard);
  std::vector<float> x = support::normal(tokens * width, 1), out(x.size());
  const support::ThreadExecutor threads;
  ExecutionContext<support::ThreadExecutor> context(threads);
  REQUIRE(of.forward(support::input(x, width), support::view(out, width), context));
  CHECK(out == forward(of, x));
  x[17 * width + 5] = std::numeric_limits<float>::infinity();
  const Status failed = of.forward(support::input(x, width), support::view(out, width), context);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
  CHECK(std::string(failed.error().where.c_str()) == "token 17");
}
