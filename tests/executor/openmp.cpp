// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch_test_macros.hpp>

#ifdef CBQ_TEST_OPENMP

#include <cbq/executor/openmp.hpp>

#include <atomic>
#include <cstddef>
#include <vector>

TEST_CASE("OpenMP calls every index once, whatever the number of threads") {
  for (const int threads : {0, 1, 2, 3, 8}) {
    const cbq::OpenMpExecutor executor{threads};
    for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{1001}}) {
      CAPTURE(threads, count);
      std::vector<std::atomic<int>> calls(count);
      executor.for_each_index(count, [&](std::size_t i) { ++calls[i]; });
      std::size_t once = 0;
      for (const auto& call : calls) once += call == 1 ? 1u : 0u;
      CHECK(once == count);
    }
  }
}

TEST_CASE("each OpenMP thread has one contiguous range") {
  std::vector<int> owner(100, -1);
  cbq::OpenMpExecutor{4}.for_each_index(owner.size(), [&](std::size_t i) { owner[i] = omp_get_thread_num(); });
  int changes = 0;
  for (std::size_t i = 1; i < owner.size(); ++i) changes += owner[i] != owner[i - 1] ? 1 : 0;
  CHECK(changes <= 3);
  CHECK(owner[0] == 0);
}

TEST_CASE("concurrency is the wanted number of threads, or OpenMP's") {
  CHECK(cbq::OpenMpExecutor{3}.concurrency() == 3);
  CHECK(cbq::OpenMpExecutor{}.concurrency() == static_cast<std::size_t>(omp_get_max_threads()));
  CHECK(cbq::OpenMpExecutor{-1}.concurrency() >= 1);
}

TEST_CASE("calls from inside a parallel region still call every index") {
  std::vector<std::atomic<int>> calls(64);
  const cbq::OpenMpExecutor executor{2};
  executor.for_each_index(2, [&](std::size_t outer) {
    executor.for_each_index(32, [&](std::size_t inner) { ++calls[32 * outer + inner]; });
  });
  for (const auto& call : calls) CHECK(call == 1);
}

#else
TEST_CASE("OpenMP calls every index once, whatever the number of threads") {
  SKIP("built without OpenMP");
}
#endif
