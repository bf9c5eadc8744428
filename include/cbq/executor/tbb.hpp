// SPDX-License-Identifier: Apache-2.0
#pragma once

// TbbExecutor: cbq's work on oneTBB threads, in the arena of the caller (CMake: cbq::tbb). The static partitioner gives
// each thread contiguous indices and the same ones call after call, which keeps weights in the cache of the core that
// used them.

#if !__has_include(<oneapi/tbb/parallel_for.h>)
#error "[cbq] <cbq/executor/tbb.hpp> needs oneTBB 2021 or later: install it or link cbq::tbb"
#endif

#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>

#include <cstddef>

#include <cbq/core/executor.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Runs tasks in the current task arena; limit threads with oneapi::tbb::task_arena or global_control. Tasks must not
/// throw.
struct TbbExecutor {
  [[nodiscard]] std::size_t concurrency() const noexcept {
    return static_cast<std::size_t>(oneapi::tbb::this_task_arena::max_concurrency());
  }

  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const noexcept {
    if (count == 0) return;
    oneapi::tbb::parallel_for(
        oneapi::tbb::blocked_range<std::size_t>(0, count),
        [&task](const oneapi::tbb::blocked_range<std::size_t>& range) {
          for (std::size_t index = range.begin(); index != range.end(); ++index) task(index);
        },
        oneapi::tbb::static_partitioner{});
  }
};

static_assert(Executor<TbbExecutor>);

}  // namespace CBQ_ABI
}  // namespace cbq
