// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantized matrices as tensors of a checkpoint, in the compressed-tensors form `pack-quantized`. For module m of N
// outputs and K inputs with codes of b bits:
//
//   m.weight_packed      I32 [N, ceil(K b / 32)]      codes (bit_packing.hpp)
//   m.weight_scale       F16, BF16 or F32 [N, G]      G = ceil(K / group), 1 per channel
//   m.weight_shape       I64 [2]                      N, K
//   m.weight_zero_point  I32 [ceil(N b / 32), G]      affine grids only
//
// w[n][k] = scale[n][g] (code[n][k] - zero[n][g]). Codes and zero points are unsigned here; the form's own signed
// numbers are smaller by 2^(b-1), which its packing adds again, so the bits are the same. Scales keep their exact
// value: they are written in the smallest type that holds all of them. K that is no multiple of the group is an
// extension of cbq: the last group is shorter.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/io/bit_packing.hpp>
#include <cbq/io/checkpoint.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/io/safetensors_writer.hpp>
#include <cbq/io/stored_matrix.hpp>
#include <cbq/io/stored_scales.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The sizes of a quantized matrix and how it is stored; what must be known before its codes are.
struct QuantizedMatrixPlan {
  std::string module;
  std::size_t outputs = 0;
  std::size_t inputs = 0;
  Grid grid;
  Dtype scales = Dtype::f16;
};

/// The plan of a matrix whose codes are known.
[[nodiscard]] inline QuantizedMatrixPlan plan_of(std::string module, const QuantizedMatrixView& matrix,
                                                 const Grid& grid) {
  return {std::move(module), matrix.codes.rows, matrix.codes.columns, grid, exact_scale_dtype(matrix.scales)};
}

/// Appends the tensors of a quantized matrix to the plan of a file. Errc::unsupported for a grid that cannot be stored.
[[nodiscard]] inline Status plan_tensors(const QuantizedMatrixPlan& matrix, std::vector<TensorPlan>& tensors) {
  const Grid& grid = matrix.grid;
  const bool grouped = grid.granularity == Granularity::per_group && grid.group > 0;
  if (grid.bits < 2 || grid.bits > 8 || !(grouped || grid.granularity == Granularity::per_channel)) {
    return Error{Errc::unsupported, "pack-quantized cannot hold this grid", matrix.module,
                 ErrorText(grid.bits) << " bits", "2 to 8 bits per channel or group"};
  }
  const auto add = [&](const char* name, Dtype dtype, std::size_t rows, std::size_t columns) {
    tensors.push_back({matrix.module + name, dtype, {.rank = 2, .sizes = {rows, columns}}});
  };
  const std::size_t groups = group_count(grid, matrix.inputs);
  add(".weight_packed", Dtype::i32, matrix.outputs, packed_words(matrix.inputs, grid.bits));
  add(".weight_scale", matrix.scales, matrix.outputs, groups);
  tensors.push_back({matrix.module + ".weight_shape", Dtype::i64, {.rank = 1, .sizes = {2}}});
  if (grid.zero == Zero::affine) add(".weight_zero_point", Dtype::i32, packed_words(matrix.outputs, grid.bits), groups);
  return {};
}

namespace io_detail {

// Rows of `row_bytes` that are written at once.
inline std::size_t rows_per_write(std::size_t row_bytes) noexcept {
  constexpr std::size_t piece = std::size_t{1} << 20;
  return row_bytes == 0 ? ~std::size_t{0} : row_bytes > piece ? 1 : piece / row_bytes;
}

template <class Writer>
Status write_codes(Writer& writer, const std::string& name, const MatrixView<const std::uint8_t>& codes, int bits) {
  const std::size_t row_words = packed_words(codes.columns, bits);
  const std::size_t step = rows_per_write(4 * row_words);
  Result<AlignedBuffer<std::int32_t>> words =
      AlignedBuffer<std::int32_t>::allocate(std::min(step, codes.rows) * row_words);
  if (!words) return words.error();
  for (std::size_t n = 0; n < codes.rows; n += step) {
    const std::size_t count = std::min(step, codes.rows - n);
    const std::span<std::int32_t> piece(words->data(), count * row_words);
    if (const Status packed = pack_rows(rows(codes, n, count), bits, piece); !packed) return packed;
    const Status ok = writer.write(name, std::span<const std::int32_t>(piece));
    if (!ok) return ok;
  }
  return {};
}

}  // namespace io_detail

/// Writes the tensors of module `module`, which plan_tensors planned, with a SafetensorsWriter or ShardedWriter.
/// Errc::bad_argument (a code outside the grid, a scale that the planned type cannot hold exactly), Errc::not_finite,
/// Errc::bad_shape, Errc::io.
template <class Writer>
[[nodiscard]] Status write_quantized_matrix(Writer& writer, const std::string& module,
                                            const QuantizedMatrixView& matrix, const Grid& grid) {
  const std::size_t outputs = matrix.codes.rows;
  const std::size_t inputs = matrix.codes.columns;
  const std::size_t groups = group_count(grid, inputs);
  const bool affine = grid.zero == Zero::affine;
  if (matrix.scales.rows != outputs || matrix.scales.columns != groups ||
      (affine && (matrix.zeros.rows != outputs || matrix.zeros.columns != groups))) {
    return Error{Errc::bad_shape, "scales or zero points do not fit the codes", module, matrix.scales.columns, groups};
  }
  if (const Status ok = io_detail::write_codes(writer, module + ".weight_packed", matrix.codes, grid.bits); !ok) {
    return in_context(ok.error(), module);
  }
  if (const Status ok = io_detail::write_scales(writer, module + ".weight_scale", matrix.scales); !ok) return ok;
  const std::int64_t shape[2] = {static_cast<std::int64_t>(outputs), static_cast<std::int64_t>(inputs)};
  if (const Status ok = writer.write(module + ".weight_shape", std::span<const std::int64_t>(shape)); !ok) return ok;
  if (!affine) return {};
  const std::size_t zero_words = packed_words(outputs, grid.bits) * groups;  // at most one word per code: no overflow
  Result<AlignedBuffer<std::int32_t>> zeros = AlignedBuffer<std::int32_t>::allocate(zero_words);
  if (!zeros) return zeros.error();
  const Status packed = pack_zeros(matrix.zeros, grid.bits, {zeros->data(), zero_words});
  if (!packed) return in_context(packed.error(), module);
  return writer.write(module + ".weight_zero_point", std::span<const std::int32_t>(zeros->data(), zero_words));
}

/// The modules of a checkpoint that are stored as codes (those with a `weight_packed` tensor), sorted. The names live
/// as long as the checkpoint.
template <class Tensors>
[[nodiscard]] std::vector<std::string_view> packed_modules(const Tensors& checkpoint) {
  constexpr std::string_view ending = ".weight_packed";
  std::vector<std::string_view> modules;
  for (const TensorView& tensor : checkpoint.tensors()) {
    if (tensor.name.ends_with(ending)) modules.push_back(tensor.name.substr(0, tensor.name.size() - ending.size()));
  }
  return modules;
}

}  // namespace CBQ_ABI
}  // namespace cbq
