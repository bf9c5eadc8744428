// SPDX-License-Identifier: Apache-2.0

// Host threads that share one packed matrix, under the thread sanitizer. Each has activations and a result of its own;
// then all write disjoint ranges of outputs of one result. Nothing of cbq was called before the threads start, so they
// also race for the one-time detection of the CPU. With the argument `race` two threads write the same result: the
// sanitizer must see that, or this test would prove nothing.

#include <cbq/gemm.hpp>

#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g32;
constexpr std::size_t threads = 4;
constexpr std::size_t tokens = 3;
constexpr std::size_t inputs = 96;
constexpr std::size_t share = 32;
constexpr std::size_t outputs = threads * share;

using Weights = cbq::PackedWeightsView<scheme>;

bool multiply(const Weights& weights, cbq::OutputRange range, std::vector<float>& y, cbq::Isa cap = cbq::detect()) {
  std::vector<float> x(tokens * inputs);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7) - 3.0f;
  cbq::QuantizedActivations<scheme> activations;
  return activations.quantize(cbq::matrix_view<const float>(x.data(), tokens, inputs), cbq::SerialExecutor{}, cap)
             .has_value() &&
         cbq::matmul_outputs(activations.view(), weights, range, cbq::matrix_view(y.data(), tokens, outputs),
                             cbq::NoEpilogue{}, cbq::SerialExecutor{}, cap)
             .has_value();
}

/// Calls work(t) on every thread t of `count`.
template <class Work>
void on_threads(std::size_t count, const Work& work) {
  std::vector<std::thread> workers;
  for (std::size_t t = 0; t < count; ++t) workers.emplace_back([&work, t] { work(t); });
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::uint8_t> codes(outputs * inputs);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 % 16);
  const std::vector<float> scales(outputs * inputs / 32, 0.25f);
  const cbq::QuantizedMatrixView matrix{.codes = cbq::matrix_view<const std::uint8_t>(codes.data(), outputs, inputs),
                                        .scales = cbq::matrix_view<const float>(scales.data(), outputs, inputs / 32),
                                        .zeros = {}};
  const auto weights = cbq::PackedWeights<scheme>::from_codes(matrix);
  if (!weights) return 1;

  std::vector<float> shared(tokens * outputs);
  if (count > 1 && std::strcmp(arguments[1], "race") == 0) {
    // Clang's sanitizer does not see stores of 64 bytes: plain ones.
    on_threads(2, [&](std::size_t) { (void)multiply(weights->view(), {}, shared, cbq::Isa::scalar); });
    return 0;  // the sanitizer turns it into a failure
  }
  std::vector<std::vector<float>> own(threads, std::vector<float>(tokens * outputs));
  std::vector<char> fine(threads, 0);
  on_threads(threads, [&](std::size_t t) { fine[t] = multiply(weights->view(), {}, own[t]); });
  on_threads(threads, [&](std::size_t t) {
    fine[t] = fine[t] && multiply(weights->view(), {.first = t * share, .count = share}, shared);
  });
  for (std::size_t t = 0; t < threads; ++t) {
    if (!fine[t] || own[t] != own[0] || shared != own[0]) {
      std::puts("threads disagree");
      return 1;
    }
  }
  return 0;
}
