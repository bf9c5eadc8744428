// SPDX-License-Identifier: Apache-2.0

#include "suite.hpp"

#include <initializer_list>

#include "machine.hpp"

namespace bench {

namespace {
bool skipped = false;
}

std::string text(const Shape& shape) {
  return "M:" + std::to_string(shape.m) + "/N:" + std::to_string(shape.n) + "/K:" + std::to_string(shape.k) +
         "/threads:" + std::to_string(shape.threads);
}

std::vector<Shape> shapes(const Selection& selection, std::size_t most_rows) {
  struct Matrix {
    std::size_t n, k;
  };
  std::vector<Matrix> matrices{{4096, 4096}};
  std::vector<std::size_t> rows{1, 2, 4, 8, 64, 512};
  if (selection.everything) {
    // The last is a tail in everything: panels of 16 outputs, blocks of 32 inputs, groups.
    matrices = {{4096, 4096}, {11008, 4096}, {4096, 11008}, {576, 576}, {1536, 576}, {256, 256}, {577, 1009}};
    rows = {1, 2, 4, 8, 16, 32, 64, 128, 512};
  }
  std::vector<Shape> all;
  for (const Matrix& matrix : matrices) {
    for (const std::size_t m : rows) {
      for (const std::size_t threads : thread_counts()) {
        if (m <= most_rows) all.push_back({.m = m, .n = matrix.n, .k = matrix.k, .threads = threads});
      }
    }
  }
  return all;
}

void set_rates(benchmark::State& state, double operations, double bytes) {
  const auto rate = [](double amount) {
    return benchmark::Counter(amount * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  };
  if (operations != 0) state.counters["GOPS"] = rate(operations);
  if (bytes != 0) state.counters["GBps"] = rate(bytes);
}

void set_rates(benchmark::State& state, const Shape& shape, std::size_t weight_bytes) {
  set_rates(state, 2.0 * static_cast<double>(shape.m * shape.n) * static_cast<double>(shape.k),
            static_cast<double>(weight_bytes));
}

void skip(benchmark::State& state, const cbq::Error& error) {
  std::string message;
  cbq::append_message(message, error);
  state.SkipWithError(message.c_str());
  skipped = true;
}

bool skipped_any() {
  return skipped;
}

}  // namespace bench
