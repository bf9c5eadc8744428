// SPDX-License-Identifier: Apache-2.0
#pragma once

// Symmetric codes and scales of the weights, for libraries that take them as input. Scales are bfloat16 numbers, which
// every library can store.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "peer.hpp"

namespace peers {

struct IntegerCodes {
  IntegerCodes(const Weights& weights, int bit_count, std::size_t group_inputs)
      : bits(bit_count), k(weights.inputs), group(group_inputs) {
    if (k % group != 0) throw std::runtime_error("the inputs are no multiple of the group");
    const auto low = static_cast<float>(-(1 << (bits - 1)));
    const float high = -low - 1;
    for (std::size_t first = 0; first < Weights::distinct_rows * k; first += group) {
      const float* values = weights.values + first;
      float most = 0;
      for (std::size_t i = 0; i < group; ++i) most = std::max(most, std::abs(values[i]));
      const float scale = std::bit_cast<float>(std::bit_cast<std::uint32_t>(most / -low) & 0xffff0000u);
      scales.push_back(scale);
      for (std::size_t i = 0; i < group; ++i) {
        codes.push_back(static_cast<std::int8_t>(std::clamp(std::nearbyint(values[i] / scale), low, high)));
      }
    }
  }

  [[nodiscard]] std::size_t groups() const { return k / group; }
  [[nodiscard]] const std::int8_t* code_row(std::size_t output) const {
    return codes.data() + output % Weights::distinct_rows * k;
  }
  [[nodiscard]] const float* scale_row(std::size_t output) const {
    return scales.data() + output % Weights::distinct_rows * groups();
  }
  void dequantize(std::size_t output, float* row) const {
    for (std::size_t i = 0; i < k; ++i) row[i] = scale_row(output)[i / group] * static_cast<float>(code_row(output)[i]);
  }
  /// Unsigned codes (code + 2^(bits-1)) of one output, the first in the lowest bits of a byte.
  void pack(std::size_t output, std::uint8_t* bytes) const {
    const auto per_byte = static_cast<std::size_t>(8 / bits);
    std::fill_n(bytes, k / per_byte, std::uint8_t{0});
    for (std::size_t i = 0; i < k; ++i) {
      const auto code = static_cast<unsigned>(code_row(output)[i] + (1 << (bits - 1)));
      bytes[i / per_byte] |= static_cast<std::uint8_t>(code << (i % per_byte * static_cast<std::size_t>(bits)));
    }
  }

  int bits;
  std::size_t k, group;
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
};

}  // namespace peers
