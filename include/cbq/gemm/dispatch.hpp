// SPDX-License-Identifier: Apache-2.0
#pragma once

// One switch from Isa to function pointer. The caller's Isa was capped to what the machine has.

#include <cbq/core/cpu.hpp>
#include <cbq/gemm/activation_kernels_amx.hpp>
#include <cbq/gemm/activation_kernels_avx512.hpp>
#include <cbq/gemm/activation_kernels_neon.hpp>
#include <cbq/gemm/integer_kernels_amx.hpp>
#include <cbq/gemm/integer_kernels_avx2.hpp>
#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/integer_kernels_avx_vnni.hpp>
#include <cbq/gemm/integer_kernels_neon.hpp>
#include <cbq/gemm/integer_kernels_neon_dotprod.hpp>
#include <cbq/gemm/integer_kernels_neon_i8mm.hpp>
#include <cbq/gemm/integer_kernels_scalar.hpp>
#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/weight_only_kernels_avx2.hpp>
#include <cbq/gemm/weight_only_kernels_avx512.hpp>
#include <cbq/gemm/weight_only_kernels_avx512_bf16.hpp>
#include <cbq/gemm/weight_only_kernels_avx_vnni.hpp>
#include <cbq/gemm/weight_only_kernels_neon.hpp>
#include <cbq/gemm/weight_only_kernels_scalar.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Where matmul finds its kernels; PortableKernels of <cbq/gemm/kernels_portable.hpp> has the same members. Defined
/// outside the class, and thus not inline, so that <cbq/gemm/extern_kernels.hpp> can keep them out of a file.
struct RegionKernels {
  /// Kernel for `Bits`-bit weights with zero points of kind `Z`.
  template <int Bits, Zero Z>
  [[nodiscard]] static IntegerKernel integer_tile(Isa isa) noexcept;

  /// Decoder of packed panels to floats.
  template <int Bits, Zero Z>
  [[nodiscard]] static DecodeKernel decode_panel(Isa isa) noexcept;

  /// Kernels for few rows of floats; none where panels are decoded for any number of rows.
  template <int Bits, Zero Z>
  [[nodiscard]] static WeightOnlyKernels weight_only_tile(Isa isa) noexcept;

  /// Kernels for rows of bfloat16; none where the CPU has no fast products of them, or `isa` no AVX-512.
  template <int Bits, Zero Z>
  [[nodiscard]] static Bfloat16Kernels bfloat16_tile(Isa isa) noexcept;
};

template <int Bits, Zero Z>
IntegerKernel RegionKernels::integer_tile(Isa isa) noexcept {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx_int8:
      return &isa::amx_int8::integer_tile<Bits, Z>;
    case Isa::avx512_vnni:
      return &isa::avx512_vnni::integer_tile<Bits, Z>;
    case Isa::avx_vnni:
      return &isa::avx_vnni::integer_tile<Bits, Z>;
    case Isa::avx2:
      return &isa::avx2::integer_tile<Bits, Z>;
#elif defined(__aarch64__)
    case Isa::neon_i8mm:
      return &isa::neon_i8mm::integer_tile<Bits, Z>;
    case Isa::neon_dotprod:
      return &isa::neon_dotprod::integer_tile<Bits, Z>;
    case Isa::neon:
      return &isa::neon::integer_tile<Bits, Z>;
#endif
    default:
      return &isa::scalar::integer_tile<Bits, Z>;
  }
}

template <int Bits, Zero Z>
DecodeKernel RegionKernels::decode_panel(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return &isa::avx512_vnni::decode_panel<Bits, Z>;
    case Isa::avx2:
      return &isa::avx2::decode_panel<Bits, Z>;
#elif defined(__aarch64__)
    case Isa::neon:
      return &isa::neon::decode_panel<Bits, Z>;
#endif
    default:
      return &isa::scalar::decode_panel<Bits, Z>;
  }
}

template <int Bits, Zero Z>
WeightOnlyKernels RegionKernels::weight_only_tile(Isa isa) noexcept {
  [[maybe_unused]] constexpr std::int32_t zero_factor = Z == Zero::affine ? 1 : 1 << (Bits - 1);
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx_int8:
    case Isa::avx512_vnni:
      return {.fixed_point = &isa::avx512_vnni::fixed_point_tile<Bits, Z>,
              .to_fixed_point = &isa::avx512_vnni::to_fixed_point,
              .zero_factor = zero_factor};
    case Isa::avx_vnni:
      return {.fixed_point = &isa::avx_vnni::fixed_point_tile<Bits, Z>,
              .to_fixed_point = &isa::avx2::to_fixed_point,
              .zero_factor = zero_factor};
    case Isa::avx2:
      return {.fixed_point = &isa::avx2::fixed_point_tile<Bits, Z>,
              .to_fixed_point = &isa::avx2::to_fixed_point,
              .zero_factor = zero_factor};
#elif defined(__aarch64__)
    case Isa::neon_i8mm:
    case Isa::neon_dotprod:
    case Isa::neon:
      return {.floats = &isa::neon::weight_only_tile<Bits, Z>};
#endif
    default:
      return {};
  }
}

// Not an Isa of its own: no integer kernel differs, and the CPUs that have it are AVX-512 VNNI ones with one feature
// more. A cap below AVX-512 rules it out like everything else there. CPUs that have AMX are Intel's, whose vdpbf16ps
// runs at half the rate of their float products (docs/performance.md).
template <int Bits, Zero Z>
Bfloat16Kernels RegionKernels::bfloat16_tile([[maybe_unused]] Isa isa) noexcept {
#if defined(__x86_64__)
  if (floating_point_isa(isa) == Isa::avx512_vnni && usable_features().fast_bfloat16) {
    return isa::avx512_bf16::bfloat16_kernels<Bits, Z>();
  }
#endif
  return {};
}

/// Range of one row of activations.
[[nodiscard]] inline RowRange row_range(const float* values, std::size_t count, Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::row_range(values, count);
    case Isa::avx2:
      return isa::avx2::row_range(values, count);
#elif defined(__aarch64__)
    case Isa::neon:
      return isa::neon::row_range(values, count);
#endif
    default:
      return isa::scalar::row_range(values, count);
  }
}

/// Quantizes one row of activations into its panel.
inline void quantize_row(const ActivationRow& row, Isa isa) noexcept {
#if defined(__x86_64__)
  if (row.slice_inputs != block_inputs) return isa::amx_int8::quantize_row(row);
#endif
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::quantize_row(row);
    case Isa::avx2:
      return isa::avx2::quantize_row(row);
#elif defined(__aarch64__)
    case Isa::neon:
      return isa::neon::quantize_row(row);
#endif
    default:
      return isa::scalar::quantize_row(row);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
