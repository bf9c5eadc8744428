// SPDX-License-Identifier: Apache-2.0
#include <catch2/catch_test_macros.hpp>

#ifdef CBQ_TEST_TBB

#include <cbq/executor/tbb.hpp>

#include <atomic>
#include <cstddef>
#include <vector>

TEST_CASE("oneTBB calls every index once") {
  const cbq::TbbExecutor executor;
  CHECK(executor.concurrency() >= 1);
  for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{1001}}) {
    CAPTURE(count);
    std::vector<std::atomic<int>> calls(count);
    executor.for_each_index(count, [&](std::size_t i) { ++calls[i]; });
    std::size_t once = 0;
    for (const auto& call : calls) once += call == 1 ? 1u : 0u;
    CHECK(once == count);
  }
}

TEST_CASE("an arena limits the concurrency of oneTBB") {
  oneapi::tbb::task_arena arena(1);
  arena.execute([] { CHECK(cbq::TbbExecutor{}.concurrency() == 1); });
}

#else
TEST_CASE("oneTBB calls every index once") {
  SKIP("built without oneTBB");
}
#endif
