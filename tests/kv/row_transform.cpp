// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/row_transform.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/nn.hpp"

using cbq::Errc;
using cbq::KvHeads;
using cbq::RowTransform;

namespace {

constexpr std::size_t widths[] = {1, 16, 33, 64, 80, 96, 128, 256};

// Scales and offsets of two key/value heads.
struct Factors {
  std::vector<float> key_scales, key_offsets, value_scales, value_offsets;
  explicit Factors(std::size_t count)
      : key_scales(support::normal(count, 1)),
        key_offsets(support::normal(count, 2, 3.0f)),
        value_scales(support::normal(count, 3)),
        value_offsets(support::normal(count, 4)) {
    for (std::vector<float>* scales : {&key_scales, &value_scales}) {
      for (float& s : *scales) s = std::exp(s);
    }
  }
  [[nodiscard]] RowTransform transform(bool hadamard) const {
    return {.key_scales = key_scales.data(),
            .key_offsets = key_offsets.data(),
            .value_scales = value_scales.data(),
            .value_offsets = value_offsets.data(),
            .hadamard = hadamard};
  }
};

double dot(const double* a, const double* b, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

cbq::MatrixView<double> view(std::vector<double>& x, std::size_t columns) {
  return cbq::matrix_view(x.data(), x.size() / columns, columns);
}

}  // namespace

TEST_CASE("scores change by the same number for every key, and outputs come back") {
  for (const std::size_t width : widths) {
    for (const bool hadamard : {false, true}) {
      CAPTURE(width, hadamard);
      const KvHeads kv{2, width};
      const std::size_t tokens = 5, ratio = 3, columns = kv.heads * width;
      const Factors factors(columns);
      const RowTransform transform = factors.transform(hadamard);
      const auto keys = support::doubles(support::normal(tokens * columns, 5));
      const auto values = support::doubles(support::normal(tokens * columns, 6));
      const auto queries = support::doubles(support::normal(ratio * columns, 7));
      auto k = keys, v = values, q = queries;
      REQUIRE(cbq::transform_keys(transform, kv, view(k, columns)));
      REQUIRE(cbq::transform_values(transform, kv, view(v, columns)));
      REQUIRE(cbq::transform_queries(transform, kv, view(q, ratio * columns)));
      const double weights[] = {0.1, 0.3, 0.05, 0.35, 0.2};
      std::vector<double> outputs(ratio * columns), wanted(ratio * columns);
      for (std::size_t h = 0; h < ratio * kv.heads; ++h) {
        const std::size_t head = h / ratio * width;
        double constant = 0;
        for (std::size_t c = 0; c < width; ++c) {
          constant += queries[h * width + c] * static_cast<double>(factors.key_offsets[head + c]);
        }
        for (std::size_t t = 0; t < tokens; ++t) {
          const double exact = dot(&queries[h * width], &keys[t * columns + head], width);
          const double score = dot(&q[h * width], &k[t * columns + head], width);
          REQUIRE(std::fabs(score + constant - exact) < 1e-10 * (1 + std::fabs(constant)));
          for (std::size_t c = 0; c < width; ++c) {
            outputs[h * width + c] += weights[t] * v[t * columns + head + c];
            wanted[h * width + c] += weights[t] * values[t * columns + head + c];
          }
        }
      }
      REQUIRE(cbq::restore_outputs(transform, kv, view(outputs, ratio * columns)));
      for (std::size_t i = 0; i < outputs.size(); ++i) REQUIRE(std::fabs(outputs[i] - wanted[i]) < 1e-12);
    }
  }
}

TEST_CASE("keys are (x - offset) / scale, then rotated in the largest power-of-two blocks") {
  const KvHeads kv{2, 80};
  const Factors factors(160);
  const auto x = support::normal(160, 9);
  auto smooth = support::doubles(x), rotated = smooth;
  REQUIRE(cbq::transform_keys(factors.transform(false), kv, view(smooth, 160)));
  REQUIRE(cbq::transform_keys(factors.transform(true), kv, view(rotated, 160)));
  for (std::size_t i = 0; i < 160; ++i) {
    const double wanted = (static_cast<double>(x[i]) - static_cast<double>(factors.key_offsets[i])) /
                          static_cast<double>(factors.key_scales[i]);
    REQUIRE(std::fabs(smooth[i] - wanted) < 1e-13);
  }
  for (std::size_t block = 0; block < 10; ++block) {
    double sum = 0;
    for (std::size_t i = 0; i < 16; ++i) sum += smooth[16 * block + i];
    CHECK(rotated[16 * block] == Catch::Approx(sum / 4));
  }
}

TEST_CASE("floats follow doubles, on every instruction set and without touching neighbours") {
  for (const std::size_t width : widths) {
    const KvHeads kv{2, width};
    const std::size_t columns = 2 * width;
    const Factors factors(columns);
    const RowTransform transform = factors.transform(true);
    const auto x = support::normal(columns, 8);
    for (const cbq::Isa isa : support::machine_isas()) {
      CAPTURE(width, cbq::isa_name(isa));
      for (int what = 0; what < 4; ++what) {
        const auto run = [&]<class T>(const cbq::MatrixView<T>& rows) {
          if (what == 0) return cbq::transform_keys(transform, kv, rows, isa);
          if (what == 1) return cbq::transform_values(transform, kv, rows, isa);
          if (what == 2) return cbq::transform_queries(transform, kv, rows, isa);
          return cbq::restore_outputs(transform, kv, rows, isa);
        };
        const support::Guarded<float> floats(std::span<const float>(x), support::Edge::end);
        auto doubles = support::doubles(x);
        REQUIRE(run(cbq::matrix_view(floats.data(), 1, columns)));
        REQUIRE(run(view(doubles, columns)));
        for (std::size_t i = 0; i < columns; ++i) {
          REQUIRE(std::fabs(static_cast<double>(floats.data()[i]) - doubles[i]) < 1e-4);
        }
      }
    }
  }
}

TEST_CASE("absent factors change nothing") {
  const KvHeads kv{2, 33};
  const auto x = support::normal(3 * 66, 10);
  auto y = x;
  const auto rows = support::view(y, 66);
  REQUIRE(cbq::transform_keys({}, kv, rows));
  REQUIRE(cbq::transform_values({}, kv, rows));
  REQUIRE(cbq::transform_queries({}, kv, rows));
  REQUIRE(cbq::restore_outputs({}, kv, rows));
  CHECK(y == x);
  const Factors factors(66);
  REQUIRE(cbq::transform_keys({.key_offsets = factors.key_offsets.data()}, kv, rows));
  for (std::size_t i = 0; i < y.size(); ++i) REQUIRE(y[i] == x[i] - factors.key_offsets[i % 66]);
}

TEST_CASE("rows of other heads and factors that cannot be undone are errors") {
  std::vector<float> x(64);
  const auto rows = support::view(x, 64);
  CHECK(cbq::transform_keys({}, {2, 16}, rows).error().code == Errc::bad_shape);
  CHECK(cbq::transform_values({}, {0, 16}, rows).error().code == Errc::bad_shape);
  CHECK(cbq::transform_keys({}, {4, 0}, rows).error().code == Errc::bad_shape);
  CHECK(cbq::transform_queries({}, {4, 0}, rows).error().code == Errc::bad_shape);
  CHECK(cbq::transform_queries({}, {3, 16}, rows).error().code == Errc::bad_shape);
  CHECK(cbq::restore_outputs({}, {2, 24}, rows).error().code == Errc::bad_shape);
  CHECK(cbq::transform_queries({}, {2, 16}, rows));
  CHECK(cbq::transform_keys({}, {2, 32}, cbq::MatrixView<float>{x.data(), 2, 64, 32}).error().code == Errc::bad_shape);

  Factors factors(64);
  const RowTransform transform = factors.transform(true);
  CHECK(cbq::check_row_transform(transform, {2, 32}));
  CHECK(cbq::check_row_transform({}, {2, 32}));
  factors.value_scales[63] = 0;
  const cbq::Status zero = cbq::check_row_transform(transform, {2, 32});
  CHECK(zero.error().code == Errc::bad_argument);
  CHECK(std::string(zero.error().where.c_str()) == "value scale of channel 63");
  factors.key_offsets[5] = std::numeric_limits<float>::quiet_NaN();
  factors.value_scales[63] = 1;
  CHECK(cbq::check_row_transform(transform, {2, 32}).error().code == Errc::not_finite);
  std::vector<float> weights(64);
  CHECK(cbq::check_row_transform({.key_weights = weights.data(), .refinements = 2}, {2, 32}));
  weights[7] = -1;
  CHECK(cbq::check_row_transform({.key_weights = weights.data()}, {2, 32}).error().code == Errc::bad_argument);
  CHECK(cbq::check_row_transform({.refinements = -1}, {2, 32}).error().code == Errc::bad_argument);
}
