// SPDX-License-Identifier: Apache-2.0
#pragma once

// Version, inline namespace and target-region macros: the only macros of cbq that a reader of its headers meets.
//
// Functions and owning types live in an inline namespace whose name spells the version and the instruction sets that
// the including file is compiled for. Two files compiled with different `-march` therefore hold different symbols, and
// the linker can never pick the AVX-512 copy of a function for a baseline caller. Plain data of pointers, integers and
// enums (schemes, views, packed forms, element types) lives in flag-free `cbq` and may cross files.

#define CBQ_VERSION_MAJOR 0
#define CBQ_VERSION_MINOR 1
#define CBQ_VERSION_PATCH 0

// Spelled into symbol names; a test overrides it to link two versions into one program.
#ifndef CBQ_ABI_VERSION
#define CBQ_ABI_VERSION v0_1
#endif

#if defined(__AVX512F__)
#define CBQ_ABI_SIMD _avx512
#elif defined(__AVX2__)
#define CBQ_ABI_SIMD _avx2
#elif defined(__AVX__)
#define CBQ_ABI_SIMD _avx
#elif defined(__SSE4_2__)
#define CBQ_ABI_SIMD _sse42
#elif defined(__ARM_FEATURE_SVE)
#define CBQ_ABI_SIMD _sve
#elif defined(__ARM_FEATURE_DOTPROD)
#define CBQ_ABI_SIMD _dotprod
#else
#define CBQ_ABI_SIMD _baseline
#endif

// VNNI is part of the name because compilers turn plain loops into vpdpbusd where it is enabled.
#if defined(__AVX512VNNI__)
#define CBQ_ABI_DOT _vnni
#elif defined(__AVXVNNI__)
#define CBQ_ABI_DOT _avxvnni
#else
#define CBQ_ABI_DOT
#endif

#if defined(__AVX512FP16__)
#define CBQ_ABI_HALF _fp16
#else
#define CBQ_ABI_HALF
#endif

#if defined(__FAST_MATH__)
#define CBQ_ABI_MATH _fastmath
#else
#define CBQ_ABI_MATH
#endif

#define CBQ_PASTE_EXPANDED(version, simd, dot, half, math) version##simd##dot##half##math
#define CBQ_PASTE(version, simd, dot, half, math) CBQ_PASTE_EXPANDED(version, simd, dot, half, math)

/// The inline namespace of functions and owners, for example `v0_1_avx512_vnni`.
#define CBQ_ABI CBQ_PASTE(CBQ_ABI_VERSION, CBQ_ABI_SIMD, CBQ_ABI_DOT, CBQ_ABI_HALF, CBQ_ABI_MATH)

// Target regions: the functions between CBQ_BEGIN_REGION(features) and CBQ_END_REGION are compiled for those features,
// whatever the flags of the file. Inside: no lambdas, statics, std containers, exceptions, Eigen or xsimd, and no
// #include. GCC 12's own AVX-512 headers warn falsely about uninitialized variables, at the user's -Wall too: hence the
// two ignores.
#define CBQ_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define CBQ_BEGIN_REGION(features) \
  CBQ_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define CBQ_END_REGION CBQ_PRAGMA(clang attribute pop)
#else
// On Arm GCC moves the loads of a whole tile to its front before it gives out registers, and then has too few: the
// 8-bit tile of plain NEON is 269 instructions per block without that pass and 467, 165 of them on the stack, with it.
#if defined(__aarch64__)
#define CBQ_REGION_SCHEDULING CBQ_PRAGMA(GCC optimize("no-schedule-insns"))
#else
#define CBQ_REGION_SCHEDULING
#endif
#define CBQ_BEGIN_REGION(features)                           \
  CBQ_PRAGMA(GCC diagnostic push)                            \
  CBQ_PRAGMA(GCC diagnostic ignored "-Wuninitialized")       \
  CBQ_PRAGMA(GCC diagnostic ignored "-Wmaybe-uninitialized") \
  CBQ_PRAGMA(GCC push_options)                               \
  CBQ_REGION_SCHEDULING                                      \
  CBQ_PRAGMA(GCC target(features))
#define CBQ_END_REGION        \
  CBQ_PRAGMA(GCC pop_options) \
  CBQ_PRAGMA(GCC diagnostic pop)
#endif

#define CBQ_TARGET_AVX2 "avx2,fma,f16c"
#define CBQ_TARGET_AVXVNNI CBQ_TARGET_AVX2 ",avxvnni"
#define CBQ_TARGET_AVX512VNNI CBQ_TARGET_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define CBQ_TARGET_AVX512BF16 CBQ_TARGET_AVX512VNNI ",avx512bf16"
#define CBQ_TARGET_AMX CBQ_TARGET_AVX512VNNI ",amx-tile,amx-int8"

// On Arm GCC compiles a function only for its region's features and inlines only what needs no more: baseline regions
// shed the features of the file, others add to it where the file has dot products and start from Armv8.2 where not.
#if defined(__clang__)
#define CBQ_TARGET_NEON "simd"
#else
#define CBQ_TARGET_NEON "+nothing+simd"
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#define CBQ_TARGET_NEON_DOTPROD "+dotprod"
#else
#define CBQ_TARGET_NEON_DOTPROD "arch=armv8.2-a+dotprod"
#endif
#define CBQ_TARGET_NEON_I8MM CBQ_TARGET_NEON_DOTPROD "+i8mm"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "[cbq] packed weights and model files are little-endian; big-endian targets are not supported"
#endif
#if defined(_MSC_VER) && !defined(__clang__)
#error "[cbq] MSVC has no target regions; use clang-cl (untested)"
#endif
