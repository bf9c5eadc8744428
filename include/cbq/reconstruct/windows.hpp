// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which blocks are reconstructed together, and in which order. Windows of `size` blocks slide over the model; each
// begins where the blocks end that the one before it made final, and trains the blocks of the overlap again (CBQ, Ding
// et al., 2024, cross-block dependency). Growing ends (SliderQuant, 2025) begin with windows of 1, 2, .. blocks and end
// with .., 2, 1: the first and last blocks are the most sensitive. Shrinking ends only end so: with an overlap of size
// - 1 each block begins a window and is final after it, as cross-block reconstruction regularization asks (WKVQuant,
// Yue et al., 2024).

#include <cstddef>
#include <vector>

#include <cbq/core/result.hpp>

namespace cbq {

/// Blocks [first, first + count) are trained; the first `finished` of them are final afterwards.
struct Window {
  std::size_t first = 0;
  std::size_t count = 0;
  std::size_t finished = 0;
  friend bool operator==(const Window&, const Window&) = default;
};

enum class WindowEnds : unsigned char { fixed, growing, shrinking };

struct WindowOptions {
  std::size_t size = 2;
  std::size_t overlap = 1;
  WindowEnds ends = WindowEnds::fixed;
};

inline namespace CBQ_ABI {

/// Windows that cover `blocks` blocks; a model of fewer blocks than a window has one window. Errc::bad_argument for a
/// size of 0, an overlap that is not smaller than the size, or no blocks.
[[nodiscard]] inline Result<std::vector<Window>> plan_windows(std::size_t blocks, const WindowOptions& options) {
  if (blocks == 0) return Error{Errc::bad_argument, "a model without blocks cannot be reconstructed", "blocks", blocks};
  if (options.size == 0 || options.overlap >= options.size) {
    return Error{Errc::bad_argument, "windows have at least one block and overlap by fewer than they have", "overlap",
                 options.overlap, ErrorText("below ") << options.size};
  }
  std::vector<Window> windows;
  if (options.ends == WindowEnds::growing) {
    for (std::size_t count = 1; count < options.size && count < blocks; ++count) windows.push_back({0, count, 0});
  }
  const std::size_t stride = options.size - options.overlap;
  std::size_t first = 0;
  while (blocks - first > options.size) {
    windows.push_back({first, options.size, stride});
    first += stride;
  }
  windows.push_back({first, blocks - first, blocks - first});
  if (options.ends != WindowEnds::fixed) {
    for (std::size_t left = blocks - first; left > 1; --left) {
      windows.back().finished = 1;
      windows.push_back({blocks - left + 1, left - 1, left - 1});
    }
  }
  return windows;
}

}  // namespace CBQ_ABI
}  // namespace cbq
