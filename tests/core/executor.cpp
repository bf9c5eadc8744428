// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/executor.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <initializer_list>
#include <thread>
#include <vector>

namespace {

// The eight lines that a host with threads of its own writes.
struct ThreadPerHalf {
  [[nodiscard]] std::size_t concurrency() const { return 2; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    std::thread odd([&] {
      for (std::size_t i = 1; i < count; i += 2) task(i);
    });
    for (std::size_t i = 0; i < count; i += 2) task(i);
    odd.join();
  }
};
struct NoConcurrency {
  template <class Task>
  void for_each_index(std::size_t, Task&&) const {}
};

}  // namespace

TEMPLATE_TEST_CASE("an executor calls every index once", "", cbq::SerialExecutor, ThreadPerHalf) {
  STATIC_REQUIRE(cbq::Executor<TestType>);
  for (const std::size_t count : std::initializer_list<std::size_t>{0, 1, 2, 7, 1000}) {
    std::vector<int> calls(count + 1);
    TestType{}.for_each_index(count, [&](std::size_t i) { ++calls[i]; });
    CHECK(calls == [&] {
      std::vector<int> once(count + 1, 1);
      once[count] = 0;
      return once;
    }());
  }
  CHECK(TestType{}.concurrency() >= 1);
}

TEST_CASE("the concept refuses what is not an executor") {
  STATIC_REQUIRE(!cbq::Executor<int>);
  STATIC_REQUIRE(!cbq::Executor<NoConcurrency>);
}
