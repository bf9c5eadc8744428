// SPDX-License-Identifier: Apache-2.0
#pragma once

// Codes of quantized matrices as GGUF blocks of 32 and back, without rounding: every weight is the same float before
// and after. With v = code - zero, which is what a code stands for whatever its bits:
//
//   Q4_0   18 bytes   half d; 16 bytes, code v + 8 of element j low, of j + 16 high     v of -8 .. 7
//   Q4_1   20 bytes   half d, half m = -zero d; the codes themselves                    4 bits, m exact in half
//   Q5_0   22 bytes   half d; 32 bits, bit j the fifth of element j; 16 bytes           v of -16 .. 15
//   Q8_0   34 bytes   half d; 32 int8 v                                                 v of -128 .. 127
//
// The smallest that holds the matrix is taken: codes of 2 and 3 bits and symmetric ones of 4 lie in Q4_0, symmetric
// ones of 8 in Q8_0, affine ones of 4 in Q4_1 or Q5_0. A scale of a longer group is repeated in each of its blocks. One
// pass over the codes.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/view.hpp>
#include <cbq/io/gguf_blocks.hpp>
#include <cbq/io/gguf_packing.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

inline constexpr std::size_t gguf_block_inputs = 32;

namespace io_detail {

/// What v may be in blocks of a type; `high` below `low`: the type holds no codes.
struct GgufCodeRange {
  int low = 0;
  int high = -1;
};

constexpr GgufCodeRange gguf_code_range(GgufType type) noexcept {
  switch (type) {
    case GgufType::q4_0:
      return {-8, 7};
    case GgufType::q5_0:
      return {-16, 15};
    case GgufType::q8_0:
      return {-128, 127};
    default:
      return {};
  }
}

constexpr bool is_exact_half(float value) noexcept {
  const half rounded = to_half(value);
  return (rounded.bits & 0x7c00u) != 0x7c00u && to_float(rounded) == value;
}

/// Whether groups end where blocks end and scales are halves.
inline Status check_gguf_scales(const Grid& grid, std::size_t inputs, const MatrixView<const float>& scales) noexcept {
  if (inputs % gguf_block_inputs != 0 || (inputs != 0 && group_length(grid, inputs) % gguf_block_inputs != 0)) {
    return Error{Errc::unsupported, "blocks of 32 inputs do not hold this matrix", "inputs per row and group",
                 ErrorText(inputs) << " and " << group_length(grid, inputs), "multiples of 32"};
  }
  for (std::size_t r = 0; r < scales.rows; ++r) {
    for (std::size_t g = 0; g < scales.columns; ++g) {
      if (is_exact_half(row(scales, r)[g])) continue;
      return Error{Errc::unsupported, "a scale is no half, and nothing is rounded here",
                   ErrorText("row ") << r << ", group " << g};
    }
  }
  return {};
}

inline void store_half(std::byte* to, half value) noexcept {
  __builtin_memcpy(to, &value.bits, sizeof value.bits);
}

}  // namespace io_detail

namespace io_detail {

/// The least and largest zero point of a matrix, and whether every product with its scale is a half.
struct GgufZeros {
  int least = 0;
  int most = 0;
  bool exact_minima = false;
};

inline GgufZeros survey_zeros(const Grid& grid, const MatrixView<const float>& scales,
                              const MatrixView<const std::uint8_t>& zeros) noexcept {
  const int symmetric = symmetric_zero(grid);
  if (grid.zero == Zero::symmetric || zeros.rows == 0 || zeros.columns == 0) return {symmetric, symmetric, false};
  GgufZeros found{.least = max_code(grid), .most = 0, .exact_minima = grid.bits == 4};
  for (std::size_t r = 0; r < zeros.rows; ++r) {
    for (std::size_t g = 0; g < zeros.columns; ++g) {
      const int zero = row(zeros, r)[g];
      found.least = zero < found.least ? zero : found.least;
      found.most = zero > found.most ? zero : found.most;
      found.exact_minima = found.exact_minima && is_exact_half(-static_cast<float>(zero) * row(scales, r)[g]);
    }
  }
  return found;
}

}  // namespace io_detail

/// The smallest block type that holds any codes of `grid` with these scales and zero points ([N, groups] each, zero
/// points of affine grids only). Errc::unsupported: rows or groups that are no whole blocks, a scale that is no half,
/// affine codes of 8 bits that are too far from their zero points. Errc::bad_argument, Errc::bad_shape.
[[nodiscard]] inline Result<GgufType> gguf_type_for(const Grid& grid, std::size_t inputs,
                                                    const MatrixView<const float>& scales,
                                                    const MatrixView<const std::uint8_t>& zeros) noexcept {
  const QuantizedMatrixView shape = {
      {.data = nullptr, .rows = scales.rows, .columns = inputs, .stride = inputs}, scales, zeros};
  if (const Status valid = check_shape(shape, grid); !valid) return valid.error();
  if (const Status ok = io_detail::check_gguf_scales(grid, inputs, scales); !ok) return ok.error();
  const io_detail::GgufZeros found = io_detail::survey_zeros(grid, scales, zeros);
  for (const GgufType type : {GgufType::q4_0, GgufType::q4_1, GgufType::q5_0, GgufType::q8_0}) {
    const io_detail::GgufCodeRange range = io_detail::gguf_code_range(type);
    const bool inside = -found.most >= range.low && max_code(grid) - found.least <= range.high;
    if (type == GgufType::q4_1 ? found.exact_minima : inside) return type;
  }
  return Error{Errc::unsupported, "no block holds codes this far from their zero points", "zero points",
               ErrorText(found.least) << ".." << found.most, "code - zero of -128 .. 127"};
}

namespace io_detail {

/// Writes one block: `codes` of 32 elements less `zero`.
inline void encode_block(GgufType type, const std::uint8_t* codes, int zero, std::byte* block) noexcept {
  if (type == GgufType::q8_0) {
    for (std::size_t i = 0; i < 32; ++i) block[2 + i] = static_cast<std::byte>(static_cast<int>(codes[i]) - zero);
    return;
  }
  const auto offset = static_cast<unsigned>((type == GgufType::q4_0 ? 8 : type == GgufType::q5_0 ? 16 : zero) - zero);
  if (type == GgufType::q5_0) {
    std::uint32_t fifth = 0;
    for (unsigned i = 0; i < 32; ++i) fifth |= ((codes[i] + offset) >> 4 & 1u) << i;
    __builtin_memcpy(block + 2, &fifth, sizeof fifth);
  }
  std::byte* pairs = block + (type == GgufType::q4_0 ? 2 : type == GgufType::q4_1 ? 4 : 6);
  for (std::size_t i = 0; i < 16; ++i) {
    const unsigned low = (codes[i] + offset) & 15u;
    const unsigned high = (codes[i + 16] + offset) & 15u;
    pairs[i] = static_cast<std::byte>(low | high << 4);
  }
}

/// The inverse: codes are v plus the zero point of the blocks' own grid.
inline void decode_block(GgufType type, const std::byte* block, std::uint8_t* codes) noexcept {
  if (type == GgufType::q8_0) {
    for (std::size_t i = 0; i < 32; ++i) codes[i] = static_cast<std::uint8_t>(load_code(block + 2 + i) ^ 128u);
    return;
  }
  const std::byte* pairs = block + (type == GgufType::q4_0 ? 2 : type == GgufType::q4_1 ? 4 : 6);
  const std::uint32_t fifth = type == GgufType::q5_0 ? load_unaligned<std::uint32_t>(block + 2) : 0;
  for (unsigned i = 0; i < 16; ++i) {
    const unsigned both = load_code(pairs + i);
    codes[i] = static_cast<std::uint8_t>((both & 15u) | (fifth >> i & 1u) << 4);
    codes[i + 16] = static_cast<std::uint8_t>(both >> 4 | (fifth >> (i + 16) & 1u) << 4);
  }
}

/// Whether all of a group's codes lie on the grid and, less its zero point, in the range of the type.
inline bool codes_fit(std::span<const std::uint8_t> codes, int zero, const Grid& grid, GgufType type) noexcept {
  std::uint8_t least = 255;
  std::uint8_t most = 0;
  for (const std::uint8_t code : codes) {
    least = code < least ? code : least;
    most = code > most ? code : most;
  }
  const GgufCodeRange range = gguf_code_range(type);
  const bool inside = type == GgufType::q4_1 ? grid.bits <= 4 : least - zero >= range.low && most - zero <= range.high;
  return most <= max_code(grid) && inside;
}

/// Writes the blocks of one group of a row; false when they cannot hold it.
inline bool encode_group(std::span<const std::uint8_t> codes, half scale, int zero, const Grid& grid,
                         const GgufTypeLayout& layout, std::byte* to) noexcept {
  const float minimum = -static_cast<float>(zero) * to_float(scale);
  const bool has_minimum = layout.type == GgufType::q4_1;
  if (zero > max_code(grid) || (has_minimum && !is_exact_half(minimum))) return false;
  if (!codes_fit(codes, zero, grid, layout.type)) return false;
  for (std::size_t k = 0; k < codes.size(); k += layout.block, to += layout.bytes) {
    store_half(to, scale);
    if (has_minimum) store_half(to + 2, to_half(minimum));
    encode_block(layout.type, codes.data() + k, zero, to);
  }
  return true;
}

/// Whether `bytes` is what blocks of `type` take for codes of this shape.
inline Status check_gguf_size(GgufType type, std::size_t rows, std::size_t columns, std::size_t bytes) noexcept {
  const Result<std::size_t> wanted = gguf_bytes(type, {.rank = 2, .sizes = {rows, columns}});
  if (!wanted) return wanted.error();
  if (bytes == *wanted) return {};
  return Error{Errc::bad_shape, "the bytes are not the blocks of this shape", "", ErrorText(bytes) << " bytes",
               ErrorText(*wanted) << " bytes"};
}

}  // namespace io_detail

/// The blocks of a matrix on `grid`, row by row, into exactly as many bytes as they take (gguf_bytes()). Any type that
/// holds these codes will do, not only that of gguf_type_for(). Errc::unsupported (a scale, minimum or code that has no
/// exact place, with row and group; another type), Errc::bad_shape.
[[nodiscard]] inline Status encode_gguf(const QuantizedMatrixView& matrix, const Grid& grid, GgufType type,
                                        std::span<std::byte> blocks) noexcept {
  const std::size_t inputs = matrix.codes.columns;
  if (const Status ok = check_shape(matrix, grid); !ok) return ok;
  const Result<GgufTypeLayout> layout = gguf_layout(static_cast<std::uint32_t>(type));
  if (!layout) return layout.error();
  if (type != GgufType::q4_1 && io_detail::gguf_code_range(type).high < 0) {
    return Error{Errc::unsupported, "blocks of this type hold no codes", "", layout->name, "Q4_0, Q4_1, Q5_0 or Q8_0"};
  }
  if (const Status ok = io_detail::check_gguf_scales(grid, inputs, matrix.scales); !ok) return ok;
  if (const Status ok = io_detail::check_gguf_size(type, matrix.codes.rows, inputs, blocks.size()); !ok) return ok;
  const std::size_t length = group_length(grid, inputs);
  std::byte* to = blocks.data();
  for (std::size_t r = 0; r < matrix.codes.rows; ++r) {
    for (std::size_t g = 0, k = 0; k < inputs; ++g) {
      const std::size_t size = inputs - k < length ? inputs - k : length;
      const int zero = grid.zero == Zero::affine ? int{row(matrix.zeros, r)[g]} : symmetric_zero(grid);
      const std::span<const std::uint8_t> codes(row(matrix.codes, r) + k, size);
      if (!io_detail::encode_group(codes, to_half(row(matrix.scales, r)[g]), zero, grid, *layout, to)) {
        return Error{Errc::unsupported, "a code or minimum that the blocks cannot hold exactly",
                     ErrorText("row ") << r << ", group " << g, ErrorText("zero point ") << zero, layout->name};
      }
      k += size;
      to += size / layout->block * layout->bytes;
    }
  }
  return {};
}

/// The grid of the codes in blocks of `type`: that of gguf_grid(), and 5 bits for Q5_0. Errc::unsupported.
[[nodiscard]] constexpr Result<Grid> gguf_codes_grid(GgufType type) noexcept {
  if (type != GgufType::q5_0) return gguf_grid(type);
  return Grid{.bits = 5, .granularity = Granularity::per_group, .group = 32, .zero = Zero::symmetric};
}

namespace io_detail {

/// Scale and zero point of a block; a zero point of -1: none is exact.
struct GgufBlockHead {
  half scale;
  int zero;
};

inline Result<GgufBlockHead> read_block_head(GgufType type, const std::byte* block) noexcept {
  const half d = load_unaligned<half>(block);
  const half m = type == GgufType::q4_1 ? load_unaligned<half>(block + 2) : half{};
  if (!packing::is_finite_half(d) || !packing::is_finite_half(m)) {
    return Error{Errc::not_finite, "a scale or minimum is not finite"};
  }
  if (type != GgufType::q4_1) return GgufBlockHead{d, type == GgufType::q8_0 ? 128 : type == GgufType::q5_0 ? 16 : 8};
  const int zero = packing::integer_zero(d, m);
  if (zero >= 0 && to_float(d) >= 0) return GgufBlockHead{d, zero};
  return Error{Errc::unsupported, "a minimum is no multiple 0 .. -15 of a positive scale"};
}

}  // namespace io_detail

/// The codes, scales and (Q4_1) zero points of blocks of `type`, on gguf_codes_grid(): `codes` [N, K], `scales` and
/// `zeros` [N, K / 32]. Blocks whose scale is zero get the scale 2^-14 and codes that stand for zero: the same weights.
/// Errc::unsupported (another type; Q4_1 whose minimum is no multiple 0 .. -15 of a positive scale), Errc::not_finite,
/// with row and block; Errc::bad_shape.
[[nodiscard]] inline Status decode_gguf_codes(GgufType type, std::span<const std::byte> blocks,
                                              const MatrixView<std::uint8_t>& codes, const MatrixView<float>& scales,
                                              const MatrixView<std::uint8_t>& zeros) noexcept {
  const Result<Grid> grid = gguf_codes_grid(type);
  if (!grid) return grid.error();
  if (const Status ok = check_shape({as_const(codes), as_const(scales), as_const(zeros)}, *grid); !ok) return ok;
  if (const Status ok = io_detail::check_gguf_size(type, codes.rows, codes.columns, blocks.size()); !ok) return ok;
  const std::size_t bytes = gguf_layout(static_cast<std::uint32_t>(type))->bytes;
  const std::byte* from = blocks.data();
  for (std::size_t r = 0; r < codes.rows; ++r) {
    for (std::size_t g = 0; g < scales.columns; ++g, from += bytes) {
      const Result<io_detail::GgufBlockHead> head = io_detail::read_block_head(type, from);
      if (!head) {
        Error error = head.error();
        error.where << "row " << r << ", block " << g;
        return error;
      }
      const float scale = to_float(head->scale);
      if (grid->zero == Zero::affine) row(zeros, r)[g] = static_cast<std::uint8_t>(head->zero);
      row(scales, r)[g] = scale == 0 ? 0x1p-14f : scale;
      std::uint8_t* to = row(codes, r) + g * gguf_block_inputs;
      io_detail::decode_block(type, from, to);
      for (std::size_t i = 0; scale == 0 && i < gguf_block_inputs; ++i) to[i] = static_cast<std::uint8_t>(head->zero);
    }
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
