// SPDX-License-Identifier: Apache-2.0
#pragma once

// What readers of GGUF files refuse to hold. Every count is compared with the bytes that are left, too, so that a limit
// matters for large files only; docs/formats.md has the limits of all parsers in one table. Plain data.

#include <cstddef>

namespace cbq {

/// What the reader refuses to hold.
struct GgufLimits {
  std::size_t keys = 65536;
  std::size_t tensors = 1'000'000;
  std::size_t text_bytes = std::size_t{1} << 24;
  std::size_t array_elements = std::size_t{1} << 24;
  std::size_t key_bytes = 65535;  ///< the format's own limit
  std::size_t name_bytes = 63;    ///< of a tensor; likewise
  std::size_t dims = 4;           ///< likewise, and at most TensorShape::max_rank
  std::size_t alignment = std::size_t{1} << 20;
  std::size_t bytes = std::size_t{1} << 40;  ///< of the file
};

}  // namespace cbq
