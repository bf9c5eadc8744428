// SPDX-License-Identifier: Apache-2.0
#pragma once

// Moves what belongs to the tokens that stay to the front, in place. Cost: one copy of what moves.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Errc::bad_argument unless `survivors` are ascending indices of `tokens` tokens.
[[nodiscard]] inline Status check_survivors(std::span<const std::uint32_t> survivors, std::size_t tokens) noexcept {
  for (std::size_t i = 0; i < survivors.size(); ++i) {
    if (survivors[i] < tokens && (i == 0 || survivors[i] > survivors[i - 1])) continue;
    return Error{Errc::bad_argument, "tokens that stay must be ascending indices of tokens", ErrorText("index ") << i,
                 survivors[i], ErrorText("below ") << tokens};
  }
  return {};
}

/// Row i becomes row survivors[i]; check_survivors() holds.
template <class T>
void gather_rows(std::span<const std::uint32_t> survivors, const MatrixView<T>& x) noexcept {
  for (std::size_t i = 0; i < survivors.size(); ++i) {
    if (survivors[i] != i) std::memcpy(row(x, i), row(x, survivors[i]), x.columns * sizeof(T));
  }
}

/// Element i becomes element survivors[i], for example of positions; check_survivors() holds.
template <class T>
void gather_elements(std::span<const std::uint32_t> survivors, std::span<T> x) noexcept {
  for (std::size_t i = 0; i < survivors.size(); ++i) x[i] = x[survivors[i]];
}

}  // namespace CBQ_ABI
}  // namespace cbq
