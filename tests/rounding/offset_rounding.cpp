// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/offset_rounding.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <utility>
#include <vector>

#include <cbq/rounding/lora.hpp>
#include <cbq/rounding/straight_through.hpp>
#include "support/failing_memory.hpp"
#include "support/rounding.hpp"

using cbq::Errc;
using cbq::Zero;

namespace {

constexpr cbq::Grid grid = support::grid_of(4, 32, Zero::affine);
using Dense = cbq::StraightThrough<float>;
using Lora = cbq::LoraRounding<float>;

// Tries `make` with ever more memory; returns how many allocations it takes.
template <class Make>
std::size_t allocations(const Make& make) {
  std::size_t failures = 0;
  for (bool failed = true; failed; ++failures) {
    REQUIRE(failures < 100);
    support::fail_allocation_after(failures);
    const auto made = make();
    failed = support::stop_failing_allocations();
    CAPTURE(failures);
    REQUIRE(made.has_value() == !failed);
    if (failed) CHECK(made.error().code == Errc::out_of_memory);
  }
  return failures - 1;
}

}  // namespace

TEST_CASE("running out of memory anywhere is an error") {
  const std::vector<float> w = support::random_values<float>(40 * 64, 7, 0.05);
  const cbq::MatrixView<const float> view{w.data(), 40, 64, 64};
  // Codes, scales, zero points, two reports; four buffers of steps; offsets and their gradients.
  CHECK(allocations([&] { return Dense::create(view, grid, {}, 0); }) == 5 + 4 + 2);
  CHECK(allocations([&] { return Lora::create(view, grid, {}, 0); }) == 5 + 4 + 5 + 1);
  auto rounding = Dense::create(view, grid, {}, 0);
  REQUIRE(rounding);
  std::vector<float> out(40 * 64);
  CHECK(allocations(
            [&] { return rounding->hard_weights(cbq::matrix_view(out.data(), 40, 64), cbq::SerialExecutor{}); }) == 1);
  CHECK(allocations([&] { return rounding->harden(); }) == 3);
}

TEST_CASE("strides and empty matrices") {
  constexpr std::size_t rows = 9, columns = 70, stride = 77;
  const std::vector<float> wide = support::random_values<float>(rows * stride, 7, 0.05);
  std::vector<float> dense, upstream(wide), close(rows * columns);
  for (std::size_t n = 0; n < rows; ++n)
    dense.insert(dense.end(), wide.data() + n * stride, wide.data() + n * stride + columns);
  auto a = Dense::create({wide.data(), rows, columns, stride}, grid, {}, 0);
  auto b = Dense::create({dense.data(), rows, columns, columns}, grid, {}, 0);
  REQUIRE((a && b));
  REQUIRE(a->backward({wide.data(), rows, columns, stride}, {}, cbq::SerialExecutor{}));
  REQUIRE(b->backward({dense.data(), rows, columns, columns}, {}, cbq::SerialExecutor{}));
  for (std::size_t part = 0; part < 2; ++part) {
    const auto x = a->parameters()[part], y = b->parameters()[part];
    REQUIRE(x.size == y.size);
    CHECK(std::memcmp(x.gradients, y.gradients, x.size * sizeof(float)) == 0);
  }
  REQUIRE(a->soft_weights({upstream.data(), rows, columns, stride}, cbq::SerialExecutor{}));
  REQUIRE(b->soft_weights(cbq::matrix_view(close.data(), rows, columns), cbq::SerialExecutor{}));
  for (std::size_t n = 0; n < rows; ++n) {
    CHECK(std::memcmp(upstream.data() + n * stride, close.data() + n * columns, columns * sizeof(float)) == 0);
    CHECK(upstream[n * stride + columns] == wide[n * stride + columns]);  // between the rows nothing is written
  }
  for (const auto& [n, k] : {std::pair{0u, 70u}, std::pair{9u, 0u}}) {
    auto empty = Dense::create({dense.data(), n, k, k}, grid, {}, 0);
    REQUIRE(empty);
    CHECK(empty->backward({dense.data(), n, k, k}, {}, cbq::SerialExecutor{}));
    CHECK(empty->harden());
  }
}

TEST_CASE("steps of another matrix are refused") {
  const std::vector<float> w = support::random_values<float>(8 * 64, 7, 0.05);
  auto steps = cbq::StepTable<float>::search({w.data(), 8, 64, 64}, grid);
  REQUIRE(steps);
  const auto made = Dense::create_with({w.data(), 8, 32, 32}, std::move(*steps), {}, 0);
  REQUIRE(!made);
  CHECK(made.error().code == Errc::bad_shape);
}

TEST_CASE("weights and upstream of any size stay on the grid, and steps keep their sign") {
  std::vector<float> w = support::random_values<float>(4 * 64, 7, 0.05);
  w[5] = 1e30f;
  w[70] = -1e-35f;
  for (std::size_t k = 128; k < 192; ++k) w[k] = 0.0f;
  const cbq::Grid symmetric = support::grid_of(2, 32, Zero::symmetric);
  auto rounding = Dense::create({w.data(), 4, 64, 64}, symmetric, {}, 0);
  REQUIRE(rounding);
  const auto p = rounding->parameters();
  for (std::size_t i = 0; i < p[1].size; ++i) p[1].values[i] = i % 2 == 0 ? 50.0f : -50.0f;
  rounding->project();
  const auto matrix = rounding->harden();
  REQUIRE(matrix);
  CHECK(cbq::check_values(matrix->view(), symmetric));
  for (std::size_t i = 0; i < p[1].size; ++i) CHECK(p[1].values[i] == (i % 2 == 0 ? 4.0f : -4.0f));
  for (std::size_t k = 0; k < 64; ++k) CHECK(cbq::row(matrix->view().codes, 2)[k] == 2);
}
