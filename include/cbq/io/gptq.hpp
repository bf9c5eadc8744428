// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantized matrices as the tensors of a GPTQ checkpoint. For module m of N outputs and K inputs with codes of b = 2,
// 3, 4 or 8 bits in G = ceil(K / group) groups:
//
//   m.qweight  I32 [K b / 32, N]   column n: the codes of output n without gaps, the first lowest (b = 3 straddles
//   words) m.qzeros   I32 [G, N b / 32]   row g: zero points of all outputs, packed so; v1 stores z - 1, v2 stores z
//   m.scales   F16 [G, N]
//   m.g_idx    I32 [K]             the group of each input, k / group
//
// w[n][k] = scales[g][n] (code - z). Symmetric grids store z = 2^(b-1). A column of qweight is a row of
// `pack-quantized` (bit_packing.hpp). Layout from GPTQModel's packer. Memory: one copy of the packed codes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/io/bit_packing.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/stored_matrix.hpp>
#include <cbq/io/stored_scales.hpp>

namespace cbq {

/// What `qzeros` hold: "checkpoint_format" "gptq" or "gptq_v2".
enum class GptqZeros : unsigned char {
  v1,  ///< z - 1; has no word for z = 0
  v2,  ///< z
};

inline namespace CBQ_ABI {

/// Whether a matrix fits the form: 2, 3, 4 or 8 bits, whole words along inputs and outputs. Errc::unsupported.
[[nodiscard]] inline Status check_gptq(const QuantizedMatrixPlan& matrix) {
  const Grid& grid = matrix.grid;
  const bool width = grid.bits == 2 || grid.bits == 3 || grid.bits == 4 || grid.bits == 8;
  const bool grouped = grid.granularity == Granularity::per_group && grid.group > 0;
  if (!width || !(grouped || grid.granularity == Granularity::per_channel)) {
    return Error{Errc::unsupported, "GPTQ cannot hold this grid", matrix.module, ErrorText(grid.bits) << " bits",
                 "2, 3, 4 or 8 bits per channel or group"};
  }
  const std::size_t codes = grid.bits == 3 ? 32 : 32 / static_cast<std::size_t>(grid.bits);  // that fill whole words
  if (matrix.inputs % codes == 0 && matrix.outputs % codes == 0) return {};
  return Error{Errc::unsupported, "GPTQ packs inputs and outputs into whole words", matrix.module,
               ErrorText(matrix.outputs) << " x " << matrix.inputs, ErrorText("multiples of ") << codes};
}

/// Appends the tensors of a matrix to the plan of a file; scales are F16. Errc::unsupported as check_gptq().
[[nodiscard]] inline Status plan_gptq(const QuantizedMatrixPlan& matrix, std::vector<TensorPlan>& tensors) {
  if (const Status fits = check_gptq(matrix); !fits) return fits;
  const int bits = matrix.grid.bits;
  const std::size_t groups = group_count(matrix.grid, matrix.inputs);
  const auto add = [&](const char* name, Dtype dtype, std::size_t rows, std::size_t columns) {
    tensors.push_back({matrix.module + name, dtype, {.rank = 2, .sizes = {rows, columns}}});
  };
  add(".qweight", Dtype::i32, packed_words(matrix.inputs, bits), matrix.outputs);
  add(".qzeros", Dtype::i32, groups, packed_words(matrix.outputs, bits));
  add(".scales", Dtype::f16, groups, matrix.outputs);
  tensors.push_back({matrix.module + ".g_idx", Dtype::i32, {.rank = 1, .sizes = {matrix.inputs}}});
  return {};
}

namespace io_detail {

// Outputs whose columns are turned into rows together: a cache line of words.
inline constexpr std::size_t gptq_band = 16;

template <class Writer>
Status write_gptq_codes(Writer& writer, const std::string& module, const QuantizedMatrixView& matrix, int bits) {
  const std::size_t outputs = matrix.codes.rows, words = packed_words(matrix.codes.columns, bits);
  auto memory = AlignedBuffer<std::int32_t>::allocate(words * outputs);  // fewer than codes: no overflow
  if (!memory) return memory.error();
  auto band = AlignedBuffer<std::int32_t>::allocate(words * gptq_band);
  if (!band) return band.error();
  for (std::size_t n = 0; n < outputs; n += gptq_band) {
    const std::size_t count = std::min(gptq_band, outputs - n);
    const Status packed = pack_rows(rows(matrix.codes, n, count), bits, {band->data(), words * count});
    if (!packed) return in_context(packed.error(), module);
    for (std::size_t w = 0; w < words; ++w) {
      for (std::size_t i = 0; i < count; ++i) (*memory)[w * outputs + n + i] = (*band)[i * words + w];
    }
  }
  return writer.write(module + ".qweight", std::span<const std::int32_t>(memory->data(), memory->size()));
}

template <class Writer>
Status write_gptq_zeros(Writer& writer, const std::string& module, const QuantizedMatrixView& matrix, const Grid& grid,
                        GptqZeros form) {
  const std::size_t outputs = matrix.scales.rows, groups = matrix.scales.columns;
  auto turned = AlignedBuffer<std::uint8_t>::allocate(groups * outputs);
  if (!turned) return turned.error();
  auto words = AlignedBuffer<std::int32_t>::allocate(groups * packed_words(outputs, grid.bits));
  if (!words) return words.error();
  const int less = form == GptqZeros::v1 ? 1 : 0;
  for (std::size_t n = 0; n < outputs; ++n) {
    for (std::size_t g = 0; g < groups; ++g) {
      const int zero = grid.zero == Zero::affine ? int{row(matrix.zeros, n)[g]} : symmetric_zero(grid);
      if (zero < less) {
        return Error{Errc::unsupported, "GPTQ v1 has no word for a zero point of 0", module,
                     ErrorText("output ") << n << ", group " << g, "gptq_v2"};
      }
      (*turned)[g * outputs + n] = static_cast<std::uint8_t>(zero - less);
    }
  }
  const MatrixView<const std::uint8_t> codes = matrix_view(std::as_const(*turned).data(), groups, outputs);
  const Status packed = pack_rows(codes, grid.bits, {words->data(), words->size()});
  if (!packed) return in_context(packed.error(), module);
  return writer.write(module + ".qzeros", std::span<const std::int32_t>(words->data(), words->size()));
}

// [N, G] as F16 [G, N].
template <class Writer>
Status write_turned_scales(Writer& writer, const std::string& name, const MatrixView<const float>& scales) {
  auto turned = AlignedBuffer<float>::allocate(scales.rows * scales.columns);
  if (!turned) return turned.error();
  for (std::size_t n = 0; n < scales.rows; ++n) {
    for (std::size_t g = 0; g < scales.columns; ++g) (*turned)[g * scales.rows + n] = row(scales, n)[g];
  }
  return write_scales(writer, name, matrix_view(std::as_const(*turned).data(), scales.columns, scales.rows));
}

}  // namespace io_detail

/// Writes what plan_gptq() planned. Errc::unsupported (a zero point of 0 in v1), Errc::bad_argument (a code outside the
/// grid, a scale that F16 cannot hold exactly), Errc::not_finite, Errc::bad_shape, Errc::io, Errc::out_of_memory.
template <class Writer>
[[nodiscard]] Status write_gptq(Writer& writer, const std::string& module, const QuantizedMatrixView& matrix,
                                const Grid& grid, GptqZeros zeros) {
  const std::size_t inputs = matrix.codes.columns;
  if (const Status ok = io_detail::write_gptq_codes(writer, module, matrix, grid.bits); !ok) return ok;
  if (const Status ok = io_detail::write_gptq_zeros(writer, module, matrix, grid, zeros); !ok) return ok;
  if (const Status ok = io_detail::write_turned_scales(writer, module + ".scales", matrix.scales); !ok) return ok;
  auto groups = AlignedBuffer<std::int32_t>::allocate(inputs);
  if (!groups) return groups.error();
  const std::size_t length = group_length(grid, inputs);
  for (std::size_t k = 0; k < inputs; ++k) (*groups)[k] = static_cast<std::int32_t>(k / length);
  return writer.write(module + ".g_idx", std::span<const std::int32_t>(groups->data(), inputs));
}

}  // namespace CBQ_ABI
}  // namespace cbq
