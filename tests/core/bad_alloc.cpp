// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/bad_alloc.hpp>

#include <catch2/catch_test_macros.hpp>

#include <array>
#include <atomic>
#include <cstddef>
#include <new>
#include <thread>
#include <vector>

#include "support/files.hpp"

using cbq::Errc;
using cbq::Result;
using cbq::Status;
using support::message;

namespace {

// Each index on a thread of its own: what a task throws there would end the program.
struct ThreadPerIndex {
  static std::size_t concurrency() { return 4; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < count; ++i) threads.emplace_back([&task, i] { task(i); });
    for (std::thread& thread : threads) thread.join();
  }
};

}  // namespace

TEST_CASE("work that runs out of memory returns an error, and other results pass") {
  CHECK(*cbq::bad_alloc_as_error("w", [] { return Result<int>(3); }) == 3);
  const Result<int> other = cbq::bad_alloc_as_error("w", []() -> Result<int> {
    return cbq::Error{Errc::bad_shape, "no", "x"};
  });
  CHECK(message(other) == "x: no");
  const Result<int> failed = cbq::bad_alloc_as_error("w", []() -> Result<int> { throw std::bad_alloc(); });
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::out_of_memory);
  CHECK(message(failed) == "w: cannot allocate memory");
}

TEST_CASE("a task that runs out of memory is an error after the others have run, on any executor") {
  std::array<std::atomic<int>, 5> calls = {};
  const auto task = [&](std::size_t i) {
    ++calls[i];
    if (i == 1 || i == 3) throw std::bad_alloc();
  };
  CHECK(message(cbq::for_each_index_or_error(ThreadPerIndex(), 5, "w", task)) == "w: cannot allocate memory");
  CHECK(message(cbq::for_each_index_or_error(cbq::SerialExecutor(), 5, "w", task)) == "w: cannot allocate memory");
  for (const std::atomic<int>& count : calls) CHECK(count == 2);
  CHECK(cbq::for_each_index_or_error(ThreadPerIndex(), 1, "w", task));
  CHECK(cbq::for_each_index_or_error(cbq::SerialExecutor(), 0, "w", task));
}
