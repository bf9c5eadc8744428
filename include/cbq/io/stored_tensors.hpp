// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tensors of one quantized module of a checkpoint in the form `pack-quantized` (compressed_tensors.hpp), found and
// checked against each other. For readers that unpack the codes (StoredMatrix) or pack them anew (stored_packing.hpp).

#include <cstddef>
#include <cstdint>
#include <string>

#include <cbq/io/bit_packing.hpp>
#include <cbq/io/tensor.hpp>
#include <cbq/scheme.hpp>

namespace cbq {

/// The tensors of a quantized module, in the bytes of the file.
struct StoredTensors {
  const TensorView* packed = nullptr;
  const TensorView* scales = nullptr;
  const TensorView* zeros = nullptr;  ///< null for symmetric grids
  std::size_t outputs = 0;
  std::size_t inputs = 0;
};

inline namespace CBQ_ABI {

namespace io_detail {

inline Status read_stored_shape(const TensorView& tensor, StoredTensors& tensors) noexcept {
  if (tensor.dtype != Dtype::i64 || tensor.shape.rank != 1 || tensor.shape.sizes[0] != 2) {
    return Error{Errc::bad_file, "not the shape of a matrix", tensor.name,
                 ErrorText(dtype_name(tensor.dtype)) << " " << shape_text(tensor.shape).c_str(), "I64 [2]"};
  }
  const auto outputs = load_unaligned<std::int64_t>(tensor.bytes.data());
  const auto inputs = load_unaligned<std::int64_t>(tensor.bytes.data() + 8);
  if (outputs < 0 || inputs < 0) {
    return Error{Errc::bad_file, "a negative size", tensor.name, ErrorText(outputs) << ", " << inputs, "0 or more"};
  }
  tensors.outputs = static_cast<std::size_t>(outputs);
  tensors.inputs = static_cast<std::size_t>(inputs);
  return {};
}

inline Status check_stored_tensor(const TensorView& tensor, bool right_type, std::size_t rows,
                                  std::size_t columns) noexcept {
  if (right_type && same_shape(tensor.shape, {.rank = 2, .sizes = {rows, columns}})) return {};
  return Error{Errc::bad_shape, "a tensor does not fit its module", tensor.name,
               ErrorText(dtype_name(tensor.dtype)) << " " << shape_text(tensor.shape).c_str(),
               ErrorText("[") << rows << ", " << columns << "]"};
}

// The packed tensor exists in the file, so what agrees with it is not too large to allocate for.
inline Status check_stored(const StoredTensors& tensors, const Grid& grid) noexcept {
  const Dtype scale = tensors.scales->dtype;
  const bool float_scales = scale == Dtype::f16 || scale == Dtype::bf16 || scale == Dtype::f32;
  const std::size_t groups = group_count(grid, tensors.inputs);
  const Status packed = check_stored_tensor(*tensors.packed, tensors.packed->dtype == Dtype::i32, tensors.outputs,
                                            packed_words(tensors.inputs, grid.bits));
  if (!packed) return packed;
  if (const Status ok = check_stored_tensor(*tensors.scales, float_scales, tensors.outputs, groups); !ok) return ok;
  if (tensors.zeros == nullptr) return {};
  return check_stored_tensor(*tensors.zeros, tensors.zeros->dtype == Dtype::i32,
                             packed_words(tensors.outputs, grid.bits), groups);
}

}  // namespace io_detail

/// The tensors of module `module` of a Checkpoint or Safetensors whose weights are on `grid`. Errc::bad_file,
/// Errc::bad_shape, Errc::bad_argument.
template <class Tensors>
[[nodiscard]] Result<StoredTensors> find_stored(const Tensors& checkpoint, const std::string& module,
                                                const Grid& grid) {
  StoredTensors tensors;
  tensors.packed = checkpoint.find(module + ".weight_packed");
  tensors.scales = checkpoint.find(module + ".weight_scale");
  tensors.zeros = checkpoint.find(module + ".weight_zero_point");
  const TensorView* shape = checkpoint.find(module + ".weight_shape");
  if (tensors.packed == nullptr || tensors.scales == nullptr || shape == nullptr) {
    return Error{Errc::bad_file, "a quantized module lacks a tensor", module, "", "weight_packed, _scale and _shape"};
  }
  const bool zeros = tensors.zeros != nullptr;
  if (zeros != (grid.zero == Zero::affine)) {
    return Error{Errc::bad_file, "zero points do not fit the scheme", module, zeros ? "weight_zero_point" : "none",
                 zeros ? "none" : "weight_zero_point"};
  }
  if (grid.bits < 2 || grid.bits > 8) {
    return Error{Errc::bad_argument, "codes have 2 to 8 bits", module, grid.bits, "2..8"};
  }
  if (const Status ok = io_detail::read_stored_shape(*shape, tensors); !ok) return ok.error();
  if (const Status ok = io_detail::check_stored(tensors, grid); !ok) return ok.error();
  return tensors;
}

/// Scales and, for affine grids, zero points of found tensors as numbers, [outputs, groups] each. Errc::not_finite,
/// Errc::bad_shape.
[[nodiscard]] inline Status read_parameters(const StoredTensors& tensors, const Grid& grid,
                                            const MatrixView<float>& scales,
                                            const MatrixView<std::uint8_t>& zeros) noexcept {
  const Status read = copy_to_float(*tensors.scales, scales);
  if (!read || tensors.zeros == nullptr) return read;
  return unpack_zeros(tensors.zeros->bytes, grid.bits, zeros);
}

}  // namespace CBQ_ABI
}  // namespace cbq
