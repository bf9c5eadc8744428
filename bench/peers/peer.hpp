// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a library offers to be compared: formats of weights, and products with them. Every library is a program of its
// own (worker.cpp is its main), so that no two of them share symbols, thread pools or crashes. docs/performance.md
// says how compare.py runs them.

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace peers {

/// What happens to activations on the way to the multiplier.
enum class Activations { int8, given_int8, bfloat16, float32 };

/// One way to store a matrix.
struct Format {
  std::string name;    ///< as the library calls it
  std::string family;  ///< formats of one family are compared: w4_g32, w4_g128, w4_channel, w2, w8, w4a16, float
  Activations activations = Activations::int8;
};

/// The float matrix that every library quantizes: `outputs` x `inputs`, output n being row n % distinct_rows.
struct Weights {
  static constexpr std::size_t distinct_rows = 64;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  const float* values = nullptr;  ///< distinct_rows x inputs

  [[nodiscard]] const float* row(std::size_t output) const { return values + output % distinct_rows * inputs; }
};

/// y[m x outputs] = x[m x inputs] W^T, row-major and from float to float.
struct Product {
  const float* x = nullptr;
  float* y = nullptr;
  std::size_t m = 0;
  std::size_t threads = 1;
};

/// Cold copies of one quantized matrix.
class Matrix {
 public:
  virtual ~Matrix() = default;
  /// Bytes that one product reads, scales and zero points included.
  [[nodiscard]] virtual std::size_t bytes() const = 0;
  /// The values that the codes of one of the first Weights::distinct_rows outputs stand for.
  virtual void dequantize(std::size_t output, float* row) const = 0;
  /// Some products, each with the next copy; returns how many.
  virtual std::size_t run(const Product& product) = 0;
};

/// One library.
class Peer {
 public:
  virtual ~Peer() = default;
  /// Name and version.
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual std::vector<Format> formats() const = 0;
  /// Throws std::runtime_error with the reason where the library cannot.
  [[nodiscard]] virtual std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) = 0;
};

/// Defined by each library's file.
[[nodiscard]] std::unique_ptr<Peer> make_peer();

/// Copies of `bytes` that are together larger than twice the last-level caches.
[[nodiscard]] std::size_t copy_count(std::size_t bytes);

}  // namespace peers
