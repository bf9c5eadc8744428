// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/planned_tensors.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "support/files.hpp"

using support::message;

namespace {

struct Plan {
  std::string name;
};
using Tensors = cbq::io_detail::PlannedTensors<Plan>;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

TEST_CASE("tensors lie in the order of the plan, each with its room, and are found by name") {
  Tensors tensors;
  REQUIRE(tensors.add({"b"}, 5, 4));
  REQUIRE(tensors.add({"c"}, 0, 4));
  REQUIRE(tensors.add({"a"}, 8, 4));
  REQUIRE(tensors.add({"d"}, 3));
  REQUIRE(tensors.sort_names());
  std::vector<std::size_t> offsets, order(tensors.by_name().begin(), tensors.by_name().end());
  for (const Tensors::Slot& slot : tensors.slots()) offsets.push_back(slot.offset);
  CHECK(offsets == std::vector<std::size_t>{0, 8, 8, 16});
  CHECK(order == std::vector<std::size_t>{2, 0, 1, 3});
  CHECK(tensors.data_size() == 19);
  REQUIRE(tensors.planned("c") != nullptr);
  CHECK(tensors.planned("c")->name == "c");
  CHECK(tensors.planned("bb") == nullptr);
  CHECK(Tensors().planned("a") == nullptr);
}

TEST_CASE("pieces go to their places in any order, and what is missing is named") {
  const support::ScratchFolder folder;
  Tensors tensors;
  REQUIRE(tensors.add({"x"}, 4, 8));
  REQUIRE(tensors.add({"y"}, 2, 8));
  REQUIRE(tensors.sort_names());
  auto file = cbq::AtomicFile::create(folder / "f");
  REQUIRE(file);
  REQUIRE(file->write(std::string("HEAD")));
  CHECK(tensors.write(*file, 4, "y", bytes_of("yy")));
  CHECK(tensors.write(*file, 4, "x", bytes_of("x")));
  CHECK(message(tensors.check_complete()) == "x: a planned tensor is not complete (got 1 bytes, wanted 4 bytes)");
  CHECK(message(tensors.write(*file, 4, "x", bytes_of("1234"))) ==
        "x: more bytes than the tensor has (got 1 + 4, wanted 4 bytes)");
  CHECK(message(tensors.write(*file, 4, "z", bytes_of("1"))) == "z: the tensor was not planned");
  CHECK(tensors.write(*file, 4, "x", bytes_of("123")));
  CHECK(tensors.check_complete());
  REQUIRE(file->commit());
  CHECK(support::read_text(folder / "f") == std::string("HEADx123\0\0\0\0yy", 14));
}

TEST_CASE("a name twice and sizes whose sum is no size are refused") {
  constexpr std::size_t largest = std::numeric_limits<std::size_t>::max();
  Tensors tensors;
  REQUIRE(tensors.add({"a"}, 1));
  CHECK(message(tensors.add({"b"}, largest)).starts_with("b: "));
  CHECK(message(tensors.add({"b"}, largest - 1, 4)).starts_with("b: "));
  REQUIRE(tensors.add({"a"}, 1));
  CHECK(message(tensors.sort_names()) == "a: a tensor name is taken");
}
