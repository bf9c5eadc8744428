// SPDX-License-Identifier: Apache-2.0
#pragma once

// StoredMatrix: codes, scales and zero points that a checkpoint holds, one byte per code, whatever the form they were
// stored in. Memory: one byte per weight, 4 or 5 per group.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/io/bit_packing.hpp>
#include <cbq/io/stored_tensors.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Codes, scales and zero points read from a checkpoint, owned.
class StoredMatrix {
 public:
  [[nodiscard]] QuantizedMatrixView view() const noexcept {
    const bool affine = grid_.zero == Zero::affine;
    return {matrix_view(codes_.data(), outputs_, inputs_), matrix_view(scales_.data(), outputs_, groups()),
            affine ? matrix_view(zeros_.data(), outputs_, groups()) : MatrixView<const std::uint8_t>{}};
  }
  [[nodiscard]] const Grid& grid() const noexcept { return grid_; }
  [[nodiscard]] MatrixView<std::uint8_t> codes() noexcept { return matrix_view(codes_.data(), outputs_, inputs_); }
  [[nodiscard]] MatrixView<float> scales() noexcept { return matrix_view(scales_.data(), outputs_, groups()); }
  /// No memory behind it for symmetric grids.
  [[nodiscard]] MatrixView<std::uint8_t> zeros() noexcept { return matrix_view(zeros_.data(), outputs_, groups()); }

  /// Memory for an `outputs` x `inputs` matrix on a grid of 2 to 8 bits, not initialized. Errc::bad_shape,
  /// Errc::out_of_memory.
  [[nodiscard]] static Result<StoredMatrix> allocate(std::size_t outputs, std::size_t inputs,
                                                     const Grid& grid) noexcept {
    StoredMatrix matrix;
    matrix.grid_ = grid;
    matrix.outputs_ = outputs;
    matrix.inputs_ = inputs;
    if (const Status ok = matrix.take_memory(); !ok) return ok.error();
    return matrix;
  }

  /// Reads module `module` of a Checkpoint or Safetensors. Everything is checked against `grid` and the other tensors
  /// before memory is taken. Errors of find_stored(), Errc::not_finite, Errc::out_of_memory.
  template <class Tensors>
  [[nodiscard]] static Result<StoredMatrix> read(const Tensors& checkpoint, const std::string& module,
                                                 const Grid& grid) {
    const Result<StoredTensors> tensors = find_stored(checkpoint, module, grid);
    if (!tensors) return tensors.error();
    Result<StoredMatrix> matrix = allocate(tensors->outputs, tensors->inputs, grid);
    if (!matrix) return in_context(matrix.error(), module);
    if (const Status ok = matrix->decode(*tensors); !ok) return in_context(ok.error(), module);
    return matrix;
  }

 private:
  [[nodiscard]] std::size_t groups() const noexcept { return group_count(grid_, inputs_); }

  Status take_memory() noexcept {
    const Result<std::size_t> codes = checked_product(outputs_, inputs_);
    if (!codes) return codes.error();
    const Result<std::size_t> scales = checked_product(outputs_, groups());
    if (!scales) return scales.error();
    auto code_memory = AlignedBuffer<std::uint8_t>::allocate(*codes);
    if (!code_memory) return code_memory.error();
    auto scale_memory = AlignedBuffer<float>::allocate(*scales);
    if (!scale_memory) return scale_memory.error();
    auto zero_memory = AlignedBuffer<std::uint8_t>::allocate(grid_.zero == Zero::affine ? *scales : 0);
    if (!zero_memory) return zero_memory.error();
    codes_ = std::move(*code_memory);
    scales_ = std::move(*scale_memory);
    zeros_ = std::move(*zero_memory);
    return {};
  }

  Status decode(const StoredTensors& tensors) noexcept {
    const Status codes = unpack_rows(tensors.packed->bytes, grid_.bits, matrix_view(codes_.data(), outputs_, inputs_));
    if (!codes) return codes;
    return read_parameters(tensors, grid_, scales(), zeros());
  }

  AlignedBuffer<std::uint8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::uint8_t> zeros_;
  Grid grid_ = {.bits = 8};
  std::size_t outputs_ = 0;
  std::size_t inputs_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
