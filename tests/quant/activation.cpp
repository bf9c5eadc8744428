// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/activation.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cbq/gemm/activations.hpp>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "oracle/gemm.hpp"
#include "oracle/quant.hpp"
#include "support/isas.hpp"

using cbq::Grid;
using cbq::Zero;

namespace {

constexpr Grid token_grid(int bits, Zero zero) {
  return {.bits = bits, .granularity = cbq::Granularity::per_token, .zero = zero};
}
constexpr Grid grids[] = {token_grid(8, Zero::symmetric), token_grid(4, Zero::symmetric), token_grid(4, Zero::affine)};

// Rows that stress the arithmetic: ordinary, with outliers, one-sided, constant, tiny, huge, zero.
std::vector<std::vector<float>> rows_of(std::size_t size) {
  std::vector<std::vector<float>> rows;
  for (std::uint32_t seed = 0; seed < 20; ++seed)
    rows.push_back(oracle::random_weights(size, seed, std::pow(10.0, static_cast<int>(seed % 5) - 2)));
  rows[1][size / 2] = 300.0f;
  for (float& v : rows[2]) v = std::fabs(v);
  for (float& v : rows[3]) v = -std::fabs(v);
  rows[4].assign(size, 0.7f);
  rows[5].assign(size, 0.0f);
  for (float& v : rows[6]) v *= 0x1p-98f;
  for (float& v : rows[7]) v *= 0x1p-120f;
  rows[8].assign(size, -FLT_MAX);
  rows[9][0] = FLT_MAX;
  rows[9][size - 1] = -FLT_MAX;
  rows[10].assign(size, -FLT_TRUE_MIN);
  for (std::size_t i = 0; i < size; ++i)
    rows[11][i] = static_cast<float>(i % 255) - 127.0f + (i % 2 == 0 ? 0.5f : 0.0f);  // ties
  rows[11][0] = 127.0f;
  // Halfway between codes but for the last bit, where every detail of the arithmetic shows. Codes lie within -7.5
  // .. 7.5 of the middle for 4 bits; the extremes keep the range.
  for (std::size_t r = 12; r < 20 && size > 2; ++r) {
    const float levels = r % 2 == 0 ? 254.0f : r % 4 == 1 ? 14.0f : 15.0f;
    rows[r][0] = std::fabs(rows[r][0]) + 0.1f;
    rows[r][1] = r % 4 == 3 ? -0.4f * rows[r][0] : -rows[r][0];
    const float step = (rows[r][0] - rows[r][1]) / levels;
    for (std::size_t i = 2; i < size; ++i) rows[r][i] = (static_cast<float>(i % 5) - 1.5f) * step;
  }
  return rows;
}

}  // namespace

TEST_CASE("fake-quantized activations are the packed path's, bit for bit") {
  for (const Grid& grid : grids) {
    for (const std::size_t size : {std::size_t{1}, std::size_t{15}, std::size_t{16}, std::size_t{577}}) {
      for (const std::vector<float>& x : rows_of(size)) {
        CAPTURE(grid.bits, grid.zero == Zero::affine, size, x[0]);
        std::vector<float> fake(size + 1, 3.0f);
        REQUIRE(cbq::fake_quantize_activations({x.data(), 1, size, size}, grid, {fake.data(), 1, size, size}));
        const cbq::RowRange range = cbq::isa::scalar::row_range(x.data(), size);
        const cbq::TokenQuantization token = cbq::token_quantization(grid, range);
        cbq::ActivationRow row;
        row.inverse_scale = token.inverse_scale;
        row.lowest = token.lowest;
        row.highest = token.highest;
        int wrong = 0;
        for (std::size_t i = 0; i < size; ++i) {
          const float packed = token.scale * static_cast<float>(cbq::isa::scalar::activation_code(x[i], row));
          wrong += packed == fake[i] ? 0 : 1;
        }
        CHECK(wrong == 0);
        CHECK(fake[size] == 3.0f);
      }
    }
  }
}

TEST_CASE("activations move by at most half a step, zero and the extremes stay") {
  for (const Grid& grid : grids) {
    for (std::vector<float> x : rows_of(64)) {
      // At the very end of float's range the product scale * code may round to infinity, in the packed path, too.
      for (float& v : x) v *= 0.5f;
      x[5] = 0.0f;
      std::vector<float> fake(64);
      REQUIRE(cbq::fake_quantize_activations({x.data(), 2, 32, 32}, grid, {fake.data(), 2, 32, 32}));
      CHECK(fake[5] == 0.0f);
      int far = 0;
      for (std::size_t t = 0; t < 2; ++t) {
        double low = 0, high = 0;
        for (std::size_t i = 32 * t; i < 32 * t + 32; ++i) {
          low = std::min(low, static_cast<double>(x[i]));
          high = std::max(high, static_cast<double>(x[i]));
        }
        const double largest = std::max(-low, high);
        const double step = grid.zero == Zero::affine ? (high - low) / 15 : largest / (grid.bits == 8 ? 127 : 7);
        // Affine ends may lose up to half a step more, as the zero point is rounded.
        const double bound = step * (grid.zero == Zero::affine ? 1.0 : 0.5) * 1.0001 + largest * 1e-6 + 0x1p-100;
        for (std::size_t i = 32 * t; i < 32 * t + 32; ++i) {
          far += std::fabs(static_cast<double>(fake[i]) - static_cast<double>(x[i])) <= bound ? 0 : 1;
        }
      }
      CHECK(far == 0);
    }
  }
}

TEST_CASE("activations per group are the packed path's, bit for bit") {
  constexpr cbq::Scheme scheme = cbq::with_activation_groups(cbq::make_scheme(4, 8, 64, Zero::symmetric));
  for (const std::size_t size : {std::size_t{1}, std::size_t{64}, std::size_t{65}, std::size_t{200}}) {
    std::vector<float> x;
    for (const std::vector<float>& one : rows_of(size)) x.insert(x.end(), one.begin(), one.end());
    const std::size_t tokens = x.size() / size;
    std::vector<float> fake(x.size());
    REQUIRE(cbq::fake_quantize_activations({x.data(), tokens, size, size}, scheme.activation,
                                           {fake.data(), tokens, size, size}));
    cbq::QuantizedActivations<scheme> packed;
    REQUIRE(packed.quantize({x.data(), tokens, size, size}));
    const auto& view = packed.view();
    int wrong = 0, different = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t t = i / size, k = i % size;
      const float scale = oracle::group_scale(view, t, k / 64) * view.scales[t];
      wrong += scale * static_cast<float>(oracle::activation_code(view, t, k, 64, 2)) == fake[i] ? 0 : 1;
      // Each group alone is a token of its own.
      const std::size_t first = k / 64 * 64;
      if (k != first) continue;
      std::vector<float> group(std::min<std::size_t>(64, size - first));
      REQUIRE(cbq::fake_quantize_activations({x.data() + i, 1, group.size(), group.size()}, grids[0],
                                             {group.data(), 1, group.size(), group.size()}));
      for (std::size_t j = 0; j < group.size(); ++j) {
        different += group[j] == fake[i + j] ? 0 : 1;
      }
    }
    CAPTURE(size);
    CHECK(wrong == 0);
    CHECK(different == 0);
  }
}

namespace {

Grid whole_grid(int bits, Zero zero) {
  return {.bits = bits, .granularity = cbq::Granularity::per_tensor, .zero = zero};
}

/// x^ of one element by the definition: a static grid, clipped, for a token of `bits` in a scheme of `grid`.
float on_static_grid(float x, const Grid& grid, const cbq::ActivationRules& rules, int bits) {
  const int levels = grid.zero == Zero::affine ? 15 : grid.bits == 8 ? 127 : 7;
  float scale = rules.fixed->scale * rules.clip;
  int low = grid.zero == Zero::affine ? -rules.fixed->zero : -levels;
  int high = low + (grid.zero == Zero::affine ? 15 : 2 * levels);
  if (bits < grid.bits) {
    scale *= 127.0f / 7.0f;
    low = -7;
    high = 7;
  }
  return scale * std::clamp(std::nearbyint(x * (1.0f / scale)), static_cast<float>(low), static_cast<float>(high));
}

/// Activations that the packed path quantizes, read back as floats.
template <cbq::Scheme S>
std::vector<float> packed_values(const std::vector<float>& x, std::size_t size, const cbq::ActivationRules& rules,
                                 cbq::Isa isa) {
  const std::size_t tokens = x.size() / size;
  std::vector<std::int32_t> memory(*cbq::activations_size<S>(tokens, size) / 4 + 1);
  const cbq::RuledActivations ruled = {cbq::matrix_view(x.data(), tokens, size), rules};
  const auto view =
      cbq::quantize_activations<S>(ruled, std::as_writable_bytes(std::span(memory)), cbq::SerialExecutor{}, isa);
  REQUIRE(view);
  std::vector<float> values(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::size_t blocks = view->layout.blocks_per_group;
    const int code = oracle::activation_code(*view, i / size, i % size, cbq::group_length(S.weight, size), blocks);
    values[i] = view->scales[i / size] * static_cast<float>(code);
  }
  return values;
}

template <cbq::Scheme S>
void check_rules(const std::vector<float>& x, std::size_t size, const cbq::ActivationRules& rules) {
  const std::size_t tokens = x.size() / size;
  const Grid grid = S.activation;
  CAPTURE(cbq::scheme_name(S).c_str(), rules.clip, rules.fixed.has_value(), rules.tokens.bits.size());
  std::vector<float> fake(x.size());
  const auto view = cbq::matrix_view(x.data(), tokens, size);
  REQUIRE(cbq::fake_quantize_activations(view, grid, cbq::matrix_view(fake.data(), tokens, size), rules));
  for (const cbq::Isa isa : support::machine_isas()) CHECK(packed_values<S>(x, size, rules, isa) == fake);
  int wrong = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    const int bits = rules.tokens.bits.empty() ? grid.bits : std::min<int>(rules.tokens.bits[t], grid.bits);
    if (grid.granularity == cbq::Granularity::per_tensor) {
      cbq::ActivationRules fixed = rules;
      if (!fixed.fixed) {
        const auto [low, high] = std::minmax_element(x.begin(), x.end());
        fixed.fixed = cbq::static_grid(grid, *low, *high);
      }
      for (std::size_t i = t * size; i < (t + 1) * size; ++i)
        wrong += fake[i] == on_static_grid(x[i], grid, fixed, bits) ? 0 : 1;
    } else {
      // A token alone, in a scheme of its bits.
      const Grid own = bits == grid.bits ? grid : token_grid(4, rules.tokens.zero);
      std::vector<float> alone(size);
      REQUIRE(cbq::fake_quantize_activations(cbq::rows(view, t, 1), own, cbq::matrix_view(alone.data(), 1, size),
                                             {.clip = rules.clip}));
      wrong += std::equal(alone.begin(), alone.end(), fake.begin() + static_cast<std::ptrdiff_t>(t * size)) ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("static activations and tokens of fewer bits are the packed path's, bit for bit") {
  using cbq::StaticGrid;
  const std::size_t tokens = 23, size = 67;
  std::vector<float> x = oracle::random_weights(tokens * size, 5);
  x[3 * size + 1] = 40.0f;  // an outlier
  x[4 * size] = 1e30f;
  for (std::size_t i = 0; i < size; ++i) x[6 * size + i] = 0.0f;
  std::vector<std::uint8_t> bits(tokens, 8);
  for (std::size_t t = 0; t < tokens; t += 3) bits[t] = 4;
  constexpr cbq::Scheme w4a8_asym = cbq::make_scheme(4, 8, 0, Zero::affine);
  constexpr cbq::Scheme w4a4_asym = cbq::make_scheme(4, 4, 32, Zero::affine);
  for (const float clip : {1.0f, 0.6f}) {
    for (const cbq::TokenBits& mixed :
         {cbq::TokenBits{}, cbq::TokenBits{bits, Zero::symmetric}, cbq::TokenBits{bits, Zero::affine}}) {
      check_rules<cbq::schemes::w8a8>(x, size, {clip, {}, mixed});
      check_rules<w4a8_asym>(x, size, {clip, {}, mixed});
      check_rules<w4a4_asym>(x, size, {clip, {}, mixed});
      check_rules<cbq::with_tensor_activations(cbq::schemes::w8a8)>(x, size, {clip, StaticGrid{0.031f, 0}, mixed});
      check_rules<cbq::with_tensor_activations(cbq::schemes::w8a8)>(x, size, {clip, {}, mixed});
      check_rules<cbq::with_tensor_activations(cbq::schemes::w4a4)>(x, size, {clip, StaticGrid{0.3f, 0}, mixed});
      for (const int zero : {0, 6, 15})
        check_rules<cbq::with_tensor_activations(w4a4_asym)>(x, size, {clip, StaticGrid{0.27f, zero}, mixed});
    }
  }
  check_rules<cbq::with_tensor_activations(w4a4_asym)>(x, size, {});
  // The step of 4 bits would be infinite.
  constexpr cbq::Scheme whole = cbq::with_tensor_activations(cbq::schemes::w8a8);
  const cbq::ActivationRules huge = {.fixed = StaticGrid{0x1p125f, 0}, .tokens = {bits, Zero::symmetric}};
  std::vector<float> coarse(x.size());
  REQUIRE(cbq::fake_quantize_activations(cbq::matrix_view(std::as_const(x).data(), tokens, size), whole.activation,
                                         cbq::matrix_view(coarse.data(), tokens, size), huge));
  CHECK(std::count(coarse.begin(), coarse.end(), 0.0f) == static_cast<std::ptrdiff_t>(coarse.size()));
  for (const cbq::Isa isa : support::machine_isas()) CHECK(packed_values<whole>(x, size, huge, isa) == coarse);
  // A scale of zero is everything zero.
  std::vector<float> out(x.size(), 1.0f);
  REQUIRE(cbq::fake_quantize_activations(cbq::matrix_view(std::as_const(x).data(), tokens, size),
                                         whole_grid(8, Zero::symmetric), cbq::matrix_view(out.data(), tokens, size),
                                         {.fixed = StaticGrid{}}));
  CHECK(std::count(out.begin(), out.end(), 0.0f) == static_cast<std::ptrdiff_t>(out.size()));
}

TEST_CASE("a static grid is that of a range, zero included") {
  const auto eight = cbq::static_grid(whole_grid(8, Zero::symmetric), -1.0f, 2.0f);
  CHECK(eight == cbq::StaticGrid{2.0f / 127.0f, 0});
  CHECK(cbq::static_grid(whole_grid(4, Zero::symmetric), -3.5f, 2.0f) == cbq::StaticGrid{0.5f, 0});
  CHECK(cbq::static_grid(whole_grid(4, Zero::affine), -3.0f, 4.5f) == cbq::StaticGrid{0.5f, 6});
  CHECK(cbq::static_grid(whole_grid(4, Zero::affine), 3.0f, 7.5f) == cbq::StaticGrid{0.5f, 0});
  CHECK(cbq::static_grid(whole_grid(4, Zero::affine), -7.5f, -1.0f) == cbq::StaticGrid{0.5f, 15});
  CHECK(cbq::static_grid(whole_grid(4, Zero::affine), -FLT_MAX, FLT_MAX).scale < FLT_MAX);
  CHECK(cbq::static_grid(whole_grid(8, Zero::symmetric), 0.0f, 0x1p-101f) == cbq::StaticGrid{});
}

TEST_CASE("rules that do not fit are errors") {
  using cbq::Errc;
  using cbq::StaticGrid;
  std::vector<float> x(3 * 20, 1.0f), out(60);
  const auto code = [&](const Grid& grid, const cbq::ActivationRules& rules) {
    const auto status = cbq::fake_quantize_activations({x.data(), 3, 20, 20}, grid, {out.data(), 3, 20, 20}, rules);
    REQUIRE(!status);
    std::vector<std::int32_t> memory(100);
    cbq::Scheme scheme = cbq::schemes::w4a8;
    scheme.activation = grid;
    if (grid.group != 0) scheme = cbq::schemes::w4a8_g32_act_group;
    const auto packed = cbq::driver::quantize_tokens(
        cbq::RuledActivations{cbq::matrix_view(std::as_const(x).data(), 3, 20), rules}, scheme,
        std::as_writable_bytes(std::span(memory)), cbq::SerialExecutor{}, cbq::Isa::scalar);
    REQUIRE(!packed);
    CHECK(packed.error().code == status.error().code);
    return status.error().code;
  };
  const Grid sym = whole_grid(8, Zero::symmetric), affine = whole_grid(4, Zero::affine);
  CHECK(code(grids[0], {.fixed = StaticGrid{1.0f, 0}}) == Errc::unsupported);
  for (const float clip : {0.0f, -1.0f, NAN, 1.5f}) CHECK(code(grids[0], {.clip = clip}) == Errc::bad_argument);
  for (const float scale : {-1.0f, NAN, INFINITY, 0x1p-140f})
    CHECK(code(sym, {.fixed = StaticGrid{scale, 0}}) == Errc::bad_argument);
  CHECK(code(sym, {.fixed = StaticGrid{1.0f, 1}}) == Errc::bad_argument);
  CHECK(code(affine, {.fixed = StaticGrid{1.0f, 16}}) == Errc::bad_argument);
  CHECK(code(affine, {.fixed = StaticGrid{1.0f, -1}}) == Errc::bad_argument);
  const std::vector<std::uint8_t> two = {8, 4}, wrong = {8, 4, 5};
  CHECK(code(grids[0], {.tokens = {two}}) == Errc::bad_argument);
  CHECK(code(grids[0], {.tokens = {wrong}}) == Errc::bad_argument);
  const Grid groups = {.bits = 8, .granularity = cbq::Granularity::per_group, .group = 32};
  CHECK(code(groups, {.tokens = {std::span(wrong).first(3)}}) == Errc::unsupported);
  x[25] = INFINITY;
  CHECK(code(sym, {.fixed = StaticGrid{1.0f, 0}}) == Errc::not_finite);
  CHECK(code(sym, {}) == Errc::not_finite);
}

TEST_CASE("tokens are independent, and the result may overwrite the input") {
  std::vector<float> x = oracle::random_weights(3 * 50, 3);
  std::vector<float> apart(3 * 40), together(3 * 40);
  for (std::size_t t = 0; t < 3; ++t) {
    REQUIRE(
        cbq::fake_quantize_activations({x.data() + 50 * t, 1, 40, 50}, grids[2], {apart.data() + 40 * t, 1, 40, 40}));
  }
  REQUIRE(cbq::fake_quantize_activations({x.data(), 3, 40, 50}, grids[2], cbq::matrix_view(together.data(), 3, 40)));
  CHECK(together == apart);
  REQUIRE(cbq::fake_quantize_activations({x.data(), 3, 40, 50}, grids[2], {x.data(), 3, 40, 50}));
  CHECK(std::equal(together.begin(), together.begin() + 40, x.begin()));
}

TEST_CASE("bad activations, grids and shapes are errors") {
  std::vector<float> x(3 * 20, 1.0f), out(60);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const std::size_t at : {std::size_t{20}, std::size_t{39}}) {
      x[at] = bad;
      const auto status = cbq::fake_quantize_activations({x.data(), 3, 20, 20}, grids[0], {out.data(), 3, 20, 20});
      REQUIRE(!status);
      CHECK(status.error().code == cbq::Errc::not_finite);
      CHECK(std::string(status.error().where.c_str()) == "token 1");
      x[at] = 1.0f;
    }
  }
  const auto fails = [&](const Grid& grid, cbq::MatrixView<float> y) {
    return !cbq::fake_quantize_activations({x.data(), 3, 20, 20}, grid, y);
  };
  CHECK(fails(token_grid(16, Zero::symmetric), {out.data(), 3, 20, 20}));
  CHECK(fails(token_grid(8, Zero::affine), {out.data(), 3, 20, 20}));
  CHECK(fails(Grid{.bits = 8}, {out.data(), 3, 20, 20}));
  const auto group_grid = [](int bits, int group, Zero zero) {
    return Grid{.bits = bits, .granularity = cbq::Granularity::per_group, .group = group, .zero = zero};
  };
  CHECK(fails(group_grid(4, 32, Zero::symmetric), {out.data(), 3, 20, 20}));
  CHECK(fails(group_grid(8, 0, Zero::symmetric), {out.data(), 3, 20, 20}));
  CHECK(fails(group_grid(8, 32, Zero::affine), {out.data(), 3, 20, 20}));
  x[47] = NAN;
  const auto named =
      cbq::fake_quantize_activations({x.data(), 3, 20, 20}, group_grid(8, 3, Zero::symmetric), {out.data(), 3, 20, 20});
  REQUIRE(!named);
  CHECK(std::string(named.error().where.c_str()) == "token 2");
  x[47] = 1.0f;
  CHECK(fails(grids[0], {out.data(), 3, 19, 20}));
  CHECK(fails(grids[0], {out.data(), 2, 20, 20}));
  CHECK(fails(grids[0], {out.data(), 3, 20, 19}));
  CHECK(cbq::fake_quantize_activations({x.data(), 0, 20, 20}, grids[0], {out.data(), 0, 20, 20}));
  CHECK(cbq::fake_quantize_activations({x.data(), 3, 0, 0}, grids[0], {out.data(), 3, 0, 0}));
}
