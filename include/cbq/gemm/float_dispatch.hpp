// SPDX-License-Identifier: Apache-2.0
#pragma once

// One switch from Isa to the float kernels. The caller's Isa was capped to what the machine has.

#include <concepts>

#include <cbq/core/cpu.hpp>
#include <cbq/gemm/float_kernels_avx2.hpp>
#include <cbq/gemm/float_kernels_avx512.hpp>
#include <cbq/gemm/float_kernels_neon.hpp>
#include <cbq/gemm/float_kernels_scalar.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <std::same_as<float> T>
[[nodiscard]] FloatTallKernels float_tall_kernels(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::float_tall_kernels<T>();
    case Isa::avx2:
      return isa::avx2::float_tall_kernels<T>();
#elif defined(__aarch64__)
    case Isa::neon:
      return isa::neon::float_tall_kernels<T>();
#endif
    default:
      return isa::scalar::float_tall_kernels<T>();
  }
}

template <PanelElement T>
[[nodiscard]] FloatNarrowKernels<T> float_narrow_kernels(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::float_narrow_kernels<T>();
    case Isa::avx2:
      return isa::avx2::float_narrow_kernels<T>();
#elif defined(__aarch64__)
    case Isa::neon:
      return isa::neon::float_narrow_kernels<T>();
#endif
    default:
      return isa::scalar::float_narrow_kernels<T>();
  }
}

/// Converts `count` elements, a multiple of 16, exactly.
using Bfloat16Decoder = void (*)(const bfloat16* from, std::size_t count, float* to) noexcept;

/// The member `decode` of float_narrow_kernels<bfloat16>(isa), without its other kernels.
template <std::same_as<bfloat16> T>
[[nodiscard]] Bfloat16Decoder bfloat16_decoder(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return &isa::avx512_vnni::decode_panels<T>;
    case Isa::avx2:
      return &isa::avx2::decode_panels<T>;
#elif defined(__aarch64__)
    case Isa::neon:
      return &isa::neon::decode_panels<T>;
#endif
    default:
      return &isa::scalar::decode_panels<T>;
  }
}

[[nodiscard]] inline FloatTransposeKernel float_transpose_kernel(Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return &isa::avx512_vnni::transpose_block;
    case Isa::avx2:
      return &isa::avx2::transpose_block;
#elif defined(__aarch64__)
    case Isa::neon:
      return &isa::neon::transpose_block;
#endif
    default:
      return &isa::scalar::transpose_block;
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
