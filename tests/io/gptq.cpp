// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/gptq.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include <cbq/io/checkpoint.hpp>
#include <cbq/io/gptq_reader.hpp>

#include "support/files.hpp"
#include "support/stored_matrices.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::GptqZeros;
using cbq::Zero;
using support::grid_of;
using support::Matrix;
using support::message;

namespace {

cbq::Status write(const std::string& path, const Matrix& m, GptqZeros zeros) {
  std::vector<cbq::TensorPlan> plan;
  if (const cbq::Status planned = cbq::plan_gptq(cbq::plan_of("m", m.view(), m.grid), plan); !planned) return planned;
  auto writer = cbq::SafetensorsWriter::create(path, plan);
  REQUIRE(writer);
  if (const cbq::Status written = cbq::write_gptq(*writer, "m", m.view(), m.grid, zeros); !written) return written;
  return writer->commit();
}

// The 32-bit words of a tensor of the file that `m` becomes.
std::vector<std::uint32_t> words(const Matrix& m, GptqZeros zeros, const char* name) {
  const support::ScratchFolder folder;
  REQUIRE(write(folder / "m.safetensors", m, zeros));
  const auto file = cbq::Checkpoint::open(folder / "m.safetensors");
  REQUIRE(file);
  const cbq::TensorView tensor = *file->tensor(name);
  std::vector<std::uint32_t> found;
  for (std::size_t i = 0; i < tensor.bytes.size(); i += 4) {
    found.push_back(cbq::load_unaligned<std::uint32_t>(tensor.bytes.data() + i));
  }
  return found;
}

// Codes 0, 1, 2, .. along the inputs of each output, modulo 2^bits; output 0 starts with 1.
Matrix counting(std::size_t outputs, std::size_t inputs, const cbq::Grid& grid) {
  Matrix m = support::random_matrix(outputs, inputs, grid);
  for (std::size_t i = 0; i < m.codes.size(); ++i) {
    m.codes[i] = static_cast<std::uint8_t>((i % inputs + (i < inputs ? 1 : 0)) & ((1u << grid.bits) - 1));
  }
  return m;
}

}  // namespace

TEST_CASE("4-bit codes lie along the inputs in columns of words") {
  const Matrix m = counting(8, 16, grid_of(4, 8, Zero::symmetric));
  const auto codes = words(m, GptqZeros::v1, "m.qweight");
  REQUIRE(codes.size() == 16);
  CHECK(codes[0] == 0x87654321);
  CHECK(codes[1] == 0x76543210);
  CHECK(codes[8] == 0x0fedcba9);
  CHECK(codes[9] == 0xfedcba98);
  CHECK(words(m, GptqZeros::v1, "m.qzeros") == std::vector<std::uint32_t>(2, 0x77777777));
  CHECK(words(m, GptqZeros::v2, "m.qzeros") == std::vector<std::uint32_t>(2, 0x88888888));
  CHECK(words(m, GptqZeros::v1, "m.g_idx") ==
        std::vector<std::uint32_t>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1});
}

TEST_CASE("3-bit codes straddle words, of codes and of zero points") {
  Matrix m = counting(32, 32, grid_of(3, 0, Zero::affine));
  const auto codes = words(m, GptqZeros::v2, "m.qweight");
  REQUIRE(codes.size() == 96);
  CHECK(codes[1] == 0x88fac688);
  CHECK(codes[33] == 0xc688fac6);
  CHECK(codes[65] == 0xfac688fa);
  for (std::size_t n = 0; n < 32; ++n) m.zeros[n] = static_cast<std::uint8_t>(n % 8);
  CHECK(words(m, GptqZeros::v2, "m.qzeros") == std::vector<std::uint32_t>{0x88fac688, 0xc688fac6, 0xfac688fa});
}

TEST_CASE("v1 stores zero points less 1 and refuses those of 0") {
  Matrix m = support::random_matrix(8, 8, grid_of(4, 8, Zero::affine));
  m.zeros = {1, 2, 3, 4, 5, 6, 7, 15};
  CHECK(words(m, GptqZeros::v1, "m.qzeros") == std::vector<std::uint32_t>{0xe6543210});
  CHECK(words(m, GptqZeros::v2, "m.qzeros") == std::vector<std::uint32_t>{0xf7654321});
  m.zeros[3] = 0;
  const support::ScratchFolder folder;
  CHECK_THAT(message(write(folder / "m", m, GptqZeros::v1)), ContainsSubstring("output 3, group 0"));
  CHECK(folder.entries() == 0);
  CHECK(message(write(folder / "m", m, GptqZeros::v2)) == "success");
}

TEST_CASE("what the form has no words for is refused by name") {
  const support::ScratchFolder folder;
  const auto outcome = [&](std::size_t outputs, std::size_t inputs, const cbq::Grid& grid) {
    return message(write(folder / "m", support::random_matrix(outputs, inputs, grid), GptqZeros::v2));
  };
  CHECK(outcome(8, 40, grid_of(4, 32, Zero::affine)) == "success");
  CHECK_THAT(outcome(8, 36, grid_of(4, 32, Zero::affine)), ContainsSubstring("m: GPTQ packs"));
  CHECK_THAT(outcome(12, 32, grid_of(4, 32, Zero::affine)), ContainsSubstring("multiples of 8"));
  CHECK_THAT(outcome(16, 32, grid_of(3, 32, Zero::affine)), ContainsSubstring("multiples of 32"));
  CHECK_THAT(outcome(32, 32, grid_of(5, 32, Zero::affine)), ContainsSubstring("5 bits"));
  Matrix m = support::random_matrix(8, 32, grid_of(4, 32, Zero::symmetric));
  m.scales[5] = 0.1f;
  CHECK_THAT(message(write(folder / "m", m, GptqZeros::v2)), ContainsSubstring("m.scales: a scale has no exact value"));
  m = support::random_matrix(8, 32, grid_of(4, 32, Zero::symmetric));
  m.codes[9] = 16;
  CHECK_THAT(message(write(folder / "m", m, GptqZeros::v2)), ContainsSubstring("outside the grid"));
}
