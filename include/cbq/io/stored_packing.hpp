// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packs quantized modules of compressed-tensors checkpoints straight from their 32-bit words: no matrix of codes in
// between, each word is read once. Scales and zero points, a small part, are unpacked first. The bytes are those of
// StoredMatrix and pack(). Words of a row are code k in bits [k b, k b + b), so 32 codes are b whole words.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/packing.hpp>
#include <cbq/io/stored_tensors.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

using Bytes [[gnu::vector_size(16)]] = std::uint8_t;

[[nodiscard, gnu::always_inline]] inline Bytes as_bytes(const Longs& longs) noexcept {
  return __builtin_bit_cast(Bytes, longs);
}
/// Bytes 0 .. 7 of both in turn, and bytes 8 .. 15.
[[nodiscard, gnu::always_inline]] inline Longs zip_low(const Longs& a, const Longs& b) noexcept {
  return __builtin_bit_cast(
      Longs, __builtin_shufflevector(as_bytes(a), as_bytes(b), 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
}
[[nodiscard, gnu::always_inline]] inline Longs zip_high(const Longs& a, const Longs& b) noexcept {
  return __builtin_bit_cast(Longs, __builtin_shufflevector(as_bytes(a), as_bytes(b), 8, 24, 9, 25, 10, 26, 11, 27, 12,
                                                           28, 13, 29, 14, 30, 15, 31));
}

/// Eight codes of 3 bits as bytes.
[[nodiscard, gnu::always_inline]] inline std::uint64_t spread_3_bits(std::uint64_t codes) noexcept {
  codes = (codes | codes << 20) & 0x00000fff00000fffu;
  codes = (codes | codes << 10) & 0x003f003f003f003fu;
  return (codes | codes << 5) & 0x0707070707070707u;
}

/// 32 codes from `Bits` words.
template <int Bits>
[[nodiscard, gnu::always_inline]] inline BlockCodes unpack_words(const std::byte* from) noexcept {
  if constexpr (Bits == 8) {
    return load_codes(from, block_inputs);
  } else if constexpr (Bits == 4) {
    Longs both;
    __builtin_memcpy(&both, from, sizeof both);
    const Longs mask = Longs{} + every_byte(15);
    const Longs even = both & mask;
    const Longs odd = both >> 4 & mask;
    return {{zip_low(even, odd), zip_high(even, odd)}};
  } else if constexpr (Bits == 2) {
    Longs four = {};
    __builtin_memcpy(&four, from, sizeof(std::uint64_t));
    const Longs mask = Longs{} + every_byte(3);
    // Byte j holds codes 4 j .. 4 j + 3: pairs of codes first, then pairs of pairs.
    const Longs even = zip_low(four & mask, four >> 4 & mask);
    const Longs odd = zip_low(four >> 2 & mask, four >> 6 & mask);
    return {{zip_low(even, odd), zip_high(even, odd)}};
  } else {
    std::uint32_t w[3];
    __builtin_memcpy(w, from, sizeof w);
    const std::uint64_t low = w[0] | std::uint64_t{w[1]} << 32;
    const std::uint64_t high = w[1] >> 16 | std::uint64_t{w[2]} << 16;
    const std::uint64_t mask = 0xffffffu;
    return {{Longs{spread_3_bits(low & mask), spread_3_bits(low >> 24 & mask)},
             Longs{spread_3_bits(high & mask), spread_3_bits(high >> 24 & mask)}}};
  }
}

/// Codes that lie as words in rows; see pack_panel().
template <int Bits>
struct WordRows {
  static constexpr int bits = Bits;

  [[nodiscard, gnu::always_inline]] BlockCodes codes(std::size_t n, std::size_t input,
                                                     std::size_t count) const noexcept {
    const std::byte* const from = words.at(n, input / block_inputs * block_size);
    if (count == block_inputs) return unpack_words<Bits>(from);
    return last_codes(from, count);
  }
  [[gnu::always_inline]] void prefetch(std::size_t first, std::size_t count, std::size_t input) const noexcept {
    words.prefetch(first, count, input / block_inputs * block_size);
  }
  /// Every code fits its own bits.
  [[nodiscard]] Error bad_code(unsigned) const noexcept { return {}; }

  /// The codes of a row's last words, whatever their unused bits are.
  [[nodiscard]] static BlockCodes last_codes(const std::byte* from, std::size_t count) noexcept {
    std::byte whole[block_size] = {};
    __builtin_memcpy(whole, from, 4 * packed_words(count, Bits));
    const BlockCodes all = unpack_words<Bits>(whole);
    BlockCodes first = {};
    __builtin_memcpy(&first, &all, count);
    return first;
  }

  static constexpr std::size_t block_size = 4 * static_cast<std::size_t>(Bits);
  ByteRows words;
};

/// Packs found tensors, with scales and zero points already as numbers.
template <Executor E>
[[nodiscard]] Result<PackedMatrix> pack_words(const StoredTensors& tensors, const QuantizedMatrixView& parameters,
                                              const Grid& grid, std::span<std::byte> memory,
                                              const E& executor) noexcept {
  const std::size_t row_bytes = 4 * packed_words(tensors.inputs, grid.bits);
  const ByteRows words{tensors.packed->bytes.data(), tensors.outputs, row_bytes, row_bytes};
  switch (grid.bits) {
    case 2:
      return pack_rows_of(WordRows<2>{words}, parameters, grid, memory, executor);
    case 3:
      return pack_rows_of(WordRows<3>{words}, parameters, grid, memory, executor);
    case 4:
      return pack_rows_of(WordRows<4>{words}, parameters, grid, memory, executor);
    default:
      return pack_rows_of(WordRows<8>{words}, parameters, grid, memory, executor);
  }
}

}  // namespace packing

/// Packs module `module` of a Checkpoint or Safetensors, whose weights are on `grid`, into `memory` of at least
/// packed_bytes() of its layout. Errors of find_stored() and pack(); Errc::unsupported for grids without kernels,
/// Errc::out_of_memory. The bytes do not depend on the executor.
template <class Tensors, Executor E = SerialExecutor>
[[nodiscard]] Result<PackedMatrix> pack_stored(const Tensors& checkpoint, const std::string& module, const Grid& grid,
                                               std::span<std::byte> memory, const E& executor = {}) {
  const Result<StoredTensors> tensors = find_stored(checkpoint, module, grid);
  if (!tensors) return tensors.error();
  const auto named = [&](const Error& error) { return in_context(error, module); };
  const Result<PackedLayout> layout = packing::layout_for(grid, tensors->outputs, tensors->inputs, memory.size());
  if (!layout) return named(layout.error());
  if (grid.group % static_cast<int>(block_inputs) != 0) {
    return named(Error{Errc::unsupported, "[cbq] pack: groups are whole blocks of 32 inputs", "group", grid.group});
  }
  const Result<std::size_t> count = checked_product(layout->outputs, layout->groups);
  if (!count) return named(count.error());
  auto scales = AlignedBuffer<float>::allocate(*count);
  if (!scales) return named(scales.error());
  auto zeros = AlignedBuffer<std::uint8_t>::allocate(tensors->zeros == nullptr ? 0 : *count);
  if (!zeros) return named(zeros.error());
  const auto scale_view = matrix_view(scales->data(), layout->outputs, layout->groups);
  const auto zero_view = matrix_view(zeros->data(), layout->outputs, layout->groups);
  if (const Status read = read_parameters(*tensors, grid, scale_view, zero_view); !read) return named(read.error());
  const QuantizedMatrixView parameters{
      {nullptr, layout->outputs, layout->inputs, layout->inputs},
      as_const(scale_view),
      tensors->zeros == nullptr ? MatrixView<const std::uint8_t>{} : as_const(zero_view)};
  const Result<PackedMatrix> packed = packing::pack_words(*tensors, parameters, grid, memory, executor);
  if (!packed) return named(packed.error());
  return packed;
}

}  // namespace CBQ_ABI
}  // namespace cbq
