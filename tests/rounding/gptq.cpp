// SPDX-License-Identifier: Apache-2.0
#include <cbq/rounding/gptq.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <vector>

#include "support/layer_training.hpp"
#include "support/rounding.hpp"

using cbq::ColumnOrder;
using cbq::Errc;
using cbq::Grid;
using cbq::GroupRanges;
using cbq::Zero;

namespace {

using Options = cbq::GptqOptions<>;

cbq::InputMoments moments_of(const support::Layer& layer) {
  auto moments = cbq::InputMoments::create(support::Layer::inputs);
  REQUIRE(moments);
  REQUIRE(moments->add(layer.inputs_view()));
  return std::move(*moments);
}

double error_of(const support::Layer& layer, const cbq::QuantizedMatrix& matrix) {
  std::vector<float> decoded(layer.weights.size());
  REQUIRE(cbq::dequantize(matrix.view(), matrix.grid(),
                          cbq::matrix_view(decoded.data(), support::Layer::outputs, support::Layer::inputs)));
  return layer.error(decoded);
}

bool same(const cbq::QuantizedMatrix& a, const cbq::QuantizedMatrix& b) {
  const auto x = a.view(), y = b.view();
  return std::memcmp(x.codes.data, y.codes.data, x.codes.rows * x.codes.columns) == 0 &&
         std::memcmp(x.scales.data, y.scales.data, x.scales.rows * x.scales.columns * sizeof(float)) == 0;
}

// Optimal brain surgeon, one column after the other, with the inverse of H over the columns that are left: no Cholesky
// factor, no blocks. Ranges are those of `ranges`.
std::vector<int> plain_codes(const support::Layer& layer, const cbq::QuantizedMatrix& ranges, bool by_activation) {
  constexpr std::size_t size = support::Layer::inputs;
  std::vector<double> h = layer.hessian;
  double mean = 0;
  for (std::size_t k = 0; k < size; ++k) mean += h[k * size + k] / size;
  for (std::size_t k = 0; k < size; ++k) h[k * size + k] += 0.01 * mean;
  std::vector<double> inverse(size * size, 0.0);  // Gauss-Jordan
  for (std::size_t k = 0; k < size; ++k) inverse[k * size + k] = 1;
  for (std::size_t p = 0; p < size; ++p) {
    const double pivot = h[p * size + p];
    for (std::size_t j = 0; j < size; ++j) h[p * size + j] /= pivot, inverse[p * size + j] /= pivot;
    for (std::size_t i = 0; i < size; ++i) {
      const double factor = i == p ? 0 : h[i * size + p];
      for (std::size_t j = 0; j < size; ++j) {
        h[i * size + j] -= factor * h[p * size + j];
        inverse[i * size + j] -= factor * inverse[p * size + j];
      }
    }
  }
  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto diagonal = [&](std::size_t k) { return layer.hessian[k * size + k]; };
  if (by_activation)
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return diagonal(a) > diagonal(b); });
  std::vector<double> w(layer.weights.begin(), layer.weights.end());
  std::vector<int> codes(w.size());
  const std::size_t length = cbq::group_length(ranges.grid(), size);
  for (const std::size_t c : order) {
    for (std::size_t n = 0; n < support::Layer::outputs; ++n) {
      const auto scale = static_cast<double>(cbq::row(ranges.view().scales, n)[c / length]);
      const int zero = cbq::row(ranges.view().zeros, n)[c / length];
      const int code = static_cast<int>(std::nearbyint(w[n * size + c] / scale)) + zero;
      codes[n * size + c] = std::clamp(code, 0, cbq::max_code(ranges.grid()));
      const double e = (w[n * size + c] - scale * (codes[n * size + c] - zero)) / inverse[c * size + c];
      for (std::size_t j = 0; j < size; ++j) w[n * size + j] -= e * inverse[c * size + j];
    }
    const std::vector<double> column(inverse.begin() + static_cast<std::ptrdiff_t>(c * size),
                                     inverse.begin() + static_cast<std::ptrdiff_t>((c + 1) * size));
    for (std::size_t i = 0; i < size; ++i) {
      for (std::size_t j = 0; j < size; ++j) inverse[i * size + j] -= column[i] * column[j] / column[c];
    }
  }
  return codes;
}

}  // namespace

TEST_CASE("codes are those of the plain method, whatever the blocks and the executor") {
  const support::Layer layer;
  const cbq::InputMoments moments = moments_of(layer);
  for (const int group : {0, 32, 40}) {  // 96 inputs: the last group of 40 is short
    const Grid grid = support::grid_of(3, group, Zero::affine);
    const auto ranges = cbq::round_nearest(layer.view(), grid, cbq::MseRange{});
    REQUIRE(ranges);
    for (const bool by_activation : {false, true}) {
      CAPTURE(group, by_activation);
      Options options{.order = by_activation ? ColumnOrder::by_activation : ColumnOrder::natural,
                      .ranges = GroupRanges::original};
      const auto matrix = cbq::gptq(layer.view(), moments, grid, options);
      REQUIRE(matrix);
      const std::vector<int> wanted = plain_codes(layer, *ranges, by_activation);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < wanted.size(); ++i) wrong += matrix->view().codes.data[i] == wanted[i] ? 0u : 1u;
      CHECK(wrong == 0);
      for (const std::size_t block : {1u, 7u, 96u}) {
        options.block = block;
        const auto other = cbq::gptq(layer.view(), moments, grid, options, support::Backwards{});
        REQUIRE(other);
        CHECK(same(*matrix, *other));
      }
    }
  }
}

TEST_CASE("for every grid valid codes, and a smaller error than nearest rounding") {
  const support::Layer layer;
  const cbq::InputMoments moments = moments_of(layer);
  for (const int bits : {2, 3, 4, 8}) {
    for (const int group : {0, 32, 64, 128}) {
      for (const Zero zero : {Zero::symmetric, Zero::affine}) {
        CAPTURE(bits, group, zero == Zero::affine);
        const Grid grid = support::grid_of(bits, group, zero);
        const auto nearest = cbq::round_nearest(layer.view(), grid, cbq::MseRange{});
        const auto updated = cbq::gptq(layer.view(), moments, grid);
        const auto ordered = cbq::gptq(layer.view(), moments, grid,
                                       Options{.order = ColumnOrder::by_activation, .ranges = GroupRanges::original});
        REQUIRE((nearest && updated && ordered));
        CHECK(cbq::check_values(updated->view(), grid));
        CHECK(cbq::check_values(ordered->view(), grid));
        CHECK(error_of(layer, *updated) < 0.7 * error_of(layer, *nearest));
        CHECK(error_of(layer, *ordered) < 0.7 * error_of(layer, *nearest));
      }
    }
  }
  const auto covering =
      cbq::gptq(layer.view(), moments, support::grid_of(4, 32, Zero::affine), cbq::GptqOptions<cbq::MinMaxRange>{});
  REQUIRE(covering);
  CHECK(error_of(layer, *covering) < 0.01);
}

TEST_CASE("channels that no input reaches become zero, and too few tokens are no obstacle") {
  support::Layer layer;
  for (std::size_t t = 0; t < support::Layer::samples; ++t) layer.activations[t * support::Layer::inputs + 5] = 0;
  auto moments = cbq::InputMoments::create(support::Layer::inputs);
  REQUIRE(moments);
  REQUIRE(moments->add(cbq::rows(layer.inputs_view(), 0, 20)));
  for (const double damping : {0.01, 0.0}) {
    const auto matrix =
        cbq::gptq(layer.view(), *moments, support::grid_of(4, 32, Zero::affine), Options{.damping = damping});
    REQUIRE(matrix);
    for (std::size_t n = 0; n < support::Layer::outputs; ++n)
      CHECK(cbq::row(matrix->view().codes, n)[5] == cbq::row(matrix->view().zeros, n)[0]);
  }
  auto nothing = cbq::InputMoments::create(support::Layer::inputs);
  REQUIRE(nothing);
  const auto zeros = cbq::gptq(layer.view(), *nothing, support::grid_of(4, 32, Zero::affine));
  REQUIRE(zeros);
  CHECK(cbq::check_values(zeros->view(), support::grid_of(4, 32, Zero::affine)));
}

TEST_CASE("what does not go together is refused") {
  support::Layer layer;
  const cbq::InputMoments moments = moments_of(layer);
  const Grid grid = support::grid_of(4, 32, Zero::affine);
  const auto code = [&](const cbq::MatrixView<const float>& w, const Grid& wanted, const Options& options) {
    const auto matrix = cbq::gptq(w, moments, wanted, options);
    REQUIRE(!matrix);
    return matrix.error().code;
  };
  CHECK(code(cbq::columns(layer.view(), 0, 95), grid, {}) == Errc::bad_shape);
  CHECK(code(layer.view(), {.bits = 9}, {}) == Errc::bad_argument);
  CHECK(code(layer.view(), {.bits = 4, .granularity = cbq::Granularity::per_tensor}, {}) == Errc::unsupported);
  CHECK(code(layer.view(), grid, {.order = ColumnOrder::by_activation}) == Errc::bad_argument);
  CHECK(code(layer.view(), grid, {.damping = -1}) == Errc::bad_argument);
  CHECK(code(layer.view(), grid, {.block = 0}) == Errc::bad_argument);
  layer.weights[17] = NAN;
  CHECK(code(layer.view(), grid, {}) == Errc::not_finite);
}
