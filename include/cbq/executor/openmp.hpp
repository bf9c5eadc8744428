// SPDX-License-Identifier: Apache-2.0
#pragma once

// OpenMpExecutor: cbq's work on OpenMP threads. Include it in files compiled with -fopenmp (CMake: cbq::openmp). Each
// thread gets one contiguous range of indices, so that a thread streams through one part of the weights. Called from
// inside a parallel region it runs on the calling thread, unless the host enabled nesting.

#ifndef _OPENMP
#error "[cbq] <cbq/executor/openmp.hpp> needs OpenMP: compile with -fopenmp or link cbq::openmp"
#endif

#include <omp.h>

#include <cstddef>

#include <cbq/core/executor.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Runs tasks on `threads` OpenMP threads; 0 means as many as OpenMP would use. Tasks must not throw: an exception ends
/// the program, as it may not leave a parallel region.
struct OpenMpExecutor {
  int threads = 0;

  [[nodiscard]] std::size_t concurrency() const noexcept {
    return static_cast<std::size_t>(threads > 0 ? threads : omp_get_max_threads());
  }

  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const noexcept {
    const std::size_t wanted = count < concurrency() ? count : concurrency();
    if (wanted <= 1) {
      for (std::size_t index = 0; index < count; ++index) task(index);
      return;
    }
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(wanted))
    for (std::size_t index = 0; index < count; ++index) task(index);
  }
};

static_assert(Executor<OpenMpExecutor>);

}  // namespace CBQ_ABI
}  // namespace cbq
