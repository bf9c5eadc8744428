// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/stored_input_grid.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <cbq/io/checkpoint.hpp>

#include "support/files.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Dtype;
using cbq::Grid;
using cbq::StaticGrid;
using cbq::Zero;
using support::message;

namespace {

Grid grid_of(int bits, Zero zero) {
  return {.bits = bits, .granularity = cbq::Granularity::per_tensor, .zero = zero};
}

// The two tensors, each replaceable; an empty name leaves one out.
struct Parts {
  cbq::TensorPlan scale{"m.input_scale", Dtype::f32, {.rank = 1, .sizes = {1}}};
  cbq::TensorPlan zero{"m.input_zero_point", Dtype::i8, {.rank = 1, .sizes = {1}}};
  std::vector<std::uint8_t> scale_bytes = {0, 0, 0x80, 0x3f};  // 1.0f
  std::int8_t zero_point = -5;

  [[nodiscard]] cbq::Result<StaticGrid> read(const Grid& grid = grid_of(4, Zero::affine)) const {
    const support::ScratchFolder folder;
    std::vector<cbq::TensorPlan> plan;
    for (const cbq::TensorPlan* part : {&scale, &zero}) {
      if (!part->name.empty()) plan.push_back(*part);
    }
    auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
    for (const cbq::TensorPlan& part : plan) {
      std::vector<std::byte> bytes(*cbq::byte_count(part.shape, part.dtype));
      for (std::size_t i = 0; i < bytes.size(); ++i) {
        bytes[i] = part.name == zero.name ? static_cast<std::byte>(zero_point)
                                          : static_cast<std::byte>(scale_bytes[i % scale_bytes.size()]);
      }
      REQUIRE(writer->write(part.name, bytes));
    }
    REQUIRE(writer->commit());
    const auto checkpoint = cbq::Checkpoint::open(folder / "m.safetensors");
    REQUIRE(checkpoint);
    return cbq::read_input_grid(*checkpoint, "m", grid);
  }
  [[nodiscard]] std::string outcome(const Grid& grid = grid_of(4, Zero::affine)) const { return message(read(grid)); }
};

}  // namespace

TEST_CASE("a static grid comes back exactly, with its zero point in the form's signed numbers") {
  const support::ScratchFolder folder;
  struct Case {
    Grid grid;
    StaticGrid fixed;
    int stored;
  };
  for (const Case& one :
       {Case{grid_of(8, Zero::symmetric), {0.1f, 0}, 0}, Case{grid_of(4, Zero::symmetric), {}, 0},
        Case{grid_of(4, Zero::affine), {1e30f / 3, 0}, -8}, Case{grid_of(4, Zero::affine), {0x1p-126f, 15}, 7}}) {
    CAPTURE(one.grid.bits, one.fixed.zero);
    std::vector<cbq::TensorPlan> plan;
    cbq::plan_input_grid("m", one.grid, plan);
    CHECK(plan.size() == (one.grid.zero == Zero::affine ? 2 : 1));
    {
      auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
      REQUIRE(writer);
      REQUIRE(cbq::write_input_grid(*writer, "m", one.grid, one.fixed));
      REQUIRE(writer->commit());
    }
    const auto checkpoint = cbq::Checkpoint::open(folder / "m.safetensors");
    REQUIRE(checkpoint);
    const auto read = cbq::read_input_grid(*checkpoint, "m", one.grid);
    REQUIRE(read);
    CHECK(*read == one.fixed);
    if (const cbq::TensorView* zero = checkpoint->find("m.input_zero_point"); zero != nullptr) {
      CHECK(static_cast<std::int8_t>(zero->bytes[0]) == one.stored);
    }
  }
}

TEST_CASE("another program's tensors are read where they fit") {
  Parts parts;
  const auto plain = parts.read();
  REQUIRE(plain);
  CHECK(*plain == StaticGrid{1.0f, 3});
  parts.scale.dtype = Dtype::f16;
  parts.scale_bytes = {0, 0x38};  // 0.5
  parts.scale.shape.rank = 0;
  parts.zero_point = 0;
  const auto half = parts.read(grid_of(8, Zero::symmetric));
  REQUIRE(half);
  CHECK(*half == StaticGrid{0.5f, 0});
}

TEST_CASE("tensors that are no static grid are refused") {
  Parts parts;
  SECTION("a scale is missing") {
    parts.scale.name.clear();
    CHECK_THAT(parts.outcome(), ContainsSubstring("input_scale"));
  }
  SECTION("a zero point is missing") {
    parts.zero.name.clear();
    CHECK_THAT(parts.outcome(), ContainsSubstring("input_zero_point"));
    CHECK(parts.outcome(grid_of(4, Zero::symmetric)) == "success");
  }
  SECTION("a scale for each of several things") {
    parts.scale.shape.sizes[0] = 2;
    CHECK_THAT(parts.outcome(), ContainsSubstring("m.input_scale"));
  }
  SECTION("a scale of another type") {
    parts.scale.dtype = Dtype::i32;
    CHECK_THAT(parts.outcome(), ContainsSubstring("I32"));
  }
  SECTION("a zero point of another type") {
    parts.zero.dtype = Dtype::i32;
    CHECK_THAT(parts.outcome(), ContainsSubstring("m.input_zero_point"));
  }
  SECTION("a zero point outside the grid") {
    parts.zero_point = 8;
    CHECK_THAT(parts.outcome(), ContainsSubstring("zero point lies outside"));
    CHECK_THAT(parts.outcome(grid_of(4, Zero::symmetric)), ContainsSubstring("zero point lies outside"));
  }
  SECTION("a scale that is no number, or negative") {
    parts.scale_bytes = {0, 0, 0xc0, 0x7f};
    CHECK_THAT(parts.outcome(), ContainsSubstring("NaN"));
    parts.scale_bytes = {0, 0, 0x80, 0xbf};
    CHECK_THAT(parts.outcome(), ContainsSubstring("positive"));
  }
}

TEST_CASE("a grid that is none is not written") {
  const support::ScratchFolder folder;
  std::vector<cbq::TensorPlan> plan;
  const Grid grid = grid_of(4, Zero::symmetric);
  cbq::plan_input_grid("m", grid, plan);
  auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
  REQUIRE(writer);
  const StaticGrid infinite = {std::numeric_limits<float>::infinity(), 0};
  CHECK_THAT(message(cbq::write_input_grid(*writer, "m", grid, infinite)), ContainsSubstring("static scale"));
  CHECK_THAT(message(cbq::write_input_grid(*writer, "m", grid, {1.0f, 1})), ContainsSubstring("zero point"));
}
