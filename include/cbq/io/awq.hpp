// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantized matrices as the tensors of an AWQ checkpoint, version "gemm". For module m of N outputs and K inputs with
// codes of 4 bits in G = K / group groups:
//
//   m.qweight  I32 [K, N / 8]   word (k, c), nibble i: the code of input k and output 8 c + {0, 2, 4, 6, 1, 3, 5, 7}[i]
//   m.qzeros   I32 [G, N / 8]   zero points in the same order
//   m.scales   F16 [G, N]
//
// w[n][k] = scales[g][n] (code - zero). Symmetric grids store zero points of 8. Layout from AutoAWQ's packer. Memory:
// one copy of the packed codes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/gptq.hpp>
#include <cbq/io/gptq_reader.hpp>
#include <cbq/io/stored_matrix.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Whether a matrix fits the form: 4 bits, groups that divide the inputs, a multiple of 8 outputs. Errc::unsupported.
[[nodiscard]] inline Status check_awq(const QuantizedMatrixPlan& matrix) {
  const Grid& grid = matrix.grid;
  const bool grouped = grid.granularity == Granularity::per_group && grid.group > 0;
  if (grid.bits != 4 || !grouped || matrix.inputs % static_cast<std::size_t>(grid.group) != 0) {
    return Error{Errc::unsupported, "AWQ cannot hold this grid", matrix.module,
                 ErrorText(grid.bits) << " bits, " << matrix.inputs << " inputs, groups of " << grid.group,
                 "4 bits in groups that divide the inputs"};
  }
  if (matrix.outputs % 8 == 0) return {};
  return Error{Errc::unsupported, "AWQ packs outputs by eight", matrix.module, matrix.outputs, "a multiple of 8"};
}

/// Appends the tensors of a matrix to the plan of a file; scales are F16. Errc::unsupported as check_awq().
[[nodiscard]] inline Status plan_awq(const QuantizedMatrixPlan& matrix, std::vector<TensorPlan>& tensors) {
  if (const Status fits = check_awq(matrix); !fits) return fits;
  const std::size_t groups = group_count(matrix.grid, matrix.inputs);
  const auto add = [&](const char* name, Dtype dtype, std::size_t rows, std::size_t columns) {
    tensors.push_back({matrix.module + name, dtype, {.rank = 2, .sizes = {rows, columns}}});
  };
  add(".qweight", Dtype::i32, matrix.inputs, matrix.outputs / 8);
  add(".qzeros", Dtype::i32, groups, matrix.outputs / 8);
  add(".scales", Dtype::f16, groups, matrix.outputs);
  return {};
}

namespace io_detail {

inline constexpr std::size_t awq_order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
// Words of a row that are made together: a cache line.
inline constexpr std::size_t awq_band = 16;

// Codes [N, K] as words [K, N / 8].
template <class Writer>
Status write_awq_codes(Writer& writer, const std::string& name, const MatrixView<const std::uint8_t>& codes) {
  const std::size_t columns = codes.rows / 8;
  auto words = AlignedBuffer<std::uint32_t>::allocate(codes.columns * columns);
  if (!words) return words.error();
  unsigned above = 0;
  for (std::size_t first = 0; first < columns; first += awq_band) {
    const std::size_t last = std::min(columns, first + awq_band);
    for (std::size_t k = 0; k < codes.columns; ++k) {
      for (std::size_t c = first; c < last; ++c) {
        std::uint32_t word = 0;
        for (std::size_t i = 0; i < 8; ++i) {
          const unsigned code = row(codes, 8 * c + awq_order[i])[k];
          above |= code >> 4;
          word |= code << (4 * i);
        }
        (*words)[k * columns + c] = word;
      }
    }
  }
  if (above != 0) return Error{Errc::bad_argument, "a code lies outside the grid", name, "", "at most 15"};
  return writer.write(name, std::span<const std::uint32_t>(words->data(), words->size()));
}

inline void read_awq_codes(const TensorView& tensor, const MatrixView<std::uint8_t>& codes) noexcept {
  const std::size_t columns = codes.rows / 8;
  for (std::size_t first = 0; first < columns; first += awq_band) {
    const std::size_t last = std::min(columns, first + awq_band);
    for (std::size_t k = 0; k < codes.columns; ++k) {
      for (std::size_t c = first; c < last; ++c) {
        const auto word = load_unaligned<std::uint32_t>(tensor.bytes.data() + 4 * (k * columns + c));
        for (std::size_t i = 0; i < 8; ++i) {
          row(codes, 8 * c + awq_order[i])[k] = static_cast<std::uint8_t>(word >> (4 * i) & 15);
        }
      }
    }
  }
}

template <class Writer>
Status write_awq_zeros(Writer& writer, const std::string& name, const QuantizedMatrixView& matrix, const Grid& grid) {
  if (grid.zero == Zero::affine) return write_awq_codes(writer, name, matrix.zeros);
  const std::size_t outputs = matrix.scales.rows, groups = matrix.scales.columns;
  auto zeros = AlignedBuffer<std::uint8_t>::allocate(outputs * groups);
  if (!zeros) return zeros.error();
  std::fill(zeros->begin(), zeros->end(), static_cast<std::uint8_t>(symmetric_zero(grid)));
  return write_awq_codes(writer, name, matrix_view(std::as_const(*zeros).data(), outputs, groups));
}

}  // namespace io_detail

/// Whether all zero points of a `qzeros` tensor are 8: those of a symmetric grid.
[[nodiscard]] inline bool are_awq_eights(const TensorView& qzeros) noexcept {
  return std::all_of(qzeros.bytes.begin(), qzeros.bytes.end(), [](std::byte b) { return b == std::byte{0x88}; });
}

/// Writes what plan_awq() planned. Errors as write_gptq(), but for zero points of 0.
template <class Writer>
[[nodiscard]] Status write_awq(Writer& writer, const std::string& module, const QuantizedMatrixView& matrix,
                               const Grid& grid) {
  if (const Status ok = io_detail::write_awq_codes(writer, module + ".qweight", matrix.codes); !ok) return ok;
  if (const Status ok = io_detail::write_awq_zeros(writer, module + ".qzeros", matrix, grid); !ok) return ok;
  return io_detail::write_turned_scales(writer, module + ".scales", matrix.scales);
}

/// Reads module `module` of a Checkpoint or Safetensors, whose weights are on `grid`: symmetric only where every zero
/// point is 8. Errc::bad_file, Errc::bad_shape, Errc::unsupported, Errc::not_finite, Errc::out_of_memory.
template <class Tensors>
[[nodiscard]] Result<StoredMatrix> read_awq(const Tensors& checkpoint, const std::string& module, const Grid& grid) {
  const TensorView* codes = checkpoint.find(module + ".qweight");
  const TensorView* zeros = checkpoint.find(module + ".qzeros");
  const TensorView* scales = checkpoint.find(module + ".scales");
  if (codes == nullptr || zeros == nullptr || scales == nullptr) {
    return Error{Errc::bad_file, "a quantized module lacks a tensor", module, "", "qweight, qzeros and scales"};
  }
  if (codes->dtype != Dtype::i32 || codes->shape.rank != 2) {
    return Error{Errc::bad_file, "not packed codes", codes->name, shape_text(codes->shape), "I32 [K, N / 8]"};
  }
  const std::size_t inputs = codes->shape.sizes[0], columns = codes->shape.sizes[1];
  const Result<std::size_t> outputs = checked_product(columns, std::size_t{8});
  if (!outputs) return in_context(outputs.error(), codes->name);
  if (const Status fits = check_awq({module, *outputs, inputs, grid, Dtype::f16}); !fits) return fits.error();
  const std::size_t groups = group_count(grid, inputs);
  Status checked = io_detail::check_stored_tensor(*zeros, zeros->dtype == Dtype::i32, groups, columns);
  if (checked) checked = io_detail::check_stored_tensor(*scales, true, groups, *outputs);
  if (checked && grid.zero == Zero::symmetric && !are_awq_eights(*zeros)) {
    checked = Error{Errc::bad_argument, "zero points of a symmetric grid are 8", zeros->name};
  }
  if (!checked) return checked.error();
  Result<StoredMatrix> matrix = StoredMatrix::allocate(*outputs, inputs, grid);
  if (!matrix) return in_context(matrix.error(), module);
  io_detail::read_awq_codes(*codes, matrix->codes());
  if (grid.zero == Zero::affine) io_detail::read_awq_codes(*zeros, matrix->zeros());
  if (const Status read = io_detail::read_turned_scales(*scales, matrix->scales()); !read) return read.error();
  return matrix;
}

}  // namespace CBQ_ABI
}  // namespace cbq
