// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/int4_tokens.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "support/guarded.hpp"
#include "support/isas.hpp"

using namespace cbq;

namespace {

constexpr Scheme symmetric = schemes::w4a4;
constexpr Scheme affine = make_scheme(4, 4, 64, Zero::affine);

std::vector<float> normal_values(std::size_t count) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// Stores into memory that ends before a forbidden page and compares with what quantizing the floats gives.
template <Scheme S>
void check_round_trip(const std::vector<float>& values, std::size_t inputs, const ActivationRules& rules, Isa isa) {
  const std::size_t tokens = values.size() / inputs;
  CAPTURE(scheme_name(S).c_str(), tokens, inputs, isa_name(isa));
  const support::Guarded<float> x(std::span<const float>(values), support::Edge::end);
  const RuledActivations ruled = {matrix_view<const float>(x.data(), tokens, inputs), rules};
  const std::size_t bytes = *int4_tokens_size(tokens, inputs);
  CHECK(bytes == tokens * (4 + 1 + (inputs + 1) / 2));
  const support::Guarded<std::byte> memory((bytes + 3) / 4 * 4, support::Edge::end);  // on a 4-byte boundary
  std::fill(memory.data(), memory.data() + memory.size(), std::byte{0x5a});
  const auto stored = store_int4_tokens(ruled, S.activation, memory.span().first(bytes), SerialExecutor{}, isa);
  REQUIRE(stored);
  for (const std::byte rest : memory.span().subspan(bytes)) CHECK(rest == std::byte{0x5a});
  // The codes alone, up to the edge.
  const std::size_t code_bytes = tokens * int4_row_bytes(inputs);
  const support::Guarded<std::uint8_t> codes(std::span<const std::uint8_t>(stored->codes, code_bytes),
                                             support::Edge::end);
  Int4Tokens moved = *stored;
  moved.codes = codes.data();
  const std::size_t words = *activations_size<S>(tokens, inputs) / 4;
  std::vector<std::int32_t> wanted_memory(words, 0x5a5a5a5a);
  const support::Guarded<std::int32_t> memory_back(std::span<const std::int32_t>(wanted_memory), support::Edge::end);
  const auto wanted =
      quantize_activations<S>(ruled, std::as_writable_bytes(std::span(wanted_memory)), SerialExecutor{}, isa);
  const auto back = activations_from_int4<S>(moved, std::as_writable_bytes(memory_back.span()), SerialExecutor{}, isa);
  REQUIRE((wanted && back));
  CHECK(std::equal(wanted_memory.begin(), wanted_memory.end(), memory_back.data()));
  CHECK(back->largest_code == 15);
  CHECK(back->shape.rows == wanted->shape.rows);
  CHECK(back->tokens == tokens);
}

}  // namespace

TEST_CASE("Two codes share a byte, the even input in the low half") {
  // Steps of 1: the largest magnitude is 7.
  const std::vector<float> x = {7.0f, -7.0f, 0.0f, 2.4f, -1.0f};
  std::vector<std::int32_t> memory(3);
  const auto stored = store_int4_tokens({matrix_view(x.data(), 1, 5), {}}, symmetric.activation,
                                        std::as_writable_bytes(std::span(memory)));
  REQUIRE(stored);
  CHECK(stored->scales[0] == 1.0f);
  CHECK(stored->zeros[0] == 8);
  CHECK(stored->codes[0] == 0x1f);
  CHECK(stored->codes[1] == 0xa8);
  CHECK(stored->codes[2] == 0x07);
}

TEST_CASE("Stored tokens are what quantizing their floats gives, byte for byte") {
  const Isa isa = GENERATE(from_range(support::machine_isas()));
  for (const std::size_t inputs : {1u, 31u, 32u, 65u, 255u, 257u, 600u}) {
    std::vector<float> values = normal_values(21 * inputs);
    for (std::size_t i = 0; i < inputs; ++i) values[i] = std::fabs(values[i]);
    for (std::size_t i = inputs; i < 2 * inputs; ++i) values[i] = 0.0f;
    check_round_trip<symmetric>(values, inputs, {}, isa);
    check_round_trip<affine>(values, inputs, {.clip = 0.7f}, isa);
    check_round_trip<with_tensor_activations(affine)>(values, inputs, {.fixed = StaticGrid{0.2f, 9}}, isa);
  }
}

TEST_CASE("What cannot be stored or read back is refused") {
  std::vector<float> x = normal_values(3 * 40);
  std::vector<std::int32_t> memory(40), panels(100);
  const auto bytes = std::as_writable_bytes(std::span(memory));
  const auto view = [&] { return RuledActivations{matrix_view<const float>(x.data(), 3, 40), {}}; };
  const auto code = [&](const Grid& grid, std::span<std::byte> to) {
    const auto stored = store_int4_tokens(view(), grid, to);
    REQUIRE_FALSE(stored);
    return stored.error().code;
  };
  const Grid grid = symmetric.activation;
  CHECK(code(schemes::w4a8.activation, bytes) == Errc::unsupported);
  CHECK(code({.bits = 4, .granularity = Granularity::per_group, .group = 32}, bytes) == Errc::unsupported);
  CHECK(code(grid, bytes.first(74)) == Errc::bad_shape);
  CHECK(code(grid, bytes.subspan(1)) == Errc::bad_argument);
  REQUIRE(store_int4_tokens(view(), grid, bytes.first(75)));
  CHECK(int4_tokens_size(~std::size_t{0}, 2).error().code == Errc::bad_shape);

  Int4Tokens tokens = *store_int4_tokens(view(), grid, bytes);
  const auto out = std::as_writable_bytes(std::span(panels));
  CHECK(activations_from_int4<symmetric>(tokens, out));
  CHECK(activations_from_int4<symmetric>(tokens, out.first(10)).error().code == Errc::bad_shape);
  CHECK(activations_from_int4<symmetric>(tokens, out.subspan(2)).error().code == Errc::bad_argument);
  const std::uint8_t zeros[] = {8, 16, 8};
  tokens.zeros = zeros;
  CHECK(activations_from_int4<symmetric>(tokens, out).error().code == Errc::bad_argument);
  tokens.zeros = nullptr;
  CHECK(activations_from_int4<symmetric>(tokens, out).error().code == Errc::bad_argument);
  const std::uint8_t eights[] = {8, 8, 8};
  tokens.zeros = eights;
  for (const float bad : {-1.0f, NAN, INFINITY}) {
    const float scales[] = {1.0f, 1.0f, bad};
    tokens.scales = scales;
    const auto wrong = activations_from_int4<symmetric>(tokens, out);
    REQUIRE_FALSE(wrong);
    CHECK(wrong.error().code == (bad == -1.0f ? Errc::bad_argument : Errc::not_finite));
    CHECK(std::string(wrong.error().where.c_str()) == "token 2");
  }
  tokens.scales = nullptr;
  CHECK(activations_from_int4<symmetric>(tokens, out).error().code == Errc::bad_argument);
  tokens.scales = reinterpret_cast<const float*>(memory.data());
  CHECK(activations_from_int4<symmetric>(tokens, out));
  tokens.codes = nullptr;
  CHECK(activations_from_int4<symmetric>(tokens, out).error().code == Errc::bad_argument);
  CHECK(activations_from_int4<symmetric>({}, out));

  x[41] = NAN;
  const auto refused = store_int4_tokens(view(), grid, bytes);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::not_finite);
  CHECK(std::string(refused.error().where.c_str()) == "token 1");
}
