// SPDX-License-Identifier: Apache-2.0
#pragma once

// The executor of all benchmarks: OpenMP where the build has it, else the calling thread.

#include <cstddef>

#include <cbq/core/executor.hpp>

#if defined(_OPENMP)
#include <cbq/executor/openmp.hpp>
#endif

namespace bench {

#if defined(_OPENMP)
using Threads = cbq::OpenMpExecutor;
[[nodiscard]] inline Threads threads(std::size_t count) {
  return {.threads = static_cast<int>(count)};
}
#else
using Threads = cbq::SerialExecutor;
[[nodiscard]] inline Threads threads(std::size_t) {
  return {};
}
#endif

}  // namespace bench
