// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which kernels the CPU *and* the operating system can run. Names are features, not products. On x86 every feature is
// tested by CPUID and, for registers wider than 128 bits, by XGETBV: a CPU may have AVX-512 that the kernel does not
// save. AMX also needs a permission from Linux, which request_amx_permission() asks for.

#include <cstddef>
#include <cstdint>

#include <cbq/core/result.hpp>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace cbq {

/// Instruction sets with kernels of their own, in rising order within a processor family. `scalar` is the plain
/// reference; `portable` is xsimd for whatever the including file is compiled for (<cbq/gemm/kernels_portable.hpp>;
/// plain scalar code without that header). `avx_vnni` has 256-bit registers, `neon_dotprod` and `neon_i8mm` are Armv8.2
/// and Armv8.6 features, `amx_int8` includes `avx512_vnni`.
enum class Isa : unsigned char {
  scalar,
  portable,
  neon,
  neon_dotprod,
  neon_i8mm,
  avx2,
  avx_vnni,
  avx512_vnni,
  amx_int8
};

inline namespace CBQ_ABI {

/// All of them, in rising order.
inline constexpr Isa all_isas[] = {Isa::scalar, Isa::portable, Isa::neon,        Isa::neon_dotprod, Isa::neon_i8mm,
                                   Isa::avx2,   Isa::avx_vnni, Isa::avx512_vnni, Isa::amx_int8};

/// The name that `parse_isa` reads: that of the enumerator.
[[nodiscard]] constexpr const char* isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::portable:
      return "portable";
    case Isa::neon:
      return "neon";
    case Isa::neon_dotprod:
      return "neon_dotprod";
    case Isa::neon_i8mm:
      return "neon_i8mm";
    case Isa::avx2:
      return "avx2";
    case Isa::avx_vnni:
      return "avx_vnni";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::amx_int8:
      return "amx_int8";
  }
  return "scalar";
}

/// Reads an ISA name, for command lines and the environment variable CBQ_ISA of tests and benchmarks.
[[nodiscard]] constexpr Result<Isa> parse_isa(const char* name) noexcept {
  for (const Isa isa : all_isas) {
    const char* expected = isa_name(isa);
    std::size_t i = 0;
    while (name[i] != '\0' && name[i] == expected[i]) ++i;
    if (name[i] == expected[i]) return isa;
  }
  return Error{Errc::bad_argument, "unknown instruction set", "isa", name,
               "scalar, portable, neon, neon_dotprod, neon_i8mm, avx2, avx_vnni, avx512_vnni or amx_int8"};
}

/// The Isa whose floating-point kernels `isa` runs: those that only add integer products have none of their own.
[[nodiscard]] constexpr Isa floating_point_isa(Isa isa) noexcept {
  switch (isa) {
    case Isa::neon_dotprod:
    case Isa::neon_i8mm:
      return Isa::neon;
    case Isa::avx_vnni:
      return Isa::avx2;
    case Isa::amx_int8:
      return Isa::avx512_vnni;
    default:
      return isa;
  }
}

/// What the CPU and the operating system offer, feature by feature.
struct CpuFeatures {
  bool avx2 = false;           ///< AVX2, FMA and F16C, with ymm state saved
  bool avx_vnni = false;       ///< AVX-VNNI (256-bit vpdpbusd without AVX-512)
  bool avx512_vnni = false;    ///< AVX-512 F, BW, DQ, VL and VNNI, with zmm state saved
  bool avx512_bf16 = false;    ///< avx512_vnni and BF16 dot products
  bool fast_bfloat16 = false;  ///< avx512_bf16 on a CPU without AMX, allowed or not: faster than float products
  bool amx_int8 = false;       ///< AMX tiles and INT8 products, tile state enabled (permission is asked separately)
  bool neon = false;           ///< Armv8.0 vectors: every AArch64 CPU
  bool neon_dotprod = false;   ///< sdot and udot
  bool neon_i8mm = false;      ///< neon_dotprod and 8-bit matrix products (smmla, usdot)
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
  const bool amx = bit(edx, 24) || bit(edx, 25);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    features.avx_vnni = features.avx2 && bit(eax, 4);
    features.avx512_bf16 = features.avx512_vnni && bit(eax, 5);
    features.fast_bfloat16 = features.avx512_bf16 && !amx;
  }
#elif defined(__aarch64__)
  features.neon = true;
#if defined(__linux__)
  constexpr unsigned long dotprod = 1ul << 20;  // HWCAP_ASIMDDP
  constexpr unsigned long i8mm = 1ul << 13;     // HWCAP2_I8MM
  features.neon_dotprod = (::getauxval(AT_HWCAP) & dotprod) != 0;
  features.neon_i8mm = features.neon_dotprod && (::getauxval(AT_HWCAP2) & i8mm) != 0;
#else  // what the file is compiled for is all there is to know
#if defined(__ARM_FEATURE_DOTPROD)
  features.neon_dotprod = true;
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
  features.neon_i8mm = features.neon_dotprod;
#endif
#endif
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

/// Whether a machine with these features has kernels of `isa`.
[[nodiscard]] constexpr bool has_isa(const CpuFeatures& features, Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
    case Isa::portable:
      return true;
    case Isa::neon:
      return features.neon;
    case Isa::neon_dotprod:
      return features.neon_dotprod;
    case Isa::neon_i8mm:
      return features.neon_i8mm;
    case Isa::avx2:
      return features.avx2;
    case Isa::avx_vnni:
      return features.avx_vnni;
    case Isa::avx512_vnni:
      return features.avx512_vnni;
    case Isa::amx_int8:
      return features.amx_int8;
  }
  return false;
}

/// What this process may use: query_cpu_features(), with AMX only where its permission was granted. Found, and the
/// permission asked, once per process.
[[nodiscard]] inline const CpuFeatures& usable_features() noexcept {
  static const CpuFeatures usable = [] {
    CpuFeatures features = query_cpu_features();
    features.amx_int8 = features.amx_int8 && request_amx_permission();
    return features;
  }();
  return usable;
}

/// The best Isa that is neither above `cap` nor missing on this machine.
[[nodiscard]] inline Isa capped(Isa cap) noexcept {
  Isa best = Isa::scalar;
  for (const Isa isa : all_isas) {
    if (isa <= cap && has_isa(usable_features(), isa)) best = isa;
  }
  return best;
}

/// The best Isa of this machine.
[[nodiscard]] inline Isa detect() noexcept {
  return capped(Isa::amx_int8);
}

}  // namespace CBQ_ABI
}  // namespace cbq
