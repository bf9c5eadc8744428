// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whether what a host hands to a product or to a packer can be read and written: its matrices and the memory that
// results go to. Constant time.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace driver {

/// Whether `memory` holds `needed` bytes on a 4-byte boundary; `where` names the function. Errc::bad_shape,
/// Errc::bad_argument.
[[nodiscard]] inline Status check_memory(std::span<const std::byte> memory, std::size_t needed,
                                         const char* where) noexcept {
  if (memory.size() < needed) {
    return Error{Errc::bad_shape, "[cbq] the memory is too small", where, memory.size(), needed};
  }
  if (reinterpret_cast<std::uintptr_t>(memory.data()) % alignof(std::int32_t) != 0) {
    return Error{Errc::bad_argument, "[cbq] the memory must lie on a 4-byte boundary", where};
  }
  return {};
}

/// Whether all elements of x can be reached; `where` names the function. Errc::bad_shape, Errc::bad_argument.
template <class T>
[[nodiscard]] constexpr Status check_rows(const MatrixView<const T>& x, const char* where) noexcept {
  if (x.rows > 1 && x.stride < x.columns) {
    return Error{Errc::bad_shape, "[cbq] a stride is shorter than a row", where, x.stride, x.columns};
  }
  if (x.data == nullptr && x.rows != 0 && x.columns != 0) {
    return Error{Errc::bad_argument, "[cbq] the memory of a matrix is null", where};
  }
  return {};
}

}  // namespace driver
}  // namespace CBQ_ABI
}  // namespace cbq
