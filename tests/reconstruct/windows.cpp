// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/windows.hpp>

#include <catch2/catch_test_macros.hpp>

#include <vector>

using cbq::plan_windows;
using cbq::Window;
using cbq::WindowEnds;

TEST_CASE("Windows slide by their size less their overlap") {
  CHECK(plan_windows(5, {.size = 2, .overlap = 1}).value() ==
        std::vector<Window>{{0, 2, 1}, {1, 2, 1}, {2, 2, 1}, {3, 2, 2}});
  CHECK(plan_windows(5, {.size = 2, .overlap = 0}).value() == std::vector<Window>{{0, 2, 2}, {2, 2, 2}, {4, 1, 1}});
  CHECK(plan_windows(4, {.size = 3, .overlap = 2}).value() == std::vector<Window>{{0, 3, 1}, {1, 3, 3}});
  CHECK(plan_windows(2, {.size = 1, .overlap = 0}).value() == std::vector<Window>{{0, 1, 1}, {1, 1, 1}});
  CHECK(plan_windows(2, {.size = 4, .overlap = 1}).value() == std::vector<Window>{{0, 2, 2}});
}

TEST_CASE("Growing windows begin and end with one block") {
  CHECK(plan_windows(4, {.size = 2, .overlap = 1, .ends = WindowEnds::growing}).value() ==
        std::vector<Window>{{0, 1, 0}, {0, 2, 1}, {1, 2, 1}, {2, 2, 1}, {3, 1, 1}});
}

TEST_CASE("Shrinking windows end with one block") {
  CHECK(plan_windows(4, {.size = 3, .overlap = 2, .ends = WindowEnds::shrinking}).value() ==
        std::vector<Window>{{0, 3, 1}, {1, 3, 1}, {2, 2, 1}, {3, 1, 1}});
  CHECK(plan_windows(2, {.size = 3, .overlap = 2, .ends = WindowEnds::shrinking}).value() ==
        std::vector<Window>{{0, 2, 1}, {1, 1, 1}});
}

TEST_CASE("Every block is trained and becomes final once, in order") {
  for (const WindowEnds ends : {WindowEnds::fixed, WindowEnds::growing, WindowEnds::shrinking}) {
    for (std::size_t blocks = 1; blocks < 9; ++blocks) {
      for (std::size_t size = 1; size < 5; ++size) {
        for (std::size_t overlap = 0; overlap < size; ++overlap) {
          CAPTURE(blocks, size, overlap);
          std::size_t finished = 0;
          const std::vector<Window> windows = plan_windows(blocks, {size, overlap, ends}).value();
          for (const Window& window : windows) {
            CHECK(window.first == finished);
            CHECK(window.count >= 1);
            CHECK(window.count <= size);
            CHECK(window.finished <= window.count);
            finished += window.finished;
          }
          CHECK(finished == blocks);
        }
      }
    }
  }
}

TEST_CASE("Windows that make no sense are refused") {
  CHECK_FALSE(plan_windows(0, {}));
  CHECK_FALSE(plan_windows(3, {.size = 0, .overlap = 0}));
  CHECK_FALSE(plan_windows(3, {.size = 2, .overlap = 2}));
}
