// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantized matrices in the compressed-tensors form `int-quantized`, which runtimes with integer activations read. For
// module m of N outputs and K inputs with codes of b bits:
//
//   m.weight             I8 [N, K]                    code - 2^(b-1), whatever b is
//   m.weight_scale       F16, BF16 or F32 [N, G]      G = K / group, 1 per channel
//   m.weight_zero_point  I8 [N, G]                    zero - 2^(b-1); affine grids only
//
// One byte per code. Static activations add the tensors of stored_input_grid.hpp. Files of other programs may have zero
// points of 0 on symmetric grids.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/stored_matrix.hpp>
#include <cbq/io/stored_scales.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Appends the tensors of a matrix to the plan of a file. Errc::unsupported for a grid that cannot be stored: its
/// groups divide the inputs.
[[nodiscard]] inline Status plan_int_quantized(const QuantizedMatrixPlan& matrix, std::vector<TensorPlan>& tensors) {
  const Grid& grid = matrix.grid;
  const bool grouped = grid.granularity == Granularity::per_group && grid.group > 0 &&
                       matrix.inputs % static_cast<std::size_t>(grid.group) == 0;
  if (grid.bits < 2 || grid.bits > 8 || !(grouped || grid.granularity == Granularity::per_channel)) {
    return Error{Errc::unsupported, "int-quantized cannot hold this grid", matrix.module,
                 ErrorText(grid.bits) << " bits, " << matrix.inputs << " inputs, groups of " << grid.group,
                 "2 to 8 bits per channel, or in groups that divide the inputs"};
  }
  const std::size_t groups = group_count(grid, matrix.inputs);
  const TensorShape parameters = {.rank = 2, .sizes = {matrix.outputs, groups}};
  tensors.push_back({matrix.module + ".weight", Dtype::i8, {.rank = 2, .sizes = {matrix.outputs, matrix.inputs}}});
  tensors.push_back({matrix.module + ".weight_scale", matrix.scales, parameters});
  if (grid.zero == Zero::affine) tensors.push_back({matrix.module + ".weight_zero_point", Dtype::i8, parameters});
  return {};
}

namespace io_detail {

// Unsigned codes as signed bytes.
template <class Writer>
Status write_signed(Writer& writer, const std::string& name, const MatrixView<const std::uint8_t>& codes,
                    const Grid& grid) {
  if (codes.columns == 0) return {};  // any number of empty rows
  const std::size_t step = rows_per_write(codes.columns);
  auto memory = AlignedBuffer<std::int8_t>::allocate(std::min(step, codes.rows) * codes.columns);
  if (!memory) return memory.error();
  for (std::size_t n = 0; n < codes.rows; n += step) {
    const std::size_t count = std::min(step, codes.rows - n);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint8_t* from = row(codes, n + i);
      std::int8_t* to = memory->data() + i * codes.columns;
      unsigned above = 0;
      for (std::size_t k = 0; k < codes.columns; ++k) {
        above |= unsigned{from[k]} >> grid.bits;
        to[k] = static_cast<std::int8_t>(from[k] - symmetric_zero(grid));
      }
      if (above != 0)
        return Error{Errc::bad_argument, "a code lies outside the grid", name, ErrorText("row ") << n + i};
    }
    const Status ok = writer.write(name, std::span<const std::int8_t>(memory->data(), count * codes.columns));
    if (!ok) return ok;
  }
  return {};
}

inline Status read_signed(const TensorView& tensor, const Grid& grid, const MatrixView<std::uint8_t>& codes) noexcept {
  const Status fits = check_stored_tensor(tensor, tensor.dtype == Dtype::i8, codes.rows, codes.columns);
  if (!fits || codes.columns == 0) return fits;  // any number of empty rows
  const int zero = symmetric_zero(grid);
  for (std::size_t n = 0; n < codes.rows; ++n) {
    const std::byte* from = tensor.bytes.data() + n * codes.columns;
    for (std::size_t k = 0; k < codes.columns; ++k) {
      const int code = static_cast<std::int8_t>(from[k]) + zero;
      if (code < 0 || code > max_code(grid)) {
        return Error{Errc::bad_file, "a code lies outside the grid", tensor.name, code - zero,
                     ErrorText(-zero) << ".." << zero - 1};
      }
      row(codes, n)[k] = static_cast<std::uint8_t>(code);
    }
  }
  return {};
}

inline Status check_no_zeros(const TensorView& tensor) noexcept {
  const bool none =
      std::all_of(tensor.bytes.begin(), tensor.bytes.end(), [](std::byte b) { return b == std::byte{0}; });
  return none ? Status() : Error{Errc::bad_file, "a zero point on a symmetric grid", tensor.name};
}

}  // namespace io_detail

/// Writes what plan_int_quantized() planned. Errors as write_quantized_matrix().
template <class Writer>
[[nodiscard]] Status write_int_quantized(Writer& writer, const std::string& module, const QuantizedMatrixView& matrix,
                                         const Grid& grid) {
  if (const Status ok = io_detail::write_signed(writer, module + ".weight", matrix.codes, grid); !ok) return ok;
  if (const Status ok = io_detail::write_scales(writer, module + ".weight_scale", matrix.scales); !ok) return ok;
  if (grid.zero == Zero::symmetric) return {};
  return io_detail::write_signed(writer, module + ".weight_zero_point", matrix.zeros, grid);
}

/// Reads module `module` of a Checkpoint or Safetensors whose weights are on `grid`. Errc::bad_file, Errc::bad_shape,
/// Errc::not_finite, Errc::bad_argument, Errc::out_of_memory.
template <class Tensors>
[[nodiscard]] Result<StoredMatrix> read_int_quantized(const Tensors& checkpoint, const std::string& module,
                                                      const Grid& grid) {
  const TensorView* codes = checkpoint.find(module + ".weight");
  const TensorView* scales = checkpoint.find(module + ".weight_scale");
  const TensorView* zeros = checkpoint.find(module + ".weight_zero_point");
  const bool affine = grid.zero == Zero::affine;
  if (codes == nullptr || scales == nullptr || (affine && zeros == nullptr)) {
    return Error{Errc::bad_file, "a quantized module lacks a tensor", module, "", "weight, weight_scale, zero points"};
  }
  if (grid.bits < 2 || grid.bits > 8) return Error{Errc::bad_argument, "codes have 2 to 8 bits", module, grid.bits};
  if (codes->dtype != Dtype::i8 || codes->shape.rank != 2) {
    return Error{Errc::bad_file, "not a matrix of signed codes", codes->name,
                 ErrorText(dtype_name(codes->dtype)) << " " << shape_text(codes->shape).c_str(), "I8 [N, K]"};
  }
  Result<StoredMatrix> matrix = StoredMatrix::allocate(codes->shape.sizes[0], codes->shape.sizes[1], grid);
  if (!matrix) return in_context(matrix.error(), module);
  if (const Status ok = io_detail::read_signed(*codes, grid, matrix->codes()); !ok) return ok.error();
  if (const Status ok = copy_to_float(*scales, matrix->scales()); !ok) return ok.error();
  const Status checked = affine             ? io_detail::read_signed(*zeros, grid, matrix->zeros())
                         : zeros != nullptr ? io_detail::check_no_zeros(*zeros)
                                            : Status();
  if (!checked) return checked.error();
  return matrix;
}

}  // namespace CBQ_ABI
}  // namespace cbq
