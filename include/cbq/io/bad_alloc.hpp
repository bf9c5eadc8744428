// SPDX-License-Identifier: Apache-2.0
#pragma once

// bad_alloc_as_error: the readers and writers of files keep names and tables in std::string, std::vector and
// nlohmann::json, which throw where memory is used up; this makes it the Error that functions here promise. Built
// without exceptions nothing can be caught, and the C++ library ends the program.

#include <new>
#include <string_view>

#include <cbq/core/result.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace io_detail {

/// What `work()` returns, a Result or Status, or Errc::out_of_memory naming `where`.
template <class Work>
[[nodiscard]] auto bad_alloc_as_error([[maybe_unused]] std::string_view where, const Work& work) -> decltype(work()) {
#if defined(__cpp_exceptions)
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return Error{Errc::out_of_memory, "cannot allocate memory", where};
  }
#else
  return work();
#endif
}

}  // namespace io_detail
}  // namespace CBQ_ABI
}  // namespace cbq
