// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gptq_reader.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <cbq/io/checkpoint.hpp>

#include "support/files.hpp"
#include "support/stored_matrices.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::GptqZeros;
using cbq::Zero;
using support::equal;
using support::grid_of;
using support::Matrix;
using support::message;

namespace {

cbq::Checkpoint written(const support::ScratchFolder& folder, const Matrix& m, GptqZeros zeros) {
  std::vector<cbq::TensorPlan> plan;
  REQUIRE(cbq::plan_gptq(cbq::plan_of("m", m.view(), m.grid), plan));
  auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
  REQUIRE(writer);
  REQUIRE(cbq::write_gptq(*writer, "m", m.view(), m.grid, zeros));
  REQUIRE(writer->commit());
  auto file = cbq::Checkpoint::open(folder / "m.safetensors");
  REQUIRE(file);
  return *std::move(file);
}

}  // namespace

TEST_CASE("codes, scales and zero points of GPTQ come back exactly") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const int group : {0, 32, 64}) {
      for (const Zero zero : {Zero::symmetric, Zero::affine}) {
        for (const auto& [outputs, inputs] : {std::pair<std::size_t, std::size_t>{32, 96}, {96, 32}, {64, 64}}) {
          const Matrix m = support::random_matrix(outputs, inputs, grid_of(bits, group, zero));
          CAPTURE(bits, group, zero == Zero::affine, outputs, inputs);
          const support::ScratchFolder folder;
          const cbq::Checkpoint file = written(folder, m, GptqZeros::v2);
          const auto read = cbq::read_gptq(file, "m", m.grid, inputs, GptqZeros::v2);
          REQUIRE(message(read) == "success");
          CHECK(equal(read->view().codes, m.codes));
          CHECK(equal(read->view().scales, m.scales));
          CHECK(equal(read->view().zeros, m.zeros));
        }
      }
    }
  }
}

TEST_CASE("zero points of symmetric weights tell their version") {
  for (const GptqZeros form : {GptqZeros::v1, GptqZeros::v2}) {
    Matrix m = support::random_matrix(32, 64, grid_of(3, 32, Zero::symmetric));
    const support::ScratchFolder folder;
    const cbq::Checkpoint file = written(folder, m, form);
    const auto found = cbq::find_symmetric_zeros(*file.tensor("m.qzeros"), 3, 32);
    REQUIRE(found);
    CHECK(found->symmetric);
    CHECK(found->form == form);
    CHECK(cbq::read_gptq(file, "m", m.grid, 64, form));
    const GptqZeros other = form == GptqZeros::v1 ? GptqZeros::v2 : GptqZeros::v1;
    CHECK_THAT(message(cbq::read_gptq(file, "m", m.grid, 64, other)), ContainsSubstring("outside the grid"));
    CHECK_FALSE(cbq::find_symmetric_zeros(*file.tensor("m.qzeros"), 4, 32));
  }
  Matrix m = support::random_matrix(8, 32, grid_of(4, 32, Zero::affine));
  m.zeros = {8, 8, 8, 8, 8, 8, 8, 9};
  const support::ScratchFolder folder;
  const cbq::Checkpoint file = written(folder, m, GptqZeros::v1);
  CHECK_FALSE(cbq::find_symmetric_zeros(*file.tensor("m.qzeros"), 4, 8)->symmetric);
  const auto read = cbq::read_gptq(file, "m", m.grid, 32, GptqZeros::v1);
  REQUIRE(read);
  CHECK(equal(read->view().zeros, m.zeros));
}

TEST_CASE("tensors that do not fit, and other orders of inputs, are refused") {
  const Matrix m = support::random_matrix(8, 64, grid_of(4, 32, Zero::affine));
  const support::ScratchFolder folder;
  (void)written(folder, m, GptqZeros::v2);
  const std::string whole = support::read_text(folder / "m.safetensors");
  const auto outcome = [&](const std::function<void(std::string&)>& change) {
    std::string text = whole;
    change(text);
    const auto file = cbq::Safetensors::parse(std::as_bytes(std::span(text.data(), text.size())));
    return file ? message(cbq::read_gptq(*file, "m", m.grid, 64, GptqZeros::v2)) : message(file);
  };
  const auto replace = [](std::string& text, std::string_view from, std::string_view to) {
    const std::size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    text.replace(at, from.size(), to);
  };
  CHECK(outcome([](std::string&) {}) == "success");
  CHECK_THAT(outcome([&](std::string& t) { replace(t, "m.qzeros", "m.other_"); }), ContainsSubstring("lacks a tensor"));
  CHECK(outcome([&](std::string& t) { replace(t, "m.g_idx", "m.other"); }) == "success");
  CHECK_THAT(outcome([&](std::string& t) { replace(t, "[2,8]", "[8,2]"); }), ContainsSubstring("m.scales: a tensor"));
  CHECK_THAT(outcome([&](std::string& t) { replace(t, "[2,1]", "[1,2]"); }), ContainsSubstring("m.qzeros: a tensor"));
  const auto index = cbq::Checkpoint::open(folder / "m.safetensors");
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), sizeof header);
  const std::size_t data = sizeof header + header;
  const std::size_t at = data + index->find("m.g_idx")->offset;
  CHECK_THAT(outcome([&](std::string& t) { t[at + 4 * 31] = 1; }), ContainsSubstring("input 31 in group 1"));
  CHECK_FALSE(cbq::read_gptq(*index, "m", m.grid, 32, GptqZeros::v2));
  CHECK_FALSE(cbq::read_gptq(*index, "m", grid_of(8, 32, Zero::affine), 64, GptqZeros::v2));
  CHECK_FALSE(cbq::read_gptq(*index, "other", m.grid, 64, GptqZeros::v2));
  // v1 of these words would have zero points of 16.
  const std::size_t zeros = data + index->find("m.qzeros")->offset;
  std::string text = whole;
  std::memset(text.data() + zeros, 0xff, 4);
  const auto file = cbq::Safetensors::parse(std::as_bytes(std::span(text.data(), text.size())));
  REQUIRE(file);
  CHECK(cbq::read_gptq(*file, "m", m.grid, 64, GptqZeros::v2));
  CHECK_THAT(message(cbq::read_gptq(*file, "m", m.grid, 64, GptqZeros::v1)), ContainsSubstring("at most 15"));
}
