// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the tests of all losses do: gradients against central differences, executors, and pieces of a batch.

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <random>
#include <thread>
#include <vector>

#include <cbq/loss/rows.hpp>

namespace support {

// Last task first, two threads: results must not notice.
struct BackwardThreads {
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

template <class T>
std::vector<T> normal(std::size_t size, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> distribution;
  std::vector<T> out(size);
  for (T& value : out) value = static_cast<T>(distribution(engine));
  return out;
}

template <class L>
void check_loss(const L& loss) {
  constexpr std::size_t rows = 7, columns = 21, count = rows * columns;
  std::vector<double> y = normal<double>(count, 1);
  const std::vector<double> t = normal<double>(count, 2);
  std::vector<double> dy(count, 5.0);
  const auto view = [&](const std::vector<double>& x) { return cbq::matrix_view(x.data(), rows, columns); };
  const double value = loss.gradient(view(y), view(t), cbq::matrix_view(dy.data(), rows, columns));
  CHECK(loss.value(view(y), view(t)) == Catch::Approx(value).epsilon(1e-12));
  for (std::size_t i = 0; i < count; ++i) {
    const double at = y[i], h = 1e-5;
    y[i] = at + h;
    const double above = loss.value(view(y), view(t));
    y[i] = at - h;
    const double below = loss.value(view(y), view(t));
    y[i] = at;
    CHECK(dy[i] == Catch::Approx((above - below) / (2 * h)).margin(1e-8));
  }
  CHECK(loss.gradient(view(t), view(t), cbq::matrix_view(dy.data(), rows, columns)) ==
        Catch::Approx(0.0).margin(1e-12));
  CHECK(loss.value(cbq::MatrixView<const double>{}, cbq::MatrixView<const double>{}) == 0.0);
}

// Bits for any executor, float against double, and a batch in two pieces.
template <class L>
void check_float_loss(const L& loss) {
  constexpr std::size_t rows = 300, columns = 45;  // more rows than chunks
  const std::vector<float> y = normal<float>(rows * columns, 3), t = normal<float>(rows * columns, 4);
  const auto view = [&](const auto& x) { return cbq::matrix_view(x.data(), rows, columns); };
  std::vector<float> serial(y.size()), threads(y.size()), pieces(y.size(), 0.0f);
  const double value = loss.gradient(view(y), view(t), cbq::matrix_view(serial.data(), rows, columns));
  CHECK(loss.gradient(view(y), view(t), cbq::matrix_view(threads.data(), rows, columns), BackwardThreads{}) == value);
  CHECK(threads == serial);
  CHECK(loss.value(view(y), view(t), BackwardThreads{}) == loss.value(view(y), view(t)));
  const std::vector<double> yd(y.begin(), y.end()), td(t.begin(), t.end());
  CHECK(value == Catch::Approx(loss.value(view(yd), view(td))).epsilon(1e-5));
  double sum = 0;
  for (const std::size_t first : {std::size_t{0}, std::size_t{100}}) {
    const std::size_t count = first == 0 ? 100 : 200;
    const double share = static_cast<double>(count) / rows;
    sum += share * loss.add_gradient(cbq::rows(view(y), first, count), cbq::rows(view(t), first, count), share,
                                     cbq::rows(cbq::matrix_view(pieces.data(), rows, columns), first, count));
  }
  CHECK(sum == Catch::Approx(value).epsilon(1e-6));
  double apart = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i)
    apart = std::fmax(apart, std::fabs(static_cast<double>(pieces[i] - serial[i])));
  CHECK(apart < 1e-7);
}

}  // namespace support
