// SPDX-License-Identifier: Apache-2.0
#pragma once

// std::bad_alloc as the Error that functions here promise. Readers and writers of files keep names and tables in
// std::string, std::vector and nlohmann::json, and products of Eigen take memory: all throw where it is used up. Built
// without exceptions nothing can be caught, and the C++ library ends the program.

#include <atomic>
#include <cstddef>
#include <new>
#include <string_view>

#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>

namespace cbq {
inline namespace CBQ_ABI {

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

/// executor.for_each_index(count, task) for a task(i) that may throw std::bad_alloc, which an executor cannot be asked
/// to pass on: Errc::out_of_memory naming `where`, after the other tasks have run.
template <Executor E, class Task>
[[nodiscard]] Status for_each_index_or_error(const E& executor, std::size_t count, std::string_view where,
                                             const Task& task) {
  std::atomic<bool> failed = false;
  executor.for_each_index(count, [&](std::size_t i) {
    const Status done = bad_alloc_as_error(where, [&] {
      task(i);
      return Status();
    });
    if (!done) failed.store(true, std::memory_order_relaxed);
  });
  if (failed.load(std::memory_order_relaxed)) return Error{Errc::out_of_memory, "cannot allocate memory", where};
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
