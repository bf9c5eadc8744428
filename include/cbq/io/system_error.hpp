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

/// The same error with `context` (a file, a tensor) put before its place: "context: where". Where both do not fit, the
/// start of the context goes: a path's end and the place in the file say more.
[[nodiscard]] inline Error in_context(const Error& error, std::string_view context) noexcept {
  Error outer = error;
  const std::size_t taken = error.where.size + std::size_t{2};
  const std::size_t room = taken < ErrorText::capacity ? ErrorText::capacity - taken : 0;
  constexpr std::string_view gap = "...";
  constexpr std::size_t least = 24;
  outer.where = {};
  if (!error.where.empty() && context.size() > room && room > least) {
    outer.where << gap;
    context.remove_prefix(context.size() - (room - gap.size()));
  }
  outer.where << context;
  if (!error.where.empty()) outer.where << ": " << error.where.c_str();
  return outer;
}

}  // namespace CBQ_ABI
}  // namespace cbq
