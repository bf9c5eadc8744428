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
#include <cbq/io/stored_tensors.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The smallest of F16, BF16 and F32 that holds every scale exactly.
[[nodiscard]] inline Dtype exact_scale_dtype(const MatrixView<const float>& scales) noexcept {
  bool in_half = true;
  bool in_bfloat16 = true;
  for (std::size_t r = 0; r < scales.rows; ++r) {
    for (std::size_t c = 0; c < scales.columns; ++c) {
      const float scale = row(scales, r)[c];
      in_half = in_half && to_float(to_half(scale)) == scale;
      in_bfloat16 = in_bfloat16 && to_float(to_bfloat16(scale)) == scale;
    }
  }
  return in_half ? Dtype::f16 : in_bfloat16 ? Dtype::bf16 : Dtype::f32;
}

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

template <Element T>
Status write_scales_as(SafetensorsWriter& writer, const std::string& name, const MatrixView<const float>& scales) {
  Result<AlignedBuffer<T>> line = AlignedBuffer<T>::allocate(scales.columns);
  if (!line) return line.error();
  for (std::size_t r = 0; r < scales.rows; ++r) {
    for (std::size_t c = 0; c < scales.columns; ++c) {
      const float scale = row(scales, r)[c];
      (*line)[c] = from_float<T>(scale);
      if (to_float((*line)[c]) != scale) {  // also for NaN; the conversion makes an infinity of what is too large
        return Error{Errc::bad_argument, "a scale has no exact value in the planned type", name,
                     ErrorText("row ") << r << ", group " << c};
      }
    }
    if (const Status ok = writer.write(name, std::span<const T>(line->data(), line->size())); !ok) return ok;
  }
  return {};
}

inline Status write_scales(SafetensorsWriter& writer, const std::string& name, const MatrixView<const float>& scales) {
  for (std::size_t r = 0; r < scales.rows; ++r) {
    if (const Status ok = check_finite({row(scales, r), scales.columns}, r, Finite::required); !ok) {
      return in_context(ok.error(), name);
    }
  }
  const TensorPlan* plan = writer.planned(name);
  if (plan == nullptr) return Error{Errc::bad_argument, "the tensor was not planned", name};
  switch (plan->dtype) {
    case Dtype::f16:
      return write_scales_as<half>(writer, name, scales);
    case Dtype::bf16:
      return write_scales_as<bfloat16>(writer, name, scales);
    case Dtype::f32:
      return write_scales_as<float>(writer, name, scales);
    default:
      return Error{Errc::bad_argument, "scales are F16, BF16 or F32", name, dtype_name(plan->dtype)};
  }
}

}  // namespace io_detail

/// Writes the tensors of module `module`, which plan_tensors planned. Errc::bad_argument (a code outside the grid, a
/// scale that the planned type cannot hold exactly), Errc::not_finite, Errc::bad_shape, Errc::io.
[[nodiscard]] inline Status write_quantized_matrix(SafetensorsWriter& writer, const std::string& module,
                                                   const QuantizedMatrixView& matrix, const Grid& grid) {
  const std::size_t outputs = matrix.codes.rows;
  const std::size_t inputs = matrix.codes.columns;
  const std::size_t groups = group_count(grid, inputs);
  const bool affine = grid.zero == Zero::affine;
  if (matrix.scales.rows != outputs || matrix.scales.columns != groups ||
      (affine && (matrix.zeros.rows != outputs || matrix.zeros.columns != groups))) {
    return Error{Errc::bad_shape, "scales or zero points do not fit the codes", module, matrix.scales.columns, groups};
  }
  const std::size_t row_words = packed_words(inputs, grid.bits);
  Result<AlignedBuffer<std::int32_t>> words = AlignedBuffer<std::int32_t>::allocate(row_words);
  if (!words) return words.error();
  for (std::size_t n = 0; n < outputs; ++n) {
    const Status packed = pack_rows(rows(matrix.codes, n, 1), grid.bits, {words->data(), row_words});
    if (!packed) return in_context(packed.error(), module);
    const Status ok = writer.write(module + ".weight_packed", std::span<const std::int32_t>(words->data(), row_words));
    if (!ok) return ok;
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

/// Codes, scales and zero points read from a checkpoint, owned.
class StoredMatrix {
 public:
  [[nodiscard]] QuantizedMatrixView view() const noexcept {
    const bool affine = grid_.zero == Zero::affine;
    return {matrix_view(codes_.data(), outputs_, inputs_), matrix_view(scales_.data(), outputs_, groups()),
            affine ? matrix_view(zeros_.data(), outputs_, groups()) : MatrixView<const std::uint8_t>{}};
  }
  [[nodiscard]] const Grid& grid() const noexcept { return grid_; }

  /// Reads module `module` of a Checkpoint or Safetensors. Everything is checked against `grid` and the other tensors
  /// before memory is taken. Errors of find_stored(), Errc::not_finite, Errc::out_of_memory.
  template <class Tensors>
  [[nodiscard]] static Result<StoredMatrix> read(const Tensors& checkpoint, const std::string& module,
                                                 const Grid& grid) {
    const Result<StoredTensors> tensors = find_stored(checkpoint, module, grid);
    if (!tensors) return tensors.error();
    StoredMatrix matrix;
    matrix.grid_ = grid;
    matrix.outputs_ = tensors->outputs;
    matrix.inputs_ = tensors->inputs;
    if (const Status ok = matrix.allocate(); !ok) return in_context(ok.error(), module);
    if (const Status ok = matrix.decode(*tensors); !ok) return in_context(ok.error(), module);
    return matrix;
  }

 private:
  [[nodiscard]] std::size_t groups() const noexcept { return group_count(grid_, inputs_); }

  Status allocate() noexcept {
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
    return read_parameters(tensors, grid_, matrix_view(scales_.data(), outputs_, groups()),
                           matrix_view(zeros_.data(), outputs_, groups()));
  }

  AlignedBuffer<std::uint8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::uint8_t> zeros_;
  Grid grid_ = {.bits = 8};
  std::size_t outputs_ = 0;
  std::size_t inputs_ = 0;
};

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
