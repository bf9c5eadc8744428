// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/cpu.hpp>

#include <catch2/catch_all.hpp>

#include <string_view>

using cbq::Isa;

namespace {
constexpr Isa all[] = {Isa::scalar, Isa::portable, Isa::avx2, Isa::avx512_vnni};
}

TEST_CASE("every ISA has a name that parses back") {
  for (const Isa isa : all) {
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
  CHECK((best == Isa::avx512_vnni) == features.avx512_vnni);
  CHECK((best == Isa::avx2) == (features.avx2 && !features.avx512_vnni));
  CHECK((best == Isa::portable) == !features.avx2);
  // Wider sets imply the narrower ones.
  CHECK((!features.avx512_vnni || features.avx2));
  CHECK((!features.avx512_bf16 || features.avx512_vnni));
  CHECK((!features.avx_vnni || features.avx2));
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
  for (const Isa cap : all) {
    const Isa used = cbq::capped(cap);
    CHECK(used <= cap);
    CHECK(used <= best);
    CHECK((used == cap || used == best));
  }
}
