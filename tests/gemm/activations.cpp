// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/activations.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include "oracle/gemm.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

struct Case {
  std::size_t tokens;
  std::size_t inputs;
};

/// Quantizes from memory with forbidden pages on both sides and compares with the definition in plain arithmetic.
template <Scheme S>
void check_codes(const std::vector<float>& values, Case shape, Isa isa) {
  CAPTURE(scheme_name(S).c_str(), shape.tokens, shape.inputs, isa_name(isa));
  const support::Guarded<float> x(std::span<const float>(values), support::Edge::end);
  const support::Guarded<std::byte> memory(*activations_size<S>(shape.tokens, shape.inputs) / 4 * 4,
                                           support::Edge::end);
  const auto view = quantize_activations<S>(matrix_view<const float>(x.data(), shape.tokens, shape.inputs),
                                            memory.span(), SerialExecutor{}, isa);
  REQUIRE(view);
  const std::size_t group = group_length(S.weight, shape.inputs);
  const std::size_t groups = group_count(S.weight, shape.inputs);
  std::size_t wrong = 0;
  const std::size_t span = group_length(S.activation, shape.inputs);  // of one scale
  for (std::size_t t = 0; t < shape.tokens; ++t) {
    std::vector<int> sums(groups, 0);
    float largest = 0.0f;
    for (std::size_t begin = 0; begin < shape.inputs; begin += span) {
      const std::size_t end = std::min(begin + span, shape.inputs);
      float low = 0.0f;
      float high = 0.0f;
      for (std::size_t k = begin; k < end; ++k) {
        low = std::min(low, values[t * shape.inputs + k]);
        high = std::max(high, values[t * shape.inputs + k]);
      }
      const bool affine = S.activation.zero == Zero::affine;
      const float levels = affine ? 15.0f : S.activation.bits == 8 ? 127.0f : 7.0f;
      const float width = affine ? high - low : std::max(high, -low);
      const float inverse = width == 0.0f ? 0.0f : levels / width;
      const float zero = affine ? std::nearbyint(-low * inverse) : 0.0f;
      largest = std::max(largest, oracle::group_scale(*view, t, begin / span));
      wrong += oracle::group_scale(*view, t, begin / span) * view->scales[t] != (width == 0.0f ? 0.0f : width / levels);
      for (std::size_t k = begin; k < end; ++k) {
        const float code = std::clamp(std::nearbyint(values[t * shape.inputs + k] * inverse), affine ? -zero : -levels,
                                      affine ? levels - zero : levels);
        const int got = oracle::activation_code(*view, t, k, group, view->layout.blocks_per_group);
        wrong += got != static_cast<int>(code);
        sums[k / group] += got;
      }
    }
    if (view->group_scales != nullptr) {
      // The unit of a token is a power of two, and the largest of its groups is at least 1 in it.
      int exponent = 0;
      wrong += view->scales[t] != 0.0f && std::frexp(view->scales[t], &exponent) != 0.5f;
      wrong += view->scales[t] != 0.0f && !(largest >= 1.0f && largest < 2.0f);
    }
    const std::size_t first = t / view->shape.rows * view->shape.rows;
    const std::size_t rows = std::min(view->shape.rows, shape.tokens - first);
    for (std::size_t g = 0; g < groups; ++g) {
      const int factor = S.weight.zero == Zero::affine ? -1 : -(1 << (S.weight.bits - 1));
      wrong += view->zero_terms[first * groups + g * rows + t - first] != factor * sums[g];
    }
  }
  CHECK(wrong == 0);
}

std::vector<float> normal_values(std::size_t count) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace

TEST_CASE("Codes, scales and sums follow the definition on every instruction set") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  const Case shape = GENERATE(Case{1, 1}, Case{1, 15}, Case{2, 17}, Case{19, 31}, Case{20, 32}, Case{21, 33},
                              Case{41, 129}, Case{3, 257}, Case{16, 64}, Case{33, 97});
  const std::vector<float> values = normal_values(shape.tokens * shape.inputs);
  check_codes<schemes::w4a8_g32>(values, shape, isa);
  check_codes<make_scheme(4, 8, 0, Zero::affine)>(values, shape, isa);
  check_codes<make_scheme(4, 4, 64, Zero::symmetric)>(values, shape, isa);
  check_codes<make_scheme(4, 4, 128, Zero::affine)>(values, shape, isa);
  check_codes<schemes::w4a8_g32_act_group>(values, shape, isa);
  check_codes<with_activation_groups(make_scheme(4, 8, 96, Zero::affine))>(values, shape, isa);
}

TEST_CASE("Rows of one sign, constant rows, zeros and ties") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  constexpr Case shape{4, 40};
  std::vector<float> values(160);
  const int kind = GENERATE(0, 1, 2, 3, 4);
  CAPTURE(kind);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float ramp = static_cast<float>(i % 40);
    values[i] = kind == 0   ? ramp + 1.0f
                : kind == 1 ? -ramp - 1.0f
                : kind == 2 ? 3.25f
                : kind == 3 ? 0.0f
                            : 0.5f * ramp - 9.5f;
  }
  if (kind == 4) {
    for (std::size_t t = 0; t < 4; ++t) values[t * 40] = 127.0f;  // scale 1: every half is a tie
  }
  check_codes<schemes::w4a8_g32>(values, shape, isa);
  check_codes<make_scheme(4, 4, 32, Zero::symmetric)>(values, shape, isa);
  check_codes<make_scheme(4, 4, 32, Zero::affine)>(values, shape, isa);
  check_codes<schemes::w4a8_g32_act_group>(values, shape, isa);
}

TEST_CASE("Groups of one token have ranges of their own") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  constexpr Case shape{21, 150};
  std::vector<float> values = normal_values(shape.tokens * shape.inputs);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::size_t group = i % shape.inputs / 32;
    // An outlier in the first group, the second small, the third zero, the fourth one value, the last short and huge.
    if (i % shape.inputs == 5) values[i] = -300.0f;
    if (group == 1) values[i] *= 0x1p-20f;
    if (group == 2) values[i] = 0.0f;
    if (group == 3) values[i] = i % shape.inputs == 127 ? 0.25f : 0.0f;
    if (group == 4) values[i] *= 0x1p100f;
  }
  std::fill(values.begin() + 150, values.begin() + 300, 0.0f);
  check_codes<schemes::w4a8_g32_act_group>(values, shape, isa);
  check_codes<with_activation_groups(make_scheme(3, 8, 64, Zero::affine))>(values, shape, isa);
  QuantizedActivations<schemes::w4a8_g32_act_group> x;
  REQUIRE(x.quantize(matrix_view<const float>(values.data(), 21, 150), SerialExecutor{}, isa));
  CHECK(oracle::activation_code(x.view(), 20, 127, 32, 1) == 127);
  CHECK(oracle::activation_code(x.view(), 20, 5, 32, 1) == -127);
  CHECK(oracle::activation_code(x.view(), 20, 65, 32, 1) == 0);
}

TEST_CASE("Denormal rows are zero, the largest floats are not infinite") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  CAPTURE(isa_name(isa));
  std::vector<float> values(64, 1e-40f);
  std::fill(values.begin() + 32, values.end(), std::numeric_limits<float>::max());
  values[40] = -std::numeric_limits<float>::max();
  QuantizedActivations<schemes::w4a8_g32> x;
  REQUIRE(x.quantize(matrix_view<const float>(values.data(), 2, 32), SerialExecutor{}, isa));
  CHECK(x.view().scales[0] == 0.0f);
  CHECK(oracle::activation_code(x.view(), 0, 5, 32, 1) == 0);
  CHECK(std::isfinite(x.view().scales[1]));
  CHECK(oracle::activation_code(x.view(), 1, 5, 32, 1) == 127);
  CHECK(oracle::activation_code(x.view(), 1, 8, 32, 1) == -127);
  QuantizedActivations<make_scheme(4, 4, 32, Zero::affine)> affine;
  REQUIRE(affine.quantize(matrix_view<const float>(values.data(), 2, 32), SerialExecutor{}, isa));
  CHECK(std::isfinite(affine.view().scales[1]));
  CHECK(oracle::activation_code(affine.view(), 1, 5, 32, 1) - oracle::activation_code(affine.view(), 1, 8, 32, 1) ==
        15);
  // The same as two groups of one token: the unit is that of the largest, and the denormal group is zero.
  QuantizedActivations<schemes::w4a8_g32_act_group> grouped;
  REQUIRE(grouped.quantize(matrix_view<const float>(values.data(), 1, 64), SerialExecutor{}, isa));
  CHECK(std::isfinite(grouped.view().scales[0]));
  CHECK(oracle::group_scale(grouped.view(), 0, 0) == 0.0f);
  CHECK(oracle::activation_code(grouped.view(), 0, 5, 32, 1) == 0);
  CHECK(oracle::activation_code(grouped.view(), 0, 40, 32, 1) == -127);
}

TEST_CASE("NaN and infinity are reported with their token") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  const float bad = GENERATE(std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
                             std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity());
  const std::size_t at = GENERATE(std::size_t{0}, std::size_t{15}, std::size_t{16}, std::size_t{36});
  std::vector<float> values = normal_values(37 * 30);
  values[23 * 37 + at] = bad;
  QuantizedActivations<schemes::w4a8_g128> x;
  const Status quantized = x.quantize(matrix_view<const float>(values.data(), 30, 37), SerialExecutor{}, isa);
  REQUIRE_FALSE(quantized);
  CHECK(quantized.error().code == Errc::not_finite);
  CHECK(std::string(quantized.error().where.c_str()) == "token 23");
  QuantizedActivations<schemes::w4a8_g32_act_group> grouped;
  const Status refused = grouped.quantize(matrix_view<const float>(values.data(), 30, 37), SerialExecutor{}, isa);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::not_finite);
  CHECK(std::string(refused.error().where.c_str()) == "token 23");
}

TEST_CASE("AMX gets panels of its own where its tiles are filled") {
  const PackedLayout groups_of_32 = *packed_layout(schemes::w4a8_g32.weight, 0, 100);
  const PackedLayout groups_of_96 = *packed_layout(make_scheme(4, 8, 96, Zero::symmetric).weight, 0, 2 * 96 + 20);
  for (const Isa isa : all_isas) {
    CAPTURE(isa_name(isa));
    const std::size_t rows = isa == Isa::amx_int8 ? 32 : 20;
    CHECK(panel_shape(groups_of_96, 15, isa).rows == 20);
    CHECK(panel_shape(groups_of_96, 15, isa).inputs == 32);
    CHECK(panel_shape(groups_of_96, 16, isa).rows == rows);
    CHECK(panel_shape(groups_of_96, 16, isa).inputs == (isa == Isa::amx_int8 ? 64 : 32));
    CHECK(panel_shape(groups_of_32, 16, isa).rows == rows);
    CHECK(panel_shape(groups_of_32, 16, isa).inputs == 32);
  }
  CHECK(row_codes(groups_of_96, {20, 32}) == (3 + 3 + 1) * 32);
  CHECK(row_codes(groups_of_96, {32, 64}) == (2 + 2 + 1) * 64);
  // Sizes do not depend on the machine.
  CHECK(activation_layout(make_scheme(4, 8, 96, Zero::symmetric), 16, 2 * 96 + 20)->bytes == 16 * (5 * 64 + 3 * 4 + 4));
  CHECK(activation_layout(with_activation_groups(make_scheme(4, 8, 96, Zero::symmetric)), 16, 2 * 96 + 20)->bytes ==
        16 * (5 * 64 + 2 * 3 * 4 + 4));
}

TEST_CASE("Memory that does not fit is refused") {
  const std::vector<float> values = normal_values(64);
  std::vector<std::int32_t> memory(64);
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(memory));
  const auto view = matrix_view<const float>(values.data(), 2, 32);
  const std::size_t size = *activations_size<schemes::w4a8_g32>(2, 32);
  CHECK(size == 2 * 32 + 2 * 4 + 2 * 4);
  CHECK(quantize_activations<schemes::w4a8_g32>(view, bytes.first(size)));
  CHECK(quantize_activations<schemes::w4a8_g32>(view, bytes.first(size - 1)).error().code == Errc::bad_shape);
  CHECK(quantize_activations<schemes::w4a8_g32>(view, bytes.subspan(1)).error().code == Errc::bad_argument);
  CHECK(activations_size<schemes::w4a8_g32>(~std::size_t{0}, 32).error().code == Errc::bad_shape);
}

TEST_CASE("No tokens and no inputs are fine") {
  QuantizedActivations<schemes::w4a8_g32> x;
  CHECK(x.quantize(matrix_view<const float>(nullptr, 0, 32)));
  CHECK(x.quantize(matrix_view<const float>(nullptr, 3, 0)));
  QuantizedActivations<schemes::w4a8_g32_act_group> grouped;
  CHECK(grouped.quantize(matrix_view<const float>(nullptr, 0, 32)));
  CHECK(grouped.quantize(matrix_view<const float>(nullptr, 3, 0)));
}

TEST_CASE("Activations without memory or with rows that overlap are refused") {
  constexpr Scheme S = schemes::w4a8_g32;
  std::vector<float> x(3 * 40);
  std::vector<std::int32_t> memory(*activations_size<S>(3, 40) / 4 + 1);
  const auto bytes = std::as_writable_bytes(std::span(memory));
  CHECK(quantize_activations<S>(matrix_view<const float>(nullptr, 3, 40), bytes).error().code == Errc::bad_argument);
  CHECK(quantize_activations<S>(MatrixView<const float>{x.data(), 3, 40, 39}, bytes).error().code == Errc::bad_shape);
  CHECK(quantize_activations<S>(MatrixView<const float>{x.data(), 1, 40, 0}, bytes));
  CHECK(quantize_activations<S>(matrix_view<const float>(nullptr, 0, 40), bytes));
  CHECK(quantize_activations<S>(matrix_view<const float>(nullptr, 3, 0), bytes));
}
