// SPDX-License-Identifier: Apache-2.0
#pragma once

// Tensors as files store them: element types, shapes, and the conversion of stored elements to float. A TensorView is
// plain data that points into the bytes of a file; those bytes need no alignment.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include <cbq/core/checked.hpp>
#include <cbq/core/element.hpp>
#include <cbq/core/element_rows.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Element types of the safetensors container.
enum class Dtype : unsigned char {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

/// Sizes of a tensor, outermost first; a rank of 0 is a single number.
struct TensorShape {
  static constexpr std::size_t max_rank = 8;
  std::size_t rank = 0;
  std::size_t sizes[max_rank] = {};
};

/// One tensor of a safetensors file, stored row-major and little-endian.
struct TensorView {
  std::string_view name;
  Dtype dtype = Dtype::f32;
  TensorShape shape;
  std::span<const std::byte> bytes;
  std::size_t offset = 0;  ///< of the first byte in the data of its file, for messages
};

/// Whether a conversion checks that every number is finite.
enum class Finite : unsigned char { required, unchecked };

struct DtypeName {
  Dtype dtype;
  const char* name;  ///< as safetensors writes it
  std::size_t bits;  ///< of one element
};

inline constexpr DtypeName dtype_names[] = {
    {Dtype::boolean, "BOOL", 8},    {Dtype::f4, "F4", 4},           {Dtype::f6_e2m3, "F6_E2M3", 6},
    {Dtype::f6_e3m2, "F6_E3M2", 6}, {Dtype::u8, "U8", 8},           {Dtype::i8, "I8", 8},
    {Dtype::f8_e5m2, "F8_E5M2", 8}, {Dtype::f8_e4m3, "F8_E4M3", 8}, {Dtype::f8_e8m0, "F8_E8M0", 8},
    {Dtype::i16, "I16", 16},        {Dtype::u16, "U16", 16},        {Dtype::f16, "F16", 16},
    {Dtype::bf16, "BF16", 16},      {Dtype::i32, "I32", 32},        {Dtype::u32, "U32", 32},
    {Dtype::f32, "F32", 32},        {Dtype::c64, "C64", 64},        {Dtype::f64, "F64", 64},
    {Dtype::i64, "I64", 64},        {Dtype::u64, "U64", 64},
};

static_assert(
    [] {
      std::size_t index = 0;
      for (const DtypeName& entry : dtype_names) {
        if (static_cast<std::size_t>(entry.dtype) != index++) return false;
      }
      return true;
    }(),
    "[cbq] dtype_names: one entry per Dtype, in its order");

/// "F32", "BF16", ...
[[nodiscard]] constexpr const char* dtype_name(Dtype dtype) noexcept {
  return dtype_names[static_cast<unsigned char>(dtype)].name;
}
/// Bits of one element.
[[nodiscard]] constexpr std::size_t dtype_bits(Dtype dtype) noexcept {
  return dtype_names[static_cast<unsigned char>(dtype)].bits;
}

/// Reads a safetensors type name. Errc::unsupported.
[[nodiscard]] constexpr Result<Dtype> parse_dtype(std::string_view name) noexcept {
  for (const DtypeName& entry : dtype_names) {
    if (name == entry.name) return entry.dtype;
  }
  return Error{Errc::unsupported, "unknown element type", "", name, "a type of the safetensors format"};
}

/// "[4096, 128]", for messages.
[[nodiscard]] constexpr ErrorText shape_text(const TensorShape& shape) noexcept {
  ErrorText text = "[";
  for (std::size_t i = 0; i < shape.rank; ++i) {
    if (i != 0) text << ", ";
    text << shape.sizes[i];
  }
  return text << "]";
}

[[nodiscard]] constexpr bool same_shape(const TensorShape& a, const TensorShape& b) noexcept {
  bool same = a.rank == b.rank;
  for (std::size_t i = 0; same && i < a.rank; ++i) same = a.sizes[i] == b.sizes[i];
  return same;
}

/// Elements of a tensor; Errc::bad_shape when the product does not fit in 64 bits, even where a size of 0 makes it 0
/// (which readers of other makers refuse too).
[[nodiscard]] constexpr Result<std::size_t> element_count(const TensorShape& shape) noexcept {
  std::size_t count = 1;
  for (std::size_t i = 0; i < shape.rank; ++i) {
    const Result<std::size_t> product = checked_product(count, shape.sizes[i]);
    if (!product)
      return Error{Errc::bad_shape, "the tensor's element count does not fit in 64 bits", "", shape_text(shape),
                   "a product below 2^64"};
    count = *product;
  }
  return count;
}

/// Bytes of a tensor; Errc::bad_shape on overflow or when the bits are not whole bytes.
[[nodiscard]] constexpr Result<std::size_t> byte_count(const TensorShape& shape, Dtype dtype) noexcept {
  const Result<std::size_t> count = element_count(shape);
  if (!count) return count;
  const Result<std::size_t> bits = checked_product(*count, dtype_bits(dtype));
  if (!bits) {
    return Error{Errc::bad_shape, "the tensor's size in bits does not fit in 64 bits", "", shape_text(shape),
                 "fewer than 2^64 bits"};
  }
  if (*bits % 8 != 0) {
    return Error{Errc::bad_shape, "the tensor does not end on a whole byte", "", shape_text(shape), "whole bytes"};
  }
  return *bits / 8;
}

/// A number of type T from bytes that need no alignment.
template <class T>
[[nodiscard]] T load_unaligned(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// Index of the first number that is NaN or infinite, or values.size().
[[nodiscard]] inline std::size_t first_not_finite(std::span<const float> values) noexcept {
  // By its bits, so that -ffast-math cannot remove the test; one pass without branches, a second only when something is
  // wrong.
  const auto bad = [](float value) { return (std::bit_cast<std::uint32_t>(value) & 0x7f800000u) == 0x7f800000u; };
  bool any = false;
  for (const float value : values) any |= bad(value);
  std::size_t index = any ? 0 : values.size();
  while (index < values.size() && !bad(values[index])) ++index;
  return index;
}

namespace io_detail {

// The rules copy_to_float shares between file formats: rows x columns of the tensor against the matrix asked for.
inline Status check_matrix_shape(const TensorShape& shape, std::size_t rows, std::size_t columns) noexcept {
  const bool vector = shape.rank == 1 && rows == 1 && shape.sizes[0] == columns;
  const bool matrix = shape.rank == 2 && shape.sizes[0] == rows && shape.sizes[1] == columns;
  if (vector || matrix) return {};
  return Error{Errc::bad_shape, "a tensor has the wrong shape", "", shape_text(shape),
               ErrorText("[") << rows << ", " << columns << "]"};
}

inline Status check_finite(std::span<const float> values, std::size_t row_index, Finite finite) noexcept {
  if (finite == Finite::unchecked) return {};
  const std::size_t bad = first_not_finite(values);
  if (bad == values.size()) return {};
  return Error{Errc::not_finite, "a tensor holds a NaN or an infinity",
               ErrorText("row ") << row_index << ", column " << bad,
               (std::bit_cast<std::uint32_t>(values[bad]) & 0x7fffffu) != 0 ? "NaN" : "infinity", "finite numbers"};
}

}  // namespace io_detail

/// Rows [first, first + out.rows) of an F32, F16, BF16 or F64 matrix to float; a tensor of rank 1 is one row.
/// Errc::bad_shape, Errc::unsupported (another element type), Errc::not_finite.
[[nodiscard]] inline Status copy_rows_to_float(const TensorView& tensor, std::size_t first,
                                               const MatrixView<float>& out,
                                               Finite finite = Finite::required) noexcept {
  const std::size_t rows = tensor.shape.rank == 2 ? tensor.shape.sizes[0] : 1;
  if (first > rows || out.rows > rows - first) {
    return Error{Errc::bad_shape, "rows outside the tensor", tensor.name, ErrorText(first) << " + " << out.rows,
                 ErrorText(rows) << " rows"};
  }
  if (const Status fits = io_detail::check_matrix_shape(tensor.shape, rows, out.columns); !fits) {
    return in_context(fits.error(), tensor.name);
  }
  const std::size_t row_bytes = out.columns * dtype_bits(tensor.dtype) / 8;
  if (out.columns == 0) return {};  // any number of empty rows
  for (std::size_t r = 0; r < out.rows; ++r) {
    const std::byte* from = tensor.bytes.data() + (first + r) * row_bytes;
    const std::span<float> to(row(out, r), out.columns);
    switch (tensor.dtype) {
      case Dtype::f32:
        decode_elements<float>(from, to);
        break;
      case Dtype::f16:
        decode_elements<half>(from, to);
        break;
      case Dtype::bf16:
        decode_elements<bfloat16>(from, to);
        break;
      case Dtype::f64:
        decode_elements<double>(from, to);
        break;
      default:
        return Error{Errc::unsupported, "a tensor has an element type that is no float", tensor.name,
                     dtype_name(tensor.dtype), "F32, F16, BF16 or F64"};
    }
    if (const Status ok = io_detail::check_finite(to, first + r, finite); !ok)
      return in_context(ok.error(), tensor.name);
  }
  return {};
}

/// The whole tensor of shape [out.rows, out.columns] to float; a tensor of rank 1 fits a matrix of one row. Errors as
/// above.
[[nodiscard]] inline Status copy_to_float(const TensorView& tensor, const MatrixView<float>& out,
                                          Finite finite = Finite::required) noexcept {
  if (const Status fits = io_detail::check_matrix_shape(tensor.shape, out.rows, out.columns); !fits) {
    return in_context(fits.error(), tensor.name);
  }
  return copy_rows_to_float(tensor, 0, out, finite);
}

/// The same for a tensor of rank 1, [out.size()].
[[nodiscard]] inline Status copy_to_float(const TensorView& tensor, std::span<float> out,
                                          Finite finite = Finite::required) noexcept {
  return copy_to_float(tensor, matrix_view(out.data(), 1, out.size()), finite);
}

}  // namespace CBQ_ABI
}  // namespace cbq
