// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/kv_scheme.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <string_view>

using cbq::KvScheme;

TEST_CASE("names give the parts of a KV scheme") {
  CHECK(*cbq::parse_kv_scheme("f32") == KvScheme{.bits = 32});
  CHECK(*cbq::parse_kv_scheme("f16") == KvScheme{.bits = 16});
  CHECK(*cbq::parse_kv_scheme("kv4") == KvScheme{});
  CHECK(*cbq::parse_kv_scheme("kv4_2d_past") == KvScheme{.bits = 4, .smoothed = true, .past_only = true});
  CHECK(*cbq::parse_kv_scheme("kv2_kivi_past") == KvScheme{.bits = 2, .channel_keys = true, .past_only = true});
  CHECK(*cbq::parse_kv_scheme("kv3_hadamard") == KvScheme{.bits = 3, .hadamard = true});
  CHECK(*cbq::parse_kv_scheme(std::string_view("kv8_2d").substr(0, 3)) == KvScheme{.bits = 8});
}

TEST_CASE("every KV scheme goes through its name unchanged") {
  for (const int bits : {2, 3, 4, 8}) {
    for (unsigned parts = 0; parts < 16; ++parts) {
      const KvScheme scheme{.bits = bits,
                            .smoothed = (parts & 1) != 0,
                            .channel_keys = (parts & 2) != 0,
                            .past_only = (parts & 4) != 0,
                            .hadamard = (parts & 8) != 0};
      const std::string name = cbq::kv_scheme_name(scheme).c_str();
      CAPTURE(name);
      const auto parsed = cbq::parse_kv_scheme(name);
      REQUIRE(parsed);
      CHECK(*parsed == scheme);
      CHECK_FALSE(cbq::is_float(scheme));
    }
  }
  for (const int bits : {16, 32}) {
    const KvScheme scheme{.bits = bits};
    CHECK(*cbq::parse_kv_scheme(cbq::kv_scheme_name(scheme).c_str()) == scheme);
    CHECK(cbq::is_float(scheme));
  }
  CHECK(std::string(cbq::kv_scheme_name({4, true, true, true, true}).c_str()) == "kv4_2d_kivi_past_hadamard");
}

TEST_CASE("names that break the grammar of KV schemes are errors that repeat the name") {
  for (const std::string_view name : {"",          "f",    "f8",          "f32_past",    "f16_",
                                      "kv",        "kv0",  "kv1",         "kv5",         "kv16",
                                      "kv44",      "kv4_", "kv4_past_2d", "kv4_2d_2d",   "kv4_hadamard_past",
                                      "KV4",       "kv4 ", " kv4",        "kv4_kivi_2d", "kv-4",
                                      "kv4_2d_pas"}) {
    CAPTURE(name);
    const auto scheme = cbq::parse_kv_scheme(name);
    REQUIRE_FALSE(scheme);
    CHECK(scheme.error().code == cbq::Errc::bad_argument);
    CHECK(std::string(scheme.error().got.c_str()) == name);
  }
}
