// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packed weights to the bytes that AMX multiplies: 64 inputs x 16 outputs per tile, zero points subtracted. Also what a
// kernel keeps of one pass, and how a pass is cut into chunks of decoded weights that stay in the L1 cache.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/amx_tiles.hpp>
#include <cbq/gemm/integer_kernels_avx512.hpp>
#include <cbq/gemm/integer_tile.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::amx_int8 {

/// Decoded weights that are kept: with as many bytes of activations and the sums of one panel they fit an L1 cache of
/// 48 KiB.
inline constexpr std::size_t decoded_bytes = 16384;

CBQ_BEGIN_REGION(CBQ_TARGET_AMX)

/// One pass: `rows` rows from the start of a panel times one strip of outputs, and its working memory.
struct Pass {
  const IntegerTile* tile = nullptr;
  std::size_t first_row = 0;
  std::size_t rows = 0;
  std::size_t group_slices = 0;  // of all groups but perhaps the last
  std::size_t slices = 0;        // of all groups
  std::int8_t* weights = nullptr;
  float* totals = nullptr;
  std::int32_t* sums = nullptr;  // of one panel; of all panels where groups are cut
};

/// Slices [first, first + slices) of groups [group, group + groups): what is decoded at a time. Either whole groups,
/// of which the last may have fewer slices, or a part of one.
struct Chunk {
  std::size_t group = 0;
  std::size_t groups = 0;
  std::size_t first = 0;
  std::size_t slices = 0;
};

/// Slices of `group` from `first` on.
[[gnu::always_inline]] inline std::size_t slices_left(const Pass& pass, std::size_t group, std::size_t first) noexcept {
  const std::size_t all = group + 1 == pass.tile->groups ? pass.slices - group * pass.group_slices : pass.group_slices;
  return all - first;
}

template <int Bits, unsigned Step>
[[gnu::always_inline]] inline void decode_steps(const std::byte* block, __m512i zero, std::int8_t* out) noexcept {
  _mm512_storeu_si512(out + Step * line_bytes, _mm512_sub_epi8(avx512_vnni::decode_step<Bits, Step>(block), zero));
  if constexpr (Step < 7) decode_steps<Bits, Step + 1>(block, zero, out);
}

/// What decoding subtracts from the codes of a group, byte by byte of a line.
template <int Bits, Zero Z>
[[gnu::always_inline]] inline __m512i subtracted_zero(const std::byte* header) noexcept {
  if constexpr (Z == Zero::affine && Bits < 8) {
    const __m128i zeros = _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + group_scales_bytes));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(zeros), _mm512_set1_epi32(0x01010101));
  } else {
    return _mm512_set1_epi8(static_cast<char>(1 << (Bits - 1)));
  }
}

/// Decodes a chunk to [group][slice][panel][step][64 bytes]. A block that the packed weights lack meets activations of
/// 0.
template <int Bits, Zero Z, std::size_t Panels>
inline void decode_chunk(const Pass& pass, const Chunk& chunk) noexcept {
  const IntegerTile& tile = *pass.tile;
  constexpr std::size_t decoded_block = block_inputs * panel_outputs;
  const std::size_t slice_blocks = tile.shape.inputs / block_inputs;
  std::int8_t* group_out = pass.weights;
  for (std::size_t group = chunk.group; group < chunk.group + chunk.groups; ++group) {
    const std::size_t blocks_left = tile.blocks - group * tile.blocks_per_group;
    const std::size_t blocks = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    const std::size_t left = slices_left(pass, group, chunk.first);
    const std::size_t slices = left < chunk.slices ? left : chunk.slices;
    for (std::size_t p = 0; p < Panels; ++p) {
      const std::byte* header = tile.panel + p * tile.panel_bytes + group * tile.group_bytes;
      const __m512i zero = subtracted_zero<Bits, Z>(header);
      std::int8_t* out = group_out + p * slice_blocks * decoded_block;
      for (std::size_t slice = 0; slice < slices; ++slice) {
        for (std::size_t b = 0; b < slice_blocks; ++b) {
          const std::size_t block = (chunk.first + slice) * slice_blocks + b;
          if (block < blocks) {
            decode_steps<Bits, 0>(header + tile.header_bytes + block * block_bytes(Bits), zero,
                                  out + b * decoded_block);
          } else {
            __builtin_memset(out + b * decoded_block, 0, decoded_block);
          }
        }
        out += Panels * slice_blocks * decoded_block;
      }
    }
    group_out += chunk.slices * Panels * slice_blocks * decoded_block;
  }
}

CBQ_END_REGION
}  // namespace isa::amx_int8
}  // namespace CBQ_ABI
}  // namespace cbq

#endif
