// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/awq.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
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
  if (const cbq::Status planned = cbq::plan_awq(cbq::plan_of("m", m.view(), m.grid), plan); !planned) return planned;
  auto writer = cbq::SafetensorsWriter::create(path, plan);
  REQUIRE(writer);
  if (const cbq::Status written = cbq::write_awq(*writer, "m", m.view(), m.grid); !written) return written;
  return writer->commit();
}

}  // namespace

TEST_CASE("a word holds eight outputs of one input in AutoAWQ's order") {
  Matrix m = support::random_matrix(8, 4, grid_of(4, 2, Zero::affine));
  for (std::size_t n = 0; n < 8; ++n) {
    for (std::size_t k = 0; k < 4; ++k) m.codes[4 * n + k] = static_cast<std::uint8_t>((n + k) % 16);
    m.zeros[2 * n] = static_cast<std::uint8_t>(n);
    m.zeros[2 * n + 1] = static_cast<std::uint8_t>(15 - n);
  }
  const support::ScratchFolder folder;
  REQUIRE(write(folder / "m.safetensors", m));
  const auto file = cbq::Checkpoint::open(folder / "m.safetensors");
  REQUIRE(file);
  const auto word = [&](const char* name, std::size_t i) {
    return cbq::load_unaligned<std::uint32_t>(file->tensor(name)->bytes.data() + 4 * i);
  };
  CHECK(word("m.qweight", 0) == 0x75316420);
  CHECK(word("m.qweight", 1) == 0x86427531);
  CHECK(word("m.qweight", 3) == 0xa8649753);
  CHECK(word("m.qzeros", 0) == 0x75316420);
  CHECK(word("m.qzeros", 1) == 0x8ace9bdf);
  CHECK(cbq::same_shape(file->tensor("m.scales")->shape, {.rank = 2, .sizes = {2, 8}}));
}

TEST_CASE("codes, scales and zero points of AWQ come back exactly") {
  for (const Zero zero : {Zero::symmetric, Zero::affine}) {
    for (const auto& [outputs, inputs] : {std::pair<std::size_t, std::size_t>{8, 96}, {136, 32}, {256, 64}}) {
      const Matrix m = support::random_matrix(outputs, inputs, grid_of(4, 32, zero));
      const support::ScratchFolder folder;
      REQUIRE(write(folder / "m.safetensors", m));
      const auto file = cbq::Checkpoint::open(folder / "m.safetensors");
      REQUIRE(file);
      CHECK(cbq::are_awq_eights(*file->tensor("m.qzeros")) == (zero == Zero::symmetric));
      const auto read = cbq::read_awq(*file, "m", m.grid);
      REQUIRE(message(read) == "success");
      CHECK(equal(read->view().codes, m.codes));
      CHECK(equal(read->view().scales, m.scales));
      CHECK(equal(read->view().zeros, m.zeros));
      if (zero == Zero::affine) CHECK_FALSE(cbq::read_awq(*file, "m", grid_of(4, 32, Zero::symmetric)));
      CHECK_FALSE(cbq::read_awq(*file, "m", grid_of(4, 16, zero)));
      CHECK_FALSE(cbq::read_awq(*file, "other", m.grid));
    }
  }
}

TEST_CASE("AWQ refuses what it has no words for") {
  const support::ScratchFolder folder;
  const auto outcome = [&](std::size_t outputs, std::size_t inputs, const cbq::Grid& grid) {
    return message(write(folder / "m", support::random_matrix(outputs, inputs, grid)));
  };
  CHECK_THAT(outcome(8, 32, grid_of(3, 32, Zero::affine)), ContainsSubstring("m: AWQ cannot hold this grid"));
  CHECK_THAT(outcome(8, 32, grid_of(4, 0, Zero::affine)), ContainsSubstring("4 bits in groups"));
  CHECK_THAT(outcome(8, 40, grid_of(4, 32, Zero::affine)), ContainsSubstring("40 inputs"));
  CHECK_THAT(outcome(12, 32, grid_of(4, 32, Zero::affine)), ContainsSubstring("a multiple of 8"));
  Matrix m = support::random_matrix(8, 32, grid_of(4, 32, Zero::affine));
  m.codes[3] = 16;
  CHECK_THAT(message(write(folder / "m", m)), ContainsSubstring("outside the grid"));
  CHECK(folder.entries() == 0);
}
