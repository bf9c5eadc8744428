// SPDX-License-Identifier: Apache-2.0
#pragma once

// Scales of a quantized matrix as a tensor of a checkpoint, F16, BF16 or F32: written only where the type holds each of
// them exactly. One pass, and memory for one copy of the scales.

#include <cstddef>
#include <span>
#include <string>

#include <cbq/core/aligned.hpp>
#include <cbq/core/element.hpp>
#include <cbq/io/safetensors_writer.hpp>
#include <cbq/io/tensor.hpp>

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

namespace io_detail {

template <Element T, class Writer>
Status write_scales_as(Writer& writer, const std::string& name, const MatrixView<const float>& scales) {
  Result<AlignedBuffer<T>> stored = AlignedBuffer<T>::allocate(scales.rows * scales.columns);
  if (!stored) return stored.error();
  for (std::size_t r = 0; r < scales.rows; ++r) {
    T* line = stored->data() + r * scales.columns;
    for (std::size_t c = 0; c < scales.columns; ++c) {
      const float scale = row(scales, r)[c];
      line[c] = from_float<T>(scale);
      if (to_float(line[c]) != scale) {  // also for NaN; the conversion makes an infinity of what is too large
        return Error{Errc::bad_argument, "a scale has no exact value in the planned type", name,
                     ErrorText("row ") << r << ", group " << c};
      }
    }
  }
  return writer.write(name, std::span<const T>(stored->data(), stored->size()));
}

template <class Writer>
Status write_scales(Writer& writer, const std::string& name, const MatrixView<const float>& scales) {
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
}  // namespace CBQ_ABI
}  // namespace cbq
