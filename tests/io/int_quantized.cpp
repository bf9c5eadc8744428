// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/int_quantized.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <string>
#include <vector>

#include <cbq/io/checkpoint.hpp>

#include "support/files.hpp"
#include "support/stored_matrices.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Zero;
using support::equal;
using support::grid_of;
using support::Matrix;
using support::message;

namespace {

cbq::Status write(const std::string& path, const Matrix& m) {
  std::vector<cbq::TensorPlan> plan;
  const cbq::Status planned = cbq::plan_int_quantized(cbq::plan_of("m", m.view(), m.grid), plan);
  if (!planned) return planned;
  auto writer = cbq::SafetensorsWriter::create(path, plan);
  REQUIRE(writer);
  if (const cbq::Status written = cbq::write_int_quantized(*writer, "m", m.view(), m.grid); !written) return written;
  return writer->commit();
}

}  // namespace

TEST_CASE("codes are signed bytes, whatever their width") {
  Matrix m = support::random_matrix(2, 4, grid_of(4, 4, Zero::affine));
  m.codes = {0, 7, 8, 15, 1, 2, 3, 4};
  m.zeros = {0, 15};
  const support::ScratchFolder folder;
  REQUIRE(write(folder / "m.safetensors", m));
  const auto file = cbq::Checkpoint::open(folder / "m.safetensors");
  REQUIRE(file);
  const auto at = [&](const char* name, std::size_t i) {
    return static_cast<std::int8_t>(file->tensor(name)->bytes[i]);
  };
  CHECK(at("m.weight", 0) == -8);
  CHECK(at("m.weight", 1) == -1);
  CHECK(at("m.weight", 2) == 0);
  CHECK(at("m.weight", 3) == 7);
  CHECK(at("m.weight", 4) == -7);
  CHECK(at("m.weight_zero_point", 0) == -8);
  CHECK(at("m.weight_zero_point", 1) == 7);
}

TEST_CASE("codes, scales and zero points of int-quantized come back exactly") {
  for (const int bits : {2, 3, 4, 5, 8}) {
    for (const int group : {0, 16}) {
      for (const Zero zero : {Zero::symmetric, Zero::affine}) {
        const Matrix m = support::random_matrix(7, 48, grid_of(bits, group, zero));
        CAPTURE(bits, group, zero == Zero::affine);
        const support::ScratchFolder folder;
        REQUIRE(write(folder / "m.safetensors", m));
        const auto file = cbq::Checkpoint::open(folder / "m.safetensors");
        const auto read = cbq::read_int_quantized(*file, "m", m.grid);
        REQUIRE(message(read) == "success");
        CHECK(equal(read->view().codes, m.codes));
        CHECK(equal(read->view().scales, m.scales));
        CHECK(equal(read->view().zeros, m.zeros));
        if (bits == 8) CHECK_FALSE(cbq::read_int_quantized(*file, "m", grid_of(4, group, zero)));
        CHECK_FALSE(cbq::read_int_quantized(*file, "m", grid_of(bits, 24, zero)));
      }
    }
  }
}

TEST_CASE("zero points of symmetric grids are absent or 0") {
  const support::ScratchFolder folder;
  const auto outcome = [&](std::int8_t zero) {
    const std::vector<cbq::TensorPlan> plan = {{"m.weight", cbq::Dtype::i8, {.rank = 2, .sizes = {1, 2}}},
                                               {"m.weight_scale", cbq::Dtype::f32, {.rank = 2, .sizes = {1, 1}}},
                                               {"m.weight_zero_point", cbq::Dtype::i8, {.rank = 2, .sizes = {1, 1}}}};
    auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
    const std::int8_t codes[2] = {-128, 127};
    const float scale = 0.5f;
    REQUIRE(writer->write("m.weight", std::span<const std::int8_t>(codes)));
    REQUIRE(writer->write("m.weight_scale", std::span<const float>(&scale, 1)));
    REQUIRE(writer->write("m.weight_zero_point", std::span<const std::int8_t>(&zero, 1)));
    REQUIRE(writer->commit());
    return message(
        cbq::read_int_quantized(*cbq::Checkpoint::open(folder / "m.safetensors"), "m", grid_of(8, 0, Zero::symmetric)));
  };
  CHECK(outcome(0) == "success");
  CHECK_THAT(outcome(1), ContainsSubstring("a zero point on a symmetric grid"));
}

TEST_CASE("a matrix that int-quantized cannot hold is refused") {
  const support::ScratchFolder folder;
  const auto outcome = [&](const Matrix& m) { return message(write(folder / "m", m)); };
  CHECK_THAT(outcome(support::random_matrix(2, 40, grid_of(4, 32, Zero::symmetric))), ContainsSubstring("40 inputs"));
  Matrix m = support::random_matrix(2, 32, grid_of(4, 32, Zero::affine));
  m.codes[40] = 16;
  CHECK_THAT(outcome(m), ContainsSubstring("row 1"));
  m = support::random_matrix(2, 32, grid_of(4, 32, Zero::affine));
  m.zeros[1] = 16;
  CHECK_THAT(outcome(m), ContainsSubstring("m.weight_zero_point"));
  CHECK(folder.entries() == 0);
}
