// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/packing.hpp>

#include <cbq/gemm/packed_weights.hpp>

#include <cstring>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "oracle/gemm.hpp"
#include "oracle/packing.hpp"
#include "support/guarded.hpp"

using namespace cbq;

namespace {

/// Runs tasks from the last to the first.
struct BackwardExecutor {
  [[nodiscard]] static std::size_t concurrency() noexcept { return 3; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    while (count-- != 0) task(count);
  }
};
static_assert(Executor<BackwardExecutor>);

constexpr Grid grid_of(int bits, int group, Zero zero) {
  return make_scheme(bits, 8, group, zero).weight;
}

/// Packs rows with gaps that end at forbidden pages, into memory that ends at one.
void check_bytes(const Grid& grid, const oracle::Weights& w, support::Edge edge) {
  CAPTURE(grid.bits, grid.group, w.outputs, w.inputs, edge == support::Edge::end);
  const std::size_t stride = w.inputs + 5;
  const std::size_t size = w.outputs == 0 ? 0 : (w.outputs - 1) * stride + w.inputs;
  const support::Guarded<std::uint8_t> codes(size, edge);
  for (std::size_t n = 0; n < w.outputs; ++n) {
    for (std::size_t k = 0; k < w.inputs; ++k) codes.data()[n * stride + k] = w.codes[n * w.inputs + k];
    for (std::size_t k = w.inputs; k < stride && n + 1 < w.outputs; ++k) codes.data()[n * stride + k] = 255;
  }
  const support::Guarded<float> scales(std::span<const float>(w.scales), edge);
  const support::Guarded<std::uint8_t> zeros(std::span<const std::uint8_t>(w.zeros), edge);
  QuantizedMatrixView view = w.view();
  view.codes = {codes.data(), w.outputs, w.inputs, stride};
  view.scales.data = scales.data();
  if (w.affine) view.zeros.data = zeros.data();

  const std::vector<std::byte> wanted = oracle::packed(w);
  const support::Guarded<std::byte> got(wanted.size(), edge);
  if (!wanted.empty()) std::memset(got.data(), 0x5a, wanted.size());
  REQUIRE(packing::pack_matrix(view, grid, got.span(), BackwardExecutor{}));
  CHECK((wanted.empty() || std::memcmp(got.data(), wanted.data(), wanted.size()) == 0));
}

}  // namespace

TEST_CASE("Packed bytes are those of the format, for every width, tail and order of tasks") {
  const int bits = GENERATE(2, 3, 4, 8);
  const int group = GENERATE(0, 32, 64, 96);
  const Zero zero = GENERATE(Zero::symmetric, Zero::affine);
  const Grid grid = grid_of(bits, group, zero);
  std::mt19937 random(11);
  for (const std::size_t outputs : {1u, 3u, 15u, 16u, 17u, 37u}) {
    for (const std::size_t inputs : {1u, 31u, 32u, 33u, 64u, 65u, 96u, 200u, 576u, 1031u}) {
      const auto w = oracle::weights(grid, outputs, inputs, oracle::Codes::random, random);
      check_bytes(grid, w, support::Edge::end);
      check_bytes(grid, w, support::Edge::start);
    }
  }
  check_bytes(grid, oracle::weights(grid, 0, 64, oracle::Codes::random, random), support::Edge::end);
  check_bytes(grid, oracle::weights(grid, 5, 0, oracle::Codes::random, random), support::Edge::end);
  check_bytes(grid, oracle::weights(grid, 19, 70, oracle::Codes::highest, random), support::Edge::end);
}

TEST_CASE("Many tasks pack the same bytes as one") {
  // Long rows make tasks of few panels.
  const Grid grid = grid_of(4, 128, Zero::affine);
  std::mt19937 random(5);
  const auto w = oracle::weights(grid, 50, 40000, oracle::Codes::random, random);
  REQUIRE(packing::panels_per_task(*packed_layout(grid, 50, 40000)) == 1);
  check_bytes(grid, w, support::Edge::end);
}

TEST_CASE("Scales that no half holds are rounded as to_half rounds them") {
  const Grid grid = grid_of(4, 32, Zero::symmetric);
  std::mt19937 random(5);
  for (const float smallest : {0x1p-3f, 0x1p-20f, 0x1p-30f, 0x1p-50f, 0.0f}) {
    CAPTURE(smallest);
    auto w = oracle::weights(grid, 33, 200, oracle::Codes::random, random);
    for (float& scale : w.scales) {
      const float mantissa = 1.0f + static_cast<float>(random() % 8388608) * 0x1p-23f;  // 24 significant bits
      scale = (random() % 2 == 0 ? smallest : 1.0f) * mantissa * (random() % 2 == 0 ? 1.0f : -1.0f);
    }
    check_bytes(grid, w, support::Edge::end);
  }
}

TEST_CASE("The first code beyond the grid is named whatever the order of tasks") {
  const Grid grid = grid_of(3, 0, Zero::symmetric);
  std::mt19937 random(5);
  auto w = oracle::weights(grid, 40, 40000, oracle::Codes::random, random);
  const std::size_t column = GENERATE(0u, 33u, 39999u);
  w.codes[17 * 40000 + column] = 8;
  w.codes[39 * 40000 + 7] = 255;
  std::vector<std::byte> memory(packed_bytes(*packed_layout(grid, 40, 40000)));
  const auto packed = packing::pack_matrix(w.view(), grid, memory, BackwardExecutor{});
  REQUIRE_FALSE(packed);
  CHECK(packed.error().code == Errc::bad_argument);
  CHECK(std::string(packed.error().where.c_str()) == "output 17, input " + std::to_string(column));
  CHECK(std::string(packed.error().got.c_str()) == "8");
  CHECK(std::string(packed.error().wanted.c_str()) == "at most 7");
}

TEST_CASE("A width without kernels is refused") {
  Grid grid = grid_of(4, 32, Zero::symmetric);
  std::mt19937 random(5);
  const auto w = oracle::weights(grid, 2, 32, oracle::Codes::lowest, random);
  grid.bits = 5;
  std::vector<std::byte> memory(10000);
  CHECK(packing::pack_matrix(w.view(), grid, memory).error().code == Errc::unsupported);
}
