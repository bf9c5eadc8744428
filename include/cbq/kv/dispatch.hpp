// SPDX-License-Identifier: Apache-2.0
#pragma once

// One switch from Isa and bits to the kernels of attention on packed keys and values. The caller's Isa was capped to
// what the machine has. Processors with AMX have no use for it with so few rows; plain NEON takes the xsimd kernels.

#include <concepts>
#include <cstddef>

#include <cbq/core/cpu.hpp>
#include <cbq/kv/kernels_avx2.hpp>
#include <cbq/kv/kernels_avx512.hpp>
#include <cbq/kv/kernels_neon_dotprod.hpp>
#include <cbq/kv/kernels_portable.hpp>
#include <cbq/kv/kernels_scalar.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/weight_kernels_avx2.hpp>
#include <cbq/kv/weight_kernels_avx512.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The kernels of `isa` for `Bits`-bit codes.
template <int Bits>
[[nodiscard]] KvKernels kv_kernels_of(Isa isa) noexcept {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx_int8:
    case Isa::avx512_vnni:
      return {.keys = &isa::avx512_vnni::key_tile<Bits>,
              .values = &isa::avx512_vnni::value_tile<Bits>,
              .weights = &isa::avx512_vnni::weight_row,
              .page_weights = &isa::avx512_vnni::page_weights};
    case Isa::avx_vnni:
    case Isa::avx2:
      return {.keys = &isa::avx2::key_tile<Bits>,
              .values = &isa::avx2::value_tile<Bits>,
              .weights = &isa::avx2::weight_row};
#elif defined(__aarch64__)
    case Isa::neon_i8mm:
    case Isa::neon_dotprod:
      return {.keys = &isa::neon_dotprod::key_tile<Bits>,
              .values = &isa::neon_dotprod::value_tile<Bits>,
              .weights = &isa::neon_dotprod::weight_row};
#endif
    case Isa::scalar:
      return {.keys = &isa::scalar::key_tile<Bits>,
              .values = &isa::scalar::value_tile<Bits>,
              .weights = &isa::scalar::weight_row};
    default:
      return {.keys = &isa::portable::key_tile<Bits>,
              .values = &isa::portable::value_tile<Bits>,
              .weights = &isa::portable::weight_row};
  }
}

/// The kernels of `isa` for codes of `bits` bits: 2, 3, 4 or 8, as a KvLayout has them. Where there is no
/// `page_weights`, softmax_block and `weights` for every row do the same. A template, so that files that call no
/// attention compile no kernels.
template <std::same_as<Isa> I>
[[nodiscard]] KvKernels kv_kernels(I isa, std::size_t bits) noexcept {
  switch (bits) {
    case 2:
      return kv_kernels_of<2>(isa);
    case 3:
      return kv_kernels_of<3>(isa);
    case 4:
      return kv_kernels_of<4>(isa);
    default:
      return kv_kernels_of<8>(isa);
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
