// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <set>
#include <string>

using cbq::Granularity;
using cbq::Scheme;
using cbq::Zero;

namespace {

// Returns the scheme that visit_scheme passes as a template argument, after checking its rules.
struct Identity {
  template <Scheme S>
  cbq::Result<Scheme> operator()() const {
    (void)cbq::Rules<S>{};
    return S;
  }
};

}  // namespace

TEST_CASE("names give the parts of a scheme") {
  const auto scheme = cbq::parse_scheme("w3a16_g128_asym");
  REQUIRE(scheme);
  CHECK(scheme->weight == cbq::Grid{3, Granularity::per_group, 128, Zero::affine});
  CHECK(scheme->activation == cbq::Grid{16, Granularity::per_token, 0, Zero::symmetric});
  CHECK(*cbq::parse_scheme("w8a8") == cbq::schemes::w8a8);
  CHECK(*cbq::parse_scheme("w8a8_channel") == cbq::schemes::w8a8);
  CHECK(*cbq::parse_scheme("w4a4_channel") == cbq::schemes::w4a4);
  CHECK(*cbq::parse_scheme("w4a8_g128") == cbq::schemes::w4a8_g128);
  CHECK(*cbq::parse_scheme("w2a8_g64_asym") == cbq::schemes::w2a8_g64_asym);
  // _asym reaches 4-bit activations, and only those.
  CHECK(cbq::parse_scheme("w4a4_asym")->activation.zero == Zero::affine);
  CHECK(cbq::parse_scheme("w4a8_asym")->activation.zero == Zero::symmetric);
  CHECK(cbq::parse_scheme("w5a16")->weight.bits == 5);
  // _act_group gives activations the groups of the weights.
  const auto grouped = cbq::parse_scheme("w4a8_g32_asym_act_group");
  REQUIRE(grouped);
  CHECK(grouped->weight == cbq::Grid{4, Granularity::per_group, 32, Zero::affine});
  CHECK(grouped->activation == cbq::Grid{8, Granularity::per_group, 32, Zero::symmetric});
  CHECK(*cbq::parse_scheme("w4a8_g128_act_group") == cbq::schemes::w4a8_g128_act_group);
  CHECK(std::string(cbq::scheme_name(*cbq::parse_scheme("w16a8_g99999_asym_act_group")).c_str()) ==
        "w16a8_g99999_asym_act_group");
  // _act_tensor: one scale for all tokens.
  const auto tensor = cbq::parse_scheme("w4a4_asym_act_tensor");
  REQUIRE(tensor);
  CHECK(tensor->weight == cbq::Grid{4, Granularity::per_channel, 0, Zero::affine});
  CHECK(tensor->activation == cbq::Grid{4, Granularity::per_tensor, 0, Zero::affine});
}

TEST_CASE("names that break the grammar are errors that repeat the name") {
  for (const char* name : {"",
                           "w",
                           "w4",
                           "w4a",
                           "a8w4",
                           "w4a8_",
                           "w4a8_g",
                           "w4a8_g0",
                           "w4a8_gx",
                           "w4a8_g128_",
                           "w1a8",
                           "w9a8",
                           "w4a3x",
                           "w4a17",
                           "W4A8",
                           "w4a8 ",
                           " w4a8",
                           "w4a8_asym_g32",
                           "w4a8_channel_g32",
                           "w4a8_sym",
                           "w99999999999999999999a8",
                           "w4a8_g128_asym_asym",
                           "w4a8_act_group",
                           "w4a8_channel_act_group",
                           "w4a16_g128_act_group",
                           "w4a4_g128_act_group",
                           "w4a8_g128_act_group_asym",
                           "w4a8_g128_act",
                           "w4a8_g128_act_group_",
                           "w4a16_act_tensor",
                           "w4a8_g128_act_tensor_act_group",
                           "w-4a8"}) {
    CAPTURE(name);
    const auto scheme = cbq::parse_scheme(name);
    REQUIRE(!scheme);
    CHECK(scheme.error().code == cbq::Errc::bad_argument);
    CHECK(std::string(scheme.error().got.c_str()) == name);
  }
}

TEST_CASE("every packed scheme goes through its name and visit_scheme unchanged") {
  std::set<std::string> names;
  for (const Scheme& scheme : cbq::packed_schemes) {
    const cbq::SchemeName name = cbq::scheme_name(scheme);
    CAPTURE(name.c_str());
    names.insert(name.c_str());
    const auto parsed = cbq::parse_scheme(name.c_str());
    REQUIRE(parsed);
    CHECK(*parsed == scheme);
    const auto visited = cbq::visit_scheme(scheme, Identity{});
    REQUIRE(visited);
    CHECK(*visited == scheme);
  }
  CHECK(names.size() == cbq::packed_schemes.size());
}

TEST_CASE("activations per tensor are packed as those per token") {
  for (const char* name : {"w4a4_act_tensor", "w8a8_act_tensor", "w2a8_g64_asym_act_tensor"}) {
    const auto scheme = cbq::parse_scheme(name);
    REQUIRE(scheme);
    CHECK(std::string(cbq::scheme_name(*scheme).c_str()) == name);
    CHECK(cbq::check_packed_scheme(*scheme));
    const auto visited = cbq::visit_scheme(*scheme, Identity{});
    REQUIRE(visited);
    CHECK(visited->activation.granularity == Granularity::per_token);
    CHECK(cbq::with_tensor_activations(*visited) == *scheme);
  }
}

TEST_CASE("schemes without a packed kernel are unsupported, by name") {
  for (const char* name : {"w5a8_g32_act_group", "w4a8_g96_act_group", "w5a8", "w4a5", "w16a16", "w4a8_g48",
                           "w4a16_g256", "w16a8", "w4a5_act_tensor"}) {
    CAPTURE(name);
    const auto scheme = cbq::parse_scheme(name);
    REQUIRE(scheme);
    const auto visited = cbq::visit_scheme(*scheme, Identity{});
    REQUIRE(!visited);
    CHECK(visited.error().code == cbq::Errc::unsupported);
    CHECK(std::string(visited.error().got.c_str()) == name);
  }
}

TEST_CASE("grids know their codes and groups") {
  constexpr cbq::Grid grouped{.bits = 4, .granularity = Granularity::per_group, .group = 128};
  constexpr cbq::Grid channel{.bits = 2};
  STATIC_REQUIRE(cbq::max_code(grouped) == 15);
  STATIC_REQUIRE(cbq::symmetric_zero(grouped) == 8);
  STATIC_REQUIRE(cbq::max_code(channel) == 3);
  CHECK(cbq::group_count(grouped, 576) == 5);
  CHECK(cbq::group_count(grouped, 512) == 4);
  CHECK(cbq::group_count(grouped, 1) == 1);
  CHECK(cbq::group_count(grouped, 0) == 0);
  CHECK(cbq::group_length(channel, 576) == 576);
  CHECK(cbq::group_count(channel, 576) == 1);
  CHECK(cbq::group_count(channel, 0) == 0);
}
