// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a library offers to be compared at attention over a quantized cache: ways to store keys and values, and
// attention of the last positions over them. attention.cpp makes a Session of it.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "session.hpp"

namespace peers {

/// One layer, and the positions of one sequence.
struct AttentionShape {
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t width = 0;
  std::size_t context = 0;
  [[nodiscard]] std::size_t columns() const { return heads * width; }
  [[nodiscard]] std::size_t kv_columns() const { return kv_heads * width; }
};

/// The floats that every library quantizes: position p has row p % distinct.
struct KeysValues {
  static constexpr std::size_t distinct = 256;
  const float* keys = nullptr;  ///< distinct x kv_heads * width
  const float* values = nullptr;
};

/// out[rows x heads * width] from queries q of the same shape, which belong to the last positions: query r sees
/// context - rows + r + 1 of them. Scores are scaled by 1 / sqrt(width).
struct AttentionCall {
  const float* q = nullptr;
  float* out = nullptr;
  std::size_t rows = 0;
  std::size_t threads = 1;
};

/// Cold copies of one quantized cache.
class AttentionCache {
 public:
  virtual ~AttentionCache() = default;
  /// Bytes of keys and values, scales included.
  [[nodiscard]] virtual std::size_t bytes() const = 0;
  /// One call with the next copy.
  virtual void run(const AttentionCall& call) = 0;
};

/// One library.
class AttentionPeer {
 public:
  virtual ~AttentionPeer() = default;
  /// Name and version.
  [[nodiscard]] virtual std::string name() const = 0;
  /// Families: kv4, kv8, f16.
  [[nodiscard]] virtual std::vector<FormatName> formats() const = 0;
  /// Throws std::runtime_error with the reason where the library cannot.
  [[nodiscard]] virtual std::unique_ptr<AttentionCache> prepare(std::size_t format, const AttentionShape& shape,
                                                                const KeysValues& floats) = 0;
};

/// Defined by each library's file.
[[nodiscard]] std::unique_ptr<AttentionPeer> make_attention_peer();

}  // namespace peers
