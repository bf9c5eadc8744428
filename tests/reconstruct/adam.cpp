// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/adam.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace {

using cbq::ParameterView;

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

// The textbook, one parameter.
struct PlainAdam {
  double m = 0, v = 0;
  int t = 0;
  double step(double x, double g, double rate) {
    ++t;
    m = 0.9 * m + 0.1 * g;
    v = 0.999 * v + 0.001 * g * g;
    return x - rate * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("every parameter moves as in the textbook, each view at its own rate", "", float, double) {
  const double tolerance = std::is_same_v<TestType, double> ? 1e-12 : 2e-5;
  std::vector<TestType> a = normal<TestType>(37, 1), b = normal<TestType>(5, 2), rests = normal<TestType>(3, 3);
  const std::vector<TestType> rested = rests;
  std::vector<double> plain(a.begin(), a.end());
  plain.insert(plain.end(), b.begin(), b.end());
  std::vector<PlainAdam> state(plain.size());
  std::vector<TestType> ga(37), gb(5), gr(3, TestType{1});
  const std::vector<ParameterView<TestType>> views = {
      {a.data(), ga.data(), 37, 1e-2}, {rests.data(), gr.data(), 3, 0.0}, {b.data(), gb.data(), 5, 1e-1}};
  auto adam = cbq::Adam<TestType>::create(views);
  REQUIRE(adam);
  for (std::size_t t = 0; t < 20; ++t) {
    ga = normal<TestType>(37, 10 + static_cast<unsigned>(t));
    gb = normal<TestType>(5, 50 + static_cast<unsigned>(t));
    const std::vector<ParameterView<TestType>> now = {
        {a.data(), ga.data(), 37, 1e-2}, {rests.data(), gr.data(), 3, 0.0}, {b.data(), gb.data(), 5, 1e-1}};
    const double factor = cbq::decay_factor(cbq::Decay::linear, t, 20);
    REQUIRE(adam->step(now, factor));
    for (std::size_t i = 0; i < plain.size(); ++i) {
      const double g = static_cast<double>(i < 37 ? ga[i] : gb[i - 37]);
      plain[i] = state[i].step(plain[i], g, factor * (i < 37 ? 1e-2 : 1e-1));
      CHECK(static_cast<double>(i < 37 ? a[i] : b[i - 37]) == Catch::Approx(plain[i]).margin(tolerance));
    }
  }
  CHECK(adam->steps() == 20);
  CHECK(rests == rested);
}

TEST_CASE("the executor changes no bit, and a loaded state goes on as the saved one would have") {
  constexpr std::size_t size = 40001;  // three tasks
  const std::vector<float> start = normal<float>(size, 4), g = normal<float>(size, 5);
  std::vector<float> gradients = g;
  std::vector<std::byte> saved;
  const auto run = [&](const auto& executor, std::size_t resume_at) {
    std::vector<float> x = start;
    const std::vector<ParameterView<float>> views = {{x.data(), gradients.data(), size, 1e-3}};
    auto adam = cbq::Adam<float>::create(views);
    REQUIRE(adam);
    for (std::size_t t = 0; t < 6; ++t) {
      for (std::size_t i = 0; i < size; ++i) gradients[i] = g[(i + t) % size];
      if (t == resume_at) {
        saved.resize(adam->state_size());
        REQUIRE(adam->save(saved));
        auto fresh = cbq::Adam<float>::create(views);
        REQUIRE(fresh);
        *adam = std::move(*fresh);
        REQUIRE(adam->load(saved));
      }
      REQUIRE(adam->step(views, 1.0, executor));
    }
    return x;
  };
  const std::vector<float> serial = run(cbq::SerialExecutor{}, 99);
  CHECK(serial != start);
  CHECK(run(BackwardThreads{}, 99) == serial);
  CHECK(run(cbq::SerialExecutor{}, 3) == serial);
}

TEST_CASE("states of other parameters are refused") {
  std::vector<float> x(8), g(8);
  const std::vector<ParameterView<float>> eight = {{x.data(), g.data(), 8, 1e-3}};
  const std::vector<ParameterView<float>> seven = {{x.data(), g.data(), 7, 1e-3}};
  auto adam = cbq::Adam<float>::create(eight);
  auto other = cbq::Adam<float>::create(seven);
  REQUIRE((adam && other));
  CHECK(adam->step(seven, 1.0).error().code == cbq::Errc::bad_shape);
  CHECK(adam->steps() == 0);
  std::vector<std::byte> state(adam->state_size());
  REQUIRE(adam->save(state));
  CHECK(other->load(state).error().code == cbq::Errc::bad_shape);
  state[8] = std::byte{9};
  CHECK(adam->load(state).error().code == cbq::Errc::bad_file);
  auto none = cbq::Adam<float>::create({});
  REQUIRE(none);
  CHECK(none->step({}, 1.0));
}

TEST_CASE("rates fall from one to zero") {
  using cbq::Decay;
  CHECK(cbq::decay_factor(Decay::linear, 0, 400) == 1.0);
  CHECK(cbq::decay_factor(Decay::linear, 100, 400) == 0.75);
  CHECK(cbq::decay_factor(Decay::linear, 500, 400) == 0.0);
  CHECK(cbq::decay_factor(Decay::cosine, 0, 10) == 1.0);
  CHECK(cbq::decay_factor(Decay::cosine, 5, 10) == Catch::Approx(0.5));
  CHECK(cbq::decay_factor(Decay::cosine, 10, 10) == Catch::Approx(0.0).margin(1e-15));
  CHECK(cbq::decay_factor(Decay::constant, 9, 10) == 1.0);
  CHECK(cbq::decay_factor(Decay::linear, 0, 0) == 1.0);
}
