// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/compressed_tensors.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "oracle/bits.hpp"
#include "support/files.hpp"
#include "support/stored_matrices.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Dtype;
using cbq::Grid;
using cbq::StoredMatrix;
using cbq::Zero;
using support::equal;
using support::grid_of;
using support::Matrix;
using support::message;
using support::random_matrix;

namespace {

void write_matrix(const std::string& path, const std::string& module, const Matrix& m) {
  std::vector<cbq::TensorPlan> plan;
  REQUIRE(cbq::plan_tensors(cbq::plan_of(module, m.view(), m.grid), plan));
  auto writer = cbq::SafetensorsWriter::create(path, plan);
  REQUIRE(writer);
  REQUIRE(cbq::write_quantized_matrix(*writer, module, m.view(), m.grid));
  REQUIRE(writer->commit());
}

// The four tensors of a 5 x 40 matrix of 4-bit affine codes in groups of 32, each replaceable.
struct Parts {
  cbq::TensorPlan packed{"m.weight_packed", Dtype::i32, {.rank = 2, .sizes = {5, 5}}};
  cbq::TensorPlan scale{"m.weight_scale", Dtype::f16, {.rank = 2, .sizes = {5, 2}}};
  cbq::TensorPlan shape{"m.weight_shape", Dtype::i64, {.rank = 1, .sizes = {2}}};
  cbq::TensorPlan zero{"m.weight_zero_point", Dtype::i32, {.rank = 2, .sizes = {1, 2}}};
  std::int64_t sizes[2] = {5, 40};
  std::uint16_t scale_code = 0x3c00;

  [[nodiscard]] std::string outcome(const Grid& grid = grid_of(4, 32, Zero::affine)) const {
    const support::ScratchFolder folder;
    std::vector<cbq::TensorPlan> plan;
    for (const cbq::TensorPlan* part : {&packed, &scale, &shape, &zero}) {
      if (!part->name.empty()) plan.push_back(*part);
    }
    auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
    for (const cbq::TensorPlan& part : plan) {
      std::vector<std::byte> bytes(*cbq::byte_count(part.shape, part.dtype));
      if (part.name == shape.name && bytes.size() == sizeof sizes) std::memcpy(bytes.data(), sizes, sizeof sizes);
      if (part.name == scale.name && bytes.size() >= 2) std::memcpy(bytes.data() + bytes.size() - 2, &scale_code, 2);
      REQUIRE(writer->write(part.name, bytes));
    }
    REQUIRE(writer->commit());
    const auto checkpoint = cbq::Checkpoint::open(folder / "m.safetensors");
    REQUIRE(checkpoint);
    return message(StoredMatrix::read(*checkpoint, "m", grid));
  }
};

}  // namespace

TEST_CASE("codes, scales and zero points come back exactly, for each width and grid") {
  std::vector<Matrix> matrices;
  for (int bits = 2; bits <= 8; ++bits) {
    for (const int group : {0, 32, 128}) {
      for (const Zero zero : {Zero::symmetric, Zero::affine}) {
        for (const auto& [outputs, inputs] : {std::pair<std::size_t, std::size_t>{1, 1}, {7, 100}, {33, 128}, {0, 0}}) {
          matrices.push_back(random_matrix(outputs, inputs, grid_of(bits, group, zero)));
        }
      }
    }
  }
  const support::ScratchFolder folder;
  std::vector<cbq::TensorPlan> plan;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    REQUIRE(cbq::plan_tensors(cbq::plan_of("m." + std::to_string(i), matrices[i].view(), matrices[i].grid), plan));
  }
  auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
  REQUIRE(writer);
  for (std::size_t i = matrices.size(); i-- > 0;) {
    REQUIRE(cbq::write_quantized_matrix(*writer, "m." + std::to_string(i), matrices[i].view(), matrices[i].grid));
  }
  REQUIRE(writer->commit());
  const auto checkpoint = cbq::Checkpoint::open(folder / "m.safetensors");
  REQUIRE(checkpoint);
  CHECK(cbq::packed_modules(*checkpoint).size() == matrices.size());
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const Matrix& m = matrices[i];
    CAPTURE(m.grid.bits, m.grid.group, m.grid.zero == Zero::affine, m.outputs, m.inputs);
    const auto read = StoredMatrix::read(*checkpoint, "m." + std::to_string(i), m.grid);
    REQUIRE(read);
    CHECK(equal(read->view().codes, m.codes));
    CHECK(equal(read->view().scales, m.scales));
    CHECK(equal(read->view().zeros, m.zeros));
    CHECK(read->grid() == m.grid);
  }
}

TEST_CASE("the tensors are those of the compressed-tensors form") {
  const support::ScratchFolder folder;
  const Matrix m = random_matrix(11, 70, grid_of(3, 32, Zero::affine));
  write_matrix(folder / "m.safetensors", "m", m);
  const auto checkpoint = cbq::Checkpoint::open(folder / "m.safetensors");
  REQUIRE(checkpoint);
  REQUIRE(checkpoint->tensors().size() == 4);
  const cbq::TensorView packed = *checkpoint->tensor("m.weight_packed");
  CHECK(packed.dtype == Dtype::i32);
  CHECK(cbq::same_shape(packed.shape, {.rank = 2, .sizes = {11, 7}}));
  std::vector<std::int32_t> wanted;
  for (std::size_t n = 0; n < 11; ++n) {
    const auto at = m.codes.begin() + static_cast<std::ptrdiff_t>(70 * n);
    const auto line = oracle::pack_bits({at, at + 70}, 3);
    wanted.insert(wanted.end(), line.begin(), line.end());
  }
  CHECK(std::memcmp(wanted.data(), packed.bytes.data(), packed.bytes.size()) == 0);
  const cbq::TensorView scale = *checkpoint->tensor("m.weight_scale");
  CHECK(scale.dtype == Dtype::f16);
  CHECK(cbq::same_shape(scale.shape, {.rank = 2, .sizes = {11, 3}}));
  const cbq::TensorView shape = *checkpoint->tensor("m.weight_shape");
  CHECK(shape.dtype == Dtype::i64);
  CHECK(cbq::load_unaligned<std::int64_t>(shape.bytes.data()) == 11);
  CHECK(cbq::load_unaligned<std::int64_t>(shape.bytes.data() + 8) == 70);
  CHECK(cbq::same_shape(checkpoint->tensor("m.weight_zero_point")->shape, {.rank = 2, .sizes = {2, 3}}));
}

TEST_CASE("scales keep their exact value in the smallest type that holds it") {
  const auto type_of = [](std::vector<float> scales) {
    return cbq::exact_scale_dtype(cbq::matrix_view(static_cast<const float*>(scales.data()), 1, scales.size()));
  };
  CHECK(type_of({1.0f, 65504.0f, 0x1p-24f}) == Dtype::f16);
  CHECK(type_of({1.0f, 0x1.ffcp-3f}) == Dtype::f16);
  CHECK(type_of({1.0f, 0x1p-100f}) == Dtype::bf16);
  CHECK(type_of({131072.0f}) == Dtype::bf16);
  CHECK(type_of({-1.0f, -0x1.ffcp-3f, -0x1p-24f}) == Dtype::f16);
  CHECK(type_of({1.0f, -131072.0f}) == Dtype::bf16);
  CHECK(type_of({0x1.ffcp-3f, 0x1p-100f}) == Dtype::f32);
  CHECK(type_of({0.1f}) == Dtype::f32);
  CHECK(type_of({std::numeric_limits<float>::quiet_NaN()}) == Dtype::f32);
  const support::ScratchFolder folder;
  for (const float scale : {0x1.ffcp-3f, 0x1p-100f, 0.1f, 3e38f, 1e-45f, -0.1f, -0x1.ffcp-3f}) {
    Matrix m = random_matrix(3, 64, grid_of(4, 32, Zero::symmetric));
    m.scales[4] = scale;
    write_matrix(folder / "m.safetensors", "m", m);
    const auto checkpoint = cbq::Checkpoint::open(folder / "m.safetensors");
    const auto read = StoredMatrix::read(*checkpoint, "m", m.grid);
    REQUIRE(read);
    CHECK(equal(read->view().scales, m.scales));
  }
}

TEST_CASE("a matrix that cannot be stored exactly is refused while writing") {
  const support::ScratchFolder folder;
  const Grid grid = grid_of(4, 32, Zero::affine);
  const Matrix good = random_matrix(3, 64, grid);
  std::vector<cbq::TensorPlan> plan;
  REQUIRE(cbq::plan_tensors(cbq::plan_of("m", good.view(), grid), plan));
  const auto outcome = [&](const Matrix& m, const std::string& module = "m") {
    auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
    return message(cbq::write_quantized_matrix(*writer, module, m.view(), m.grid));
  };
  CHECK(outcome(good) == "success");
  Matrix m = good;
  m.scales[2] = 0.1f;
  CHECK_THAT(outcome(m), ContainsSubstring("no exact value"));
  m.scales[2] = 70000.0f;
  CHECK_THAT(outcome(m), ContainsSubstring("no exact value"));
  m.scales[2] = std::numeric_limits<float>::infinity();
  CHECK_THAT(outcome(m), ContainsSubstring("infinity"));
  m.scales[2] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THAT(outcome(m), ContainsSubstring("NaN"));
  m = good;
  m.codes[70] = 16;
  CHECK_THAT(outcome(m), ContainsSubstring("outside the grid"));
  m = good;
  m.zeros[1] = 200;
  CHECK_THAT(outcome(m), ContainsSubstring("outside the grid"));
  CHECK_THAT(outcome(good, "other"), ContainsSubstring("not planned"));
  CHECK(outcome(random_matrix(4, 64, grid)) != "success");
  cbq::QuantizedMatrixView short_scales = good.view();
  short_scales.scales.columns = 1;
  {
    auto writer = cbq::SafetensorsWriter::create(folder / "m.safetensors", plan);
    CHECK_FALSE(cbq::write_quantized_matrix(*writer, "m", short_scales, grid));
  }
  for (const int bits : {1, 9, 16}) {
    CHECK_FALSE(cbq::plan_tensors({"m", 4, 64, grid_of(bits, 32, Zero::symmetric), Dtype::f16}, plan));
  }
  Grid per_tensor = grid;
  per_tensor.granularity = cbq::Granularity::per_tensor;
  CHECK_FALSE(cbq::plan_tensors({"m", 4, 64, per_tensor, Dtype::f16}, plan));
  CHECK(folder.entries() == 0);
}

TEST_CASE("tensors that do not fit each other are refused") {
  CHECK(Parts{}.outcome() == "success");
  const auto with = [](auto change) {
    Parts parts;
    change(parts);
    return parts.outcome();
  };
  for (cbq::TensorPlan Parts::*part : {&Parts::packed, &Parts::scale, &Parts::shape, &Parts::zero}) {
    CHECK(with([&](Parts& p) { (p.*part).name.clear(); }) != "success");
    CHECK(with([&](Parts& p) { (p.*part).dtype = Dtype::f64; }) != "success");
    CHECK(with([&](Parts& p) { (p.*part).shape.sizes[0] += 1; }) != "success");
    CHECK(with([&](Parts& p) { (p.*part).shape.rank = 3, (p.*part).shape.sizes[2] = 1; }) != "success");
  }
  CHECK_THAT(with([](Parts& p) { p.packed.shape.sizes[1] = 6; }), ContainsSubstring("I32 [5, 6], wanted [5, 5]"));
  CHECK(with([](Parts& p) { p.scale.shape.sizes[1] = 1; }) != "success");
  CHECK(with([](Parts& p) { p.sizes[1] = 41; }) != "success");
  CHECK(with([](Parts& p) { p.sizes[1] = 39; }) == "success");  // 5 words and 2 groups too
  CHECK_THAT(with([](Parts& p) { p.sizes[0] = -5; }), ContainsSubstring("negative"));
  CHECK(with([](Parts& p) { p.sizes[0] = std::numeric_limits<std::int64_t>::max(); }) != "success");
  CHECK(with([](Parts& p) { p.sizes[1] = std::numeric_limits<std::int64_t>::max(); }) != "success");
  CHECK_THAT(with([](Parts& p) { p.scale_code = 0x7e00; }), ContainsSubstring("NaN"));
  CHECK_THAT(with([](Parts& p) { p.scale_code = 0x7c00; }), ContainsSubstring("infinity"));
  CHECK(Parts{}.outcome(grid_of(4, 32, Zero::symmetric)) != "success");
  CHECK(Parts{}.outcome(grid_of(3, 32, Zero::affine)) != "success");
  CHECK(Parts{}.outcome(grid_of(16, 32, Zero::affine)) != "success");
}

TEST_CASE("any number of empty rows takes no time and no memory") {
  Parts parts;
  parts.sizes[0] = std::int64_t{1} << 56;
  parts.sizes[1] = 0;
  parts.packed.shape = {.rank = 2, .sizes = {std::size_t{1} << 56, 0}};
  parts.scale.shape = parts.packed.shape;
  parts.zero.shape = {.rank = 2, .sizes = {std::size_t{1} << 53, 0}};
  CHECK(parts.outcome() == "success");
}

TEST_CASE("a mutated file is refused, or read within its bytes and on its grid") {
  const support::ScratchFolder folder;
  const Matrix m = random_matrix(5, 40, grid_of(3, 32, Zero::affine));
  write_matrix(folder / "m.safetensors", "m", m);
  const std::string text = support::read_text(folder / "m.safetensors");
  const auto whole = std::as_bytes(std::span(text.data(), text.size()));
  std::mt19937 random(3);
  std::size_t accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::byte> mutated(whole.begin(), whole.end());
    for (std::size_t n = random() % 2 + 1; n != 0; --n)
      mutated[random() % mutated.size()] = static_cast<std::byte>(random());
    const support::GuardedBytes guarded(mutated);
    const auto file = cbq::Safetensors::parse(guarded.bytes());
    if (!file) continue;
    const auto read = StoredMatrix::read(*file, "m", m.grid);
    if (!read) continue;
    ++accepted;
    const cbq::QuantizedMatrixView view = read->view();
    for (std::size_t n = 0; n < view.codes.rows; ++n) {
      for (std::size_t k = 0; k < view.codes.columns; ++k) {
        if (cbq::row(view.codes, n)[k] > 7) FAIL("a code off the grid");
      }
      for (std::size_t g = 0; g < view.scales.columns; ++g) {
        if (!std::isfinite(cbq::row(view.scales, n)[g]) || cbq::row(view.zeros, n)[g] > 7)
          FAIL("a bad scale or zero point");
      }
    }
  }
  CHECK(accepted > 0);
  CHECK(accepted < 3000);
}
