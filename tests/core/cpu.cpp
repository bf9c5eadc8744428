// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/cpu.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string_view>

using cbq::Isa;

TEST_CASE("every ISA has a name that parses back") {
  for (const Isa isa : cbq::all_isas) {
    const auto parsed = cbq::parse_isa(cbq::isa_name(isa));
    REQUIRE(parsed);
    CHECK(*parsed == isa);
  }
}

TEST_CASE("other names are errors") {
  for (const char* name : {"", "avx", "avx22", "AVX2", "avx512", "avx512_vnni ", "scalar\n"}) {
    CAPTURE(name);
    const auto parsed = cbq::parse_isa(name);
    REQUIRE(!parsed);
    CHECK(parsed.error().code == cbq::Errc::bad_argument);
    CHECK(std::string_view(parsed.error().got.c_str()) == name);
  }
}

TEST_CASE("detection is stable and consistent with the features") {
  const cbq::CpuFeatures features = cbq::query_cpu_features();
  const Isa best = cbq::detect();
  CHECK(best == cbq::detect());
  for (const Isa isa : cbq::all_isas) {
    CAPTURE(cbq::isa_name(isa));
    if (isa > best) CHECK(!cbq::has_isa(cbq::usable_features(), isa));
  }
  CHECK(cbq::has_isa(cbq::usable_features(), best));
  // AMX is used only with a permission; nothing else differs from what the processor offers.
  CHECK((!cbq::usable_features().amx_int8 || features.amx_int8));
  CHECK(cbq::usable_features().avx512_vnni == features.avx512_vnni);
  // Wider sets imply the narrower ones.
  CHECK((!features.avx512_vnni || features.avx2));
  CHECK((!features.avx512_bf16 || features.avx512_vnni));
  CHECK((!features.fast_bfloat16 || features.avx512_bf16));
  CHECK(!(features.fast_bfloat16 && features.amx_int8));
  CHECK((!features.avx_vnni || features.avx2));
  CHECK((!features.amx_int8 || features.avx512_vnni));
  CHECK((!features.neon_dotprod || features.neon));
  CHECK((!features.neon_i8mm || features.neon_dotprod));
  CHECK(!(features.neon && features.avx2));
#if defined(__x86_64__)
  // A second opinion where the compiler can give one (it asks CPUID and XGETBV, too).
  __builtin_cpu_init();
  CHECK(features.avx2 == (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
  CHECK(features.avx512_vnni == (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")));
#endif
}

TEST_CASE("a cap lowers the ISA and never raises it") {
  const Isa best = cbq::detect();
  for (const Isa cap : cbq::all_isas) {
    const Isa used = cbq::capped(cap);
    CHECK(used <= cap);
    CHECK(used <= best);
    CHECK(cbq::has_isa(cbq::usable_features(), used));
    // Nothing between the two could have been used instead.
    for (const Isa between : cbq::all_isas) {
      if (between > used && between <= cap) CHECK(!cbq::has_isa(cbq::usable_features(), between));
    }
  }
}
