// SPDX-License-Identifier: Apache-2.0
#pragma once

// Codes of 2..8 bits, packed without gaps into 32-bit words: the layout of `weight_packed` and `weight_zero_point` in
// the compressed-tensors form `pack-quantized`.
//
// Element k of a row occupies bits [k b, k b + b) of the row's words, read as one little-endian number; with b = 3, 5,
// 6, 7 it may straddle two words. A row ends on a whole word, whose unused bits are zero. Codes are unsigned, 0 .. 2^b
// - 1.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/io/tensor.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Words that hold `count` codes of `bits` bits: ceil(count bits / 32); bits is 1..8. No overflow for any count.
[[nodiscard]] constexpr std::size_t packed_words(std::size_t count, int bits) noexcept {
  const auto b = static_cast<std::size_t>(bits);
  return count / 32 * b + divide_up(count % 32 * b, 32);
}

namespace io_detail {

inline Status check_packed_size(const MatrixView<const std::uint8_t>& codes, int bits, std::size_t words) noexcept {
  if (bits < 2 || bits > 8) return Error{Errc::bad_argument, "codes have 2 to 8 bits", "bits", bits, "2..8"};
  const Result<std::size_t> wanted = checked_product(codes.rows, packed_words(codes.columns, bits));
  if (!wanted) return wanted.error();
  if (*wanted == words) return {};
  return Error{Errc::bad_shape, "the packed words do not fit the codes", "", ErrorText(words) << " words",
               ErrorText(*wanted) << " words"};
}

}  // namespace io_detail

/// Packs each row of `codes` into packed_words(columns, bits) words. Errc::bad_shape; Errc::bad_argument for a code
/// that needs more bits.
[[nodiscard]] inline Status pack_rows(const MatrixView<const std::uint8_t>& codes, int bits,
                                      std::span<std::int32_t> words) noexcept {
  if (const Status fits = io_detail::check_packed_size(codes, bits, words.size()); !fits) return fits;
  if (codes.columns == 0) return {};  // any number of empty rows
  const auto width = static_cast<unsigned>(bits);
  std::size_t word = 0;
  for (std::size_t r = 0; r < codes.rows; ++r) {
    const std::uint8_t* from = row(codes, r);
    std::uint64_t waiting = 0;  // bits not yet written, the earliest lowest
    unsigned count = 0;
    for (std::size_t k = 0; k < codes.columns; ++k) {
      if ((unsigned{from[k]} >> width) != 0) {
        return Error{Errc::bad_argument, "a code lies outside the grid", ErrorText("row ") << r << ", column " << k,
                     int{from[k]}, ErrorText("at most ") << (1 << bits) - 1};
      }
      waiting |= std::uint64_t{from[k]} << count;
      count += width;
      if (count >= 32) {
        words[word++] = static_cast<std::int32_t>(static_cast<std::uint32_t>(waiting));
        waiting >>= 32;
        count -= 32;
      }
    }
    if (count != 0) words[word++] = static_cast<std::int32_t>(static_cast<std::uint32_t>(waiting));
  }
  return {};
}

/// The inverse of pack_rows, from the little-endian bytes of the words (no alignment needed). Errc::bad_shape.
[[nodiscard]] inline Status unpack_rows(std::span<const std::byte> words, int bits,
                                        const MatrixView<std::uint8_t>& codes) noexcept {
  if (words.size() % 4 != 0)
    return Error{Errc::bad_shape, "the packed words are cut", "", words.size(), "4-byte words"};
  if (const Status fits = io_detail::check_packed_size(as_const(codes), bits, words.size() / 4); !fits) return fits;
  if (codes.columns == 0) return {};
  const auto width = static_cast<unsigned>(bits);
  const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
  const std::byte* from = words.data();
  for (std::size_t r = 0; r < codes.rows; ++r) {
    std::uint8_t* to = row(codes, r);
    std::uint64_t waiting = 0;
    unsigned count = 0;
    for (std::size_t k = 0; k < codes.columns; ++k) {
      if (count < width) {
        waiting |= std::uint64_t{load_unaligned<std::uint32_t>(from)} << count;
        from += 4;
        count += 32;
      }
      to[k] = static_cast<std::uint8_t>(waiting & mask);
      waiting >>= width;
      count -= width;
    }
  }
  return {};
}

/// Packs the codes of `matrix` along its inputs, [N, ceil(K b / 32)]. Errors as pack_rows.
[[nodiscard]] inline Status pack_codes(const QuantizedMatrixView& matrix, const Grid& grid,
                                       std::span<std::int32_t> words) noexcept {
  return pack_rows(matrix.codes, grid.bits, words);
}

/// The inverse of pack_codes.
[[nodiscard]] inline Status unpack_codes(std::span<const std::byte> words, const Grid& grid,
                                         const MatrixView<std::uint8_t>& codes) noexcept {
  return unpack_rows(words, grid.bits, codes);
}

/// Packs zero points along the outputs: [ceil(N b / 32), groups], element n of group g in bits [n b, n b + b) of column
/// g. Errc::bad_shape, Errc::bad_argument.
[[nodiscard]] inline Status pack_zeros(const MatrixView<const std::uint8_t>& zeros, int bits,
                                       std::span<std::int32_t> words) noexcept {
  const MatrixView<const std::uint8_t> transposed{
      .data = nullptr, .rows = zeros.columns, .columns = zeros.rows, .stride = 0};
  if (const Status fits = io_detail::check_packed_size(transposed, bits, words.size()); !fits) return fits;
  if (zeros.columns == 0) return {};  // any number of empty rows
  for (std::int32_t& word : words) word = 0;
  const auto width = static_cast<std::size_t>(bits);
  for (std::size_t n = 0; n < zeros.rows; ++n) {
    const std::size_t word = packed_words(n + 1, bits) - 1;  // of the last bit
    const std::size_t first = n * width / 32;                // of the first bit
    const auto shift = static_cast<unsigned>(n % 32 * width % 32);
    for (std::size_t g = 0; g < zeros.columns; ++g) {
      const unsigned zero = row(zeros, n)[g];
      if ((zero >> width) != 0) {
        return Error{Errc::bad_argument, "a zero point lies outside the grid",
                     ErrorText("row ") << n << ", group " << g, zero, ErrorText("at most ") << (1 << bits) - 1};
      }
      const auto add = [&words, &zeros, g](std::size_t at, std::uint32_t value) {
        std::int32_t& target = words[at * zeros.columns + g];
        target = static_cast<std::int32_t>(static_cast<std::uint32_t>(target) | value);
      };
      const std::uint64_t placed = std::uint64_t{zero} << shift;
      add(first, static_cast<std::uint32_t>(placed));
      if (word != first) add(word, static_cast<std::uint32_t>(placed >> 32));
    }
  }
  return {};
}

/// The inverse of pack_zeros. Errc::bad_shape.
[[nodiscard]] inline Status unpack_zeros(std::span<const std::byte> words, int bits,
                                         const MatrixView<std::uint8_t>& zeros) noexcept {
  const MatrixView<const std::uint8_t> transposed{
      .data = nullptr, .rows = zeros.columns, .columns = zeros.rows, .stride = 0};
  if (words.size() % 4 != 0)
    return Error{Errc::bad_shape, "the packed words are cut", "", words.size(), "4-byte words"};
  if (const Status fits = io_detail::check_packed_size(transposed, bits, words.size() / 4); !fits) return fits;
  if (zeros.columns == 0) return {};
  const auto width = static_cast<std::size_t>(bits);
  const unsigned mask = (1u << width) - 1;
  for (std::size_t n = 0; n < zeros.rows; ++n) {
    const std::size_t last = packed_words(n + 1, bits) - 1;
    const std::size_t first = n * width / 32;
    const auto shift = static_cast<unsigned>(n % 32 * width % 32);
    for (std::size_t g = 0; g < zeros.columns; ++g) {
      const auto word = [&words, &zeros, g](std::size_t at) {
        return std::uint64_t{load_unaligned<std::uint32_t>(words.data() + 4 * (at * zeros.columns + g))};
      };
      const std::uint64_t both = word(first) | (last != first ? word(last) << 32 : 0);
      row(zeros, n)[g] = static_cast<std::uint8_t>(static_cast<unsigned>(both >> shift) & mask);
    }
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
