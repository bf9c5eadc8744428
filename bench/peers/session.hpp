// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a program of one library measures: products (products.cpp) or attention (attention.cpp). worker.cpp is the main
// of all of them.

#include <cmath>
#include <cstddef>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>

namespace peers {

using Floats = cbq::AlignedBuffer<float>;

inline Floats floats(std::size_t count) {
  auto made = Floats::allocate(count);
  if (!made) throw std::runtime_error("no memory");
  return std::move(*made);
}

inline Floats normal_floats(std::size_t count, unsigned seed, float deviation) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats values = floats(count);
  for (std::size_t i = 0; i < count; ++i) values.data()[i] = normal(generator);
  return values;
}

/// What compare.py selects formats by; formats of one family are compared.
struct FormatName {
  std::string name;
  std::string family;
};

/// One library, and what was prepared of it. Everything throws std::runtime_error with the reason where it cannot.
class Session {
 public:
  virtual ~Session() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::vector<FormatName> formats() const = 0;
  /// Builds cold copies of what all calls of this shape read; the bytes that one call reads. Outputs and inputs of a
  /// matrix, or key/value heads and positions of a cache.
  virtual std::size_t prepare(std::size_t format, std::size_t first, std::size_t second) = 0;
  /// One call, and how far its result is from one in double precision.
  virtual double warm(std::size_t format, std::size_t rows, std::size_t threads) = 0;
  /// Some calls of what was warmed last, each with the next copy; returns how many.
  virtual std::size_t run(std::size_t format, std::size_t rows, std::size_t threads) = 0;
  /// Frees all that was prepared.
  virtual void drop() = 0;
};

/// Defined by products.cpp and by attention.cpp.
[[nodiscard]] std::unique_ptr<Session> make_session();

}  // namespace peers
