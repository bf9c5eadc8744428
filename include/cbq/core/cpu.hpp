// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which kernels the CPU *and* the operating system can run. Names are features, not products. Every feature is tested
// by CPUID and, for registers wider than 128 bits, by XGETBV: a CPU may have AVX-512 that the kernel does not save. AMX
// also needs a permission from Linux, which request_amx_permission() asks for.

#include <cstddef>
#include <cstdint>

#include <cbq/core/result.hpp>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace cbq {

/// Instruction sets with kernels of their own, in rising order. `scalar` is the plain reference; `portable` is xsimd
/// for whatever the including file is compiled for (<cbq/gemm/kernels_portable.hpp>; plain scalar code without that
/// header).
enum class Isa : unsigned char { scalar, portable, avx2, avx512_vnni };

inline namespace CBQ_ABI {

/// The name that `parse_isa` reads: "scalar", "portable", "avx2", "avx512_vnni".
[[nodiscard]] constexpr const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512_vnni:
      return "avx512_vnni";
  }
  return "scalar";
}

/// Reads an ISA name, for command lines and the environment variable CBQ_ISA of tests and benchmarks.
[[nodiscard]] constexpr Result<Isa> parse_isa(const char* name) noexcept {
  for (const Isa isa : {Isa::scalar, Isa::portable, Isa::avx2, Isa::avx512_vnni}) {
    const char* expected = isa_name(isa);
    std::size_t i = 0;
    while (name[i] != '\0' && name[i] == expected[i]) ++i;
    if (name[i] == expected[i]) return isa;
  }
  return Error{Errc::bad_argument, "unknown instruction set", "isa", name, "scalar, portable, avx2 or avx512_vnni"};
}

/// What the CPU and the operating system offer, feature by feature.
struct CpuFeatures {
  bool avx2 = false;         ///< AVX2, FMA and F16C, with ymm state saved
  bool avx_vnni = false;     ///< AVX-VNNI (256-bit vpdpbusd without AVX-512)
  bool avx512_vnni = false;  ///< AVX-512 F, BW, DQ, VL and VNNI, with zmm state saved
  bool avx512_bf16 = false;  ///< avx512_vnni and BF16 dot products
  bool amx_int8 = false;     ///< AMX tiles and INT8 products, tile state enabled (permission is asked separately)
};

/// Asks CPUID and XGETBV anew; `detect()` is the cached form.
[[nodiscard]] inline CpuFeatures query_cpu_features() noexcept {
  CpuFeatures features;
#if defined(__x86_64__)
  const auto bit = [](std::uint32_t word, unsigned index) { return ((word >> index) & 1u) != 0; };
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return features;
  const bool base = bit(ecx, 27) && bit(ecx, 28) && bit(ecx, 12) && bit(ecx, 29);  // OSXSAVE, AVX, FMA, F16C
  if (!base) return features;
  std::uint32_t state = 0, state_high = 0;
  asm volatile("xgetbv" : "=a"(state), "=d"(state_high) : "c"(0));
  if ((state & 0x6u) != 0x6u || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return features;
  const std::uint32_t subleaves = eax;
  features.avx2 = bit(ebx, 5);
  const bool avx512 =
      features.avx2 && (state & 0xe6u) == 0xe6u && bit(ebx, 16) && bit(ebx, 17) && bit(ebx, 30) && bit(ebx, 31);
  features.avx512_vnni = avx512 && bit(ecx, 11);
  features.amx_int8 = features.avx512_vnni && (state & 0x60000u) == 0x60000u && bit(edx, 24) && bit(edx, 25);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    features.avx_vnni = features.avx2 && bit(eax, 4);
    features.avx512_bf16 = features.avx512_vnni && bit(eax, 5);
  }
#endif
  return features;
}

/// Asks Linux for the use of AMX tiles by this process; repeating it is harmless. False where refused or not Linux.
[[nodiscard]] inline bool request_amx_permission() noexcept {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;
  return ::syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

/// The best Isa of this machine, found once per process.
[[nodiscard]] inline Isa detect() noexcept {
  static const Isa best = [] {
    const CpuFeatures features = query_cpu_features();
    return features.avx512_vnni ? Isa::avx512_vnni : features.avx2 ? Isa::avx2 : Isa::portable;
  }();
  return best;
}

/// The best Isa that is neither above `cap` nor missing on this machine.
[[nodiscard]] inline Isa capped(Isa cap) noexcept {
  const Isa best = detect();
  return static_cast<unsigned>(cap) < static_cast<unsigned>(best) ? cap : best;
}

}  // namespace CBQ_ABI
}  // namespace cbq
