// SPDX-License-Identifier: Apache-2.0
#pragma once

// An Error from a failed system call: the path in `where`, the text of errno in `got`. Used by everything in io/ that
// touches the file system.

#include <cstring>
#include <string_view>

#include <cbq/core/result.hpp>

namespace cbq {
inline namespace CBQ_ABI {

namespace io_detail {
// strerror_r returns text on glibc and a number elsewhere; overloads take either.
inline const char* error_text(const char* text, const char*) noexcept {
  return text;
}
inline const char* error_text(int status, const char* buffer) noexcept {
  return status == 0 ? buffer : "unknown error";
}
}  // namespace io_detail

/// Errc::io with `path` and the text of `error_number` (errno).
[[nodiscard]] inline Error system_error(const char* what, std::string_view path, int error_number) noexcept {
  char buffer[128] = {};
  return Error{Errc::io, what, path, io_detail::error_text(::strerror_r(error_number, buffer, sizeof buffer), buffer)};
}

/// The same error with `context` (a file, a tensor) put before its place: "context: where".
[[nodiscard]] inline Error in_context(const Error& error, std::string_view context) noexcept {
  Error outer = error;
  outer.where = context;
  if (!error.where.empty()) outer.where << ": " << error.where.c_str();
  return outer;
}

}  // namespace CBQ_ABI
}  // namespace cbq
