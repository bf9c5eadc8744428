// SPDX-License-Identifier: Apache-2.0
#pragma once

// The threads of the tool: OpenMP's where CMake found it, otherwise the calling thread alone.

#include <cstddef>
#include <thread>

#include <cbq/core/cpu.hpp>
#include <cbq/core/executor.hpp>

#if defined(CBQ_LLAMA_OPENMP)
#include <cbq/executor/openmp.hpp>
#endif

namespace cbq_llama {

#if defined(CBQ_LLAMA_OPENMP)
using ToolExecutor = cbq::OpenMpExecutor;
/// Threads that OpenMP offers: one per logical CPU of this process unless OMP_NUM_THREADS says otherwise.
[[nodiscard]] inline std::size_t available_threads() {
  return static_cast<std::size_t>(omp_get_max_threads());
}
[[nodiscard]] inline ToolExecutor make_executor(std::size_t threads) {
  return {.threads = static_cast<int>(threads)};
}
#else
using ToolExecutor = cbq::SerialExecutor;
[[nodiscard]] inline std::size_t available_threads() {
  return 1;
}
[[nodiscard]] inline ToolExecutor make_executor(std::size_t) {
  return {};
}
#endif

/// On what a model runs.
struct Machine {
  std::size_t threads = 1;
  cbq::Isa isa = cbq::detect();
};

}  // namespace cbq_llama
