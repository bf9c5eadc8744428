// SPDX-License-Identifier: Apache-2.0
#pragma once

// Executor: how cbq borrows the host's threads. `for_each_index(n, task)` calls task(i) once for every i in [0, n), in
// any order and on any thread, and returns when all are done. cbq cuts work by shape, never by concurrency(), so
// results do not depend on the executor. Adapters: <cbq/executor/openmp.hpp>, <cbq/executor/tbb.hpp>; or eight lines of
// your own.

#include <concepts>
#include <cstddef>

#include <cbq/config.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The calling thread alone.
struct SerialExecutor {
  [[nodiscard]] static constexpr std::size_t concurrency() noexcept { return 1; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    for (std::size_t index = 0; index < count; ++index) task(index);
  }
};

namespace concepts {
struct ExampleTask {
  void operator()(std::size_t) const noexcept {}
};
}  // namespace concepts

/// `concurrency()` is a hint about how many tasks run at once, never part of a result.
template <class E>
concept Executor = requires(const E& executor, std::size_t count, concepts::ExampleTask task) {
  { executor.concurrency() } -> std::convertible_to<std::size_t>;
  executor.for_each_index(count, task);
};

static_assert(Executor<SerialExecutor>);

}  // namespace CBQ_ABI
}  // namespace cbq
