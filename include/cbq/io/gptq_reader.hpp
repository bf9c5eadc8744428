// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantized matrices read from the tensors of a GPTQ checkpoint (gptq.hpp). Codes, scales and zero points keep their
// values; inputs in another order than their groups (act-order) are refused. Whether zero points are stored as z - 1 or
// z is what the file says; for symmetric grids the numbers themselves tell. Memory: one byte per code.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <cbq/core/aligned.hpp>
#include <cbq/io/bit_packing.hpp>
#include <cbq/io/gptq.hpp>
#include <cbq/io/stored_matrix.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// What all zero points of a `qzeros` tensor say if the grid is symmetric: v1 where all are 2^(b-1) - 1, v2 where all
/// are 2^(b-1); false where the grid is affine. `bits` is 2, 3, 4 or 8.
struct SymmetricZeros {
  bool symmetric = false;
  GptqZeros form = GptqZeros::v1;
};

namespace io_detail {

// F16, BF16 or F32 [G, N] as [N, G].
inline Status read_turned_scales(const TensorView& tensor, const MatrixView<float>& scales) {
  if (scales.rows == 0) return {};  // any number of empty rows
  auto line = AlignedBuffer<float>::allocate(scales.rows);
  if (!line) return line.error();
  for (std::size_t g = 0; g < scales.columns; ++g) {
    const Status read = copy_rows_to_float(tensor, g, matrix_view(line->data(), 1, scales.rows));
    if (!read) return read;
    for (std::size_t n = 0; n < scales.rows; ++n) row(scales, n)[g] = (*line)[n];
  }
  return {};
}

inline Status check_group_index(const TensorView& tensor, const Grid& grid, std::size_t inputs) noexcept {
  if (tensor.dtype != Dtype::i32 || !same_shape(tensor.shape, {.rank = 1, .sizes = {inputs}})) {
    return Error{Errc::bad_shape, "a tensor does not fit its module", tensor.name,
                 ErrorText(dtype_name(tensor.dtype)) << " " << shape_text(tensor.shape).c_str(),
                 ErrorText("I32 [") << inputs << "]"};
  }
  const std::size_t length = group_length(grid, inputs);
  for (std::size_t k = 0; k < inputs; ++k) {
    const auto group = load_unaligned<std::int32_t>(tensor.bytes.data() + 4 * k);
    if (group < 0 || static_cast<std::size_t>(group) != k / length) {
      return Error{Errc::unsupported, "inputs in another order than their groups (act-order)", tensor.name,
                   ErrorText("input ") << k << " in group " << group, ErrorText("group ") << k / length};
    }
  }
  return {};
}

inline Status read_gptq_codes(const TensorView& tensor, int bits, const MatrixView<std::uint8_t>& codes) {
  const std::size_t words = packed_words(codes.columns, bits);
  auto band = AlignedBuffer<std::int32_t>::allocate(words * gptq_band);
  if (!band) return band.error();
  for (std::size_t n = 0; n < codes.rows; n += gptq_band) {
    const std::size_t count = std::min(gptq_band, codes.rows - n);
    for (std::size_t w = 0; w < words; ++w) {
      const std::byte* from = tensor.bytes.data() + 4 * (w * codes.rows + n);
      for (std::size_t i = 0; i < count; ++i) (*band)[i * words + w] = load_unaligned<std::int32_t>(from + 4 * i);
    }
    const auto bytes = std::as_bytes(std::span<const std::int32_t>(band->data(), words * count));
    if (const Status ok = unpack_rows(bytes, bits, rows(codes, n, count)); !ok) return ok;
  }
  return {};
}

// Zero points [N, G] of an affine grid, or the proof that all are those of a symmetric one.
inline Status read_gptq_zeros(const TensorView& tensor, const Grid& grid, GptqZeros form, std::size_t outputs,
                              const MatrixView<std::uint8_t>& zeros) {
  const std::size_t groups = tensor.shape.sizes[0], row_bytes = 4 * tensor.shape.sizes[1];
  if (outputs == 0) return {};  // any number of empty rows
  auto line = AlignedBuffer<std::uint8_t>::allocate(outputs);
  if (!line) return line.error();
  const int more = form == GptqZeros::v1 ? 1 : 0;
  for (std::size_t g = 0; g < groups; ++g) {
    const MatrixView<std::uint8_t> one = matrix_view(line->data(), 1, outputs);
    if (const Status ok = unpack_rows(tensor.bytes.subspan(g * row_bytes, row_bytes), grid.bits, one); !ok) return ok;
    for (std::size_t n = 0; n < outputs; ++n) {
      const int zero = (*line)[n] + more;
      const bool fits = grid.zero == Zero::affine ? zero <= max_code(grid) : zero == symmetric_zero(grid);
      if (!fits) {
        return Error{
            Errc::unsupported, "a zero point outside the grid", tensor.name,
            ErrorText(zero) << " of output " << n << ", group " << g,
            grid.zero == Zero::affine ? ErrorText("at most ") << max_code(grid) : ErrorText(symmetric_zero(grid))};
      }
      if (grid.zero == Zero::affine) row(zeros, n)[g] = static_cast<std::uint8_t>(zero);
    }
  }
  return {};
}

}  // namespace io_detail

/// Finds out whether zero points of a module are those of a symmetric grid. Errc::bad_shape.
[[nodiscard]] inline Result<SymmetricZeros> find_symmetric_zeros(const TensorView& qzeros, int bits,
                                                                 std::size_t outputs) {
  const Grid grid = {.bits = bits};
  const bool right =
      qzeros.dtype == Dtype::i32 && qzeros.shape.rank == 2 && qzeros.shape.sizes[1] == packed_words(outputs, bits);
  if (!right) {
    return Error{Errc::bad_shape, "a tensor does not fit its module", qzeros.name, shape_text(qzeros.shape),
                 ErrorText("I32 [groups, ") << packed_words(outputs, bits) << "]"};
  }
  for (const GptqZeros form : {GptqZeros::v1, GptqZeros::v2}) {
    const Status read = io_detail::read_gptq_zeros(qzeros, grid, form, outputs, {});
    if (read) return SymmetricZeros{true, form};
    if (read.error().code != Errc::unsupported) return read.error();
  }
  return SymmetricZeros{};
}

/// Reads module `module` of a Checkpoint or Safetensors, of `inputs` inputs on `grid`. Without g_idx the groups are k /
/// group. Errc::bad_file, Errc::bad_shape, Errc::unsupported (act-order, a zero point that the grid does not have),
/// Errc::not_finite, Errc::out_of_memory.
template <class Tensors>
[[nodiscard]] Result<StoredMatrix> read_gptq(const Tensors& checkpoint, const std::string& module, const Grid& grid,
                                             std::size_t inputs, GptqZeros form) {
  const TensorView* codes = checkpoint.find(module + ".qweight");
  const TensorView* zeros = checkpoint.find(module + ".qzeros");
  const TensorView* scales = checkpoint.find(module + ".scales");
  const TensorView* order = checkpoint.find(module + ".g_idx");
  if (codes == nullptr || zeros == nullptr || scales == nullptr) {
    return Error{Errc::bad_file, "a quantized module lacks a tensor", module, "", "qweight, qzeros and scales"};
  }
  const std::size_t outputs = codes->shape.rank == 2 ? codes->shape.sizes[1] : 0;
  if (const Status fits = check_gptq({module, outputs, inputs, grid, Dtype::f16}); !fits) return fits.error();
  const std::size_t groups = group_count(grid, inputs);
  const bool words = codes->dtype == Dtype::i32, zero_words = zeros->dtype == Dtype::i32;
  Status checked = io_detail::check_stored_tensor(*codes, words, packed_words(inputs, grid.bits), outputs);
  if (checked) checked = io_detail::check_stored_tensor(*zeros, zero_words, groups, packed_words(outputs, grid.bits));
  if (checked) checked = io_detail::check_stored_tensor(*scales, true, groups, outputs);
  if (checked && order != nullptr) checked = io_detail::check_group_index(*order, grid, inputs);
  if (!checked) return checked.error();
  Result<StoredMatrix> matrix = StoredMatrix::allocate(outputs, inputs, grid);
  if (!matrix) return in_context(matrix.error(), module);
  Status read = io_detail::read_gptq_codes(*codes, grid.bits, matrix->codes());
  if (read) read = io_detail::read_gptq_zeros(*zeros, grid, form, outputs, matrix->zeros());
  if (read) read = io_detail::read_turned_scales(*scales, matrix->scales());
  if (!read) return read.error();
  return matrix;
}

}  // namespace CBQ_ABI
}  // namespace cbq
