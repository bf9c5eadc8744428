// SPDX-License-Identifier: Apache-2.0
#pragma once

// What tests of layers share: random numbers, executors, instruction sets.

#include <cstddef>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include <cbq/core/context.hpp>

namespace support {

/// Normally distributed floats, the same for the same seed.
inline std::vector<float> normal(std::size_t count, unsigned seed, float deviation = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0.0f, deviation);
  std::vector<float> values(count);
  for (float& v : values) v = distribution(random);
  return values;
}

inline std::vector<double> doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

inline cbq::MatrixView<const float> input(const std::vector<float>& values, std::size_t columns) {
  return cbq::matrix_view<const float>(values.data(), values.size() / columns, columns);
}
inline cbq::MatrixView<float> view(std::vector<float>& values, std::size_t columns) {
  return cbq::matrix_view(values.data(), values.size() / columns, columns);
}

/// Threads that take indices from the last to the first, in stripes.
struct ThreadExecutor {
  std::size_t threads = 3;
  [[nodiscard]] std::size_t concurrency() const { return threads; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    std::vector<std::thread> workers;
    for (std::size_t t = 0; t < threads && t < count; ++t) {
      workers.emplace_back([&, t] {
        for (std::size_t i = t; i < count; i += threads) task(count - 1 - i);
      });
    }
    for (std::thread& worker : workers) worker.join();
  }
};

}  // namespace support
