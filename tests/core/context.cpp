// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/context.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cstdint>
#include <limits>
#include <vector>

#include "support/failing_memory.hpp"
#include "support/nn.hpp"

using namespace cbq;

TEST_CASE("A workspace gives aligned, disjoint pieces") {
  Workspace workspace;
  const Workspace::Frame frame(workspace);
  std::vector<std::span<std::uint8_t>> pieces;
  for (const std::size_t size : {1u, 63u, 64u, 65u, 100000u, 7u, 300000u, 1u}) {
    const auto piece = workspace.take<std::uint8_t>(size);
    REQUIRE(piece);
    REQUIRE(piece->size() == size);
    REQUIRE(reinterpret_cast<std::uintptr_t>(piece->data()) % 64 == 0);
    for (std::uint8_t& byte : *piece) byte = static_cast<std::uint8_t>(pieces.size());
    pieces.push_back(*piece);
  }
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    for (const std::uint8_t byte : pieces[i]) REQUIRE(byte == i);
  }
  REQUIRE(workspace.take<float>(0));
}

TEST_CASE("A frame gives back what was taken inside it, and later passes allocate nothing") {
  Workspace workspace;
  const auto pass = [&] {
    const Workspace::Frame outer(workspace);
    const auto first = workspace.take<float>(1000);
    REQUIRE(first);
    const float* inner_data = nullptr;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const Workspace::Frame inner(workspace);
      const auto piece = workspace.take<float>(50000);
      REQUIRE(piece);
      if (repeat > 0) REQUIRE(piece->data() == inner_data);
      inner_data = piece->data();
    }
    return first->data();
  };
  pass();
  const float* second = pass();
  const std::size_t bytes = workspace.bytes();
  for (int repeat = 0; repeat < 3; ++repeat) REQUIRE(pass() == second);
  REQUIRE(workspace.bytes() == bytes);
}

TEST_CASE("A workspace reports sizes it cannot provide and works afterwards") {
  Workspace workspace;
  const Workspace::Frame frame(workspace);
  const auto overflow = workspace.take<double>(std::numeric_limits<std::size_t>::max() / 4);
  REQUIRE_FALSE(overflow);
  CHECK(overflow.error().code == Errc::bad_shape);
  support::fail_allocation_after(0);
  const auto refused = workspace.take<std::byte>(100);
  REQUIRE(support::stop_failing_allocations());
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::out_of_memory);
  CHECK_FALSE(workspace.take_matrix(std::size_t{1} << 40, std::size_t{1} << 40));
  REQUIRE(workspace.take<float>(10));
}

TEST_CASE("Row blocks cover every row once") {
  for (const std::size_t count : {0u, 1u, 15u, 16u, 17u, 33u, 160u}) {
    std::vector<int> seen(count);
    for_each_row_block(support::ThreadExecutor{}, count, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) ++seen[r];
    });
    for (const int times : seen) REQUIRE(times == 1);
  }
}
