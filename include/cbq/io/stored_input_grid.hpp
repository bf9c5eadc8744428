// SPDX-License-Identifier: Apache-2.0
#pragma once

// The grid of static activations as tensors of a checkpoint, in the compressed-tensors form: of module m
//
//   m.input_scale       F32 [1]
//   m.input_zero_point  I8 [1]     affine grids only: the zero point less 2^(bits-1), as the form's own codes are
//   signed
//
// x^ = scale (code - zero). Files of other programs may have scales of F16 and BF16, and zero points of 0 on symmetric
// grids. A few bytes per module.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <cbq/io/safetensors_writer.hpp>
#include <cbq/io/tensor.hpp>
#include <cbq/scheme/activation_rules.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Appends the tensors of a static grid of kind `grid` to the plan of a file.
inline void plan_input_grid(const std::string& module, const Grid& grid, std::vector<TensorPlan>& tensors) {
  tensors.push_back({module + ".input_scale", Dtype::f32, {.rank = 1, .sizes = {1}}});
  if (grid.zero == Zero::affine) {
    tensors.push_back({module + ".input_zero_point", Dtype::i8, {.rank = 1, .sizes = {1}}});
  }
}

/// Writes what plan_input_grid() planned. Errc::bad_argument as check_static_grid(), Errc::io.
template <class Writer>
[[nodiscard]] Status write_input_grid(Writer& writer, const std::string& module, const Grid& grid,
                                      const StaticGrid& fixed) {
  if (const Status valid = check_static_grid(fixed, grid); !valid) return in_context(valid.error(), module);
  const Status written = writer.write(module + ".input_scale", std::span<const float>(&fixed.scale, 1));
  if (!written || grid.zero == Zero::symmetric) return written;
  const auto zero = static_cast<std::int8_t>(fixed.zero - symmetric_zero(grid));
  return writer.write(module + ".input_zero_point", std::span<const std::int8_t>(&zero, 1));
}

namespace io_detail {

inline bool is_one_number(const TensorView& tensor) noexcept {
  return tensor.shape.rank <= 1 && (tensor.shape.rank == 0 || tensor.shape.sizes[0] == 1);
}

}  // namespace io_detail

/// The static grid of a module of a Checkpoint or Safetensors. Errc::bad_file for a tensor that is missing or of
/// another type or shape, Errc::not_finite, Errc::bad_argument as check_static_grid().
template <class Tensors>
[[nodiscard]] Result<StaticGrid> read_input_grid(const Tensors& checkpoint, const std::string& module,
                                                 const Grid& grid) {
  const TensorView* scale = checkpoint.find(module + ".input_scale");
  const TensorView* zero = checkpoint.find(module + ".input_zero_point");
  if (scale == nullptr || (zero == nullptr && grid.zero == Zero::affine)) {
    return Error{Errc::bad_file, "static activations lack a tensor", module, "",
                 scale == nullptr ? "input_scale" : "input_zero_point"};
  }
  const bool floats = scale->dtype == Dtype::f32 || scale->dtype == Dtype::f16 || scale->dtype == Dtype::bf16;
  if (!floats || !io_detail::is_one_number(*scale)) {
    return Error{Errc::bad_file, "a static scale is one floating-point number", scale->name,
                 ErrorText(dtype_name(scale->dtype)) << " " << shape_text(scale->shape).c_str()};
  }
  StaticGrid fixed;
  TensorView row = *scale;
  row.shape = {.rank = 2, .sizes = {1, 1}};
  if (const Status read = copy_to_float(row, matrix_view(&fixed.scale, 1, 1)); !read) return read.error();
  if (zero != nullptr) {
    if (zero->dtype != Dtype::i8 || !io_detail::is_one_number(*zero)) {
      return Error{Errc::bad_file, "a static zero point is one number of 8 bits", zero->name,
                   ErrorText(dtype_name(zero->dtype)) << " " << shape_text(zero->shape).c_str()};
    }
    const int offset = grid.zero == Zero::affine ? symmetric_zero(grid) : 0;
    fixed.zero = static_cast<std::int8_t>(zero->bytes[0]) + offset;
  }
  if (const Status valid = check_static_grid(fixed, grid); !valid) return in_context(valid.error(), module);
  return fixed;
}

}  // namespace CBQ_ABI
}  // namespace cbq
