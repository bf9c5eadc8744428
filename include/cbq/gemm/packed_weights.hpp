// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packed weights of one linear layer under a scheme S: a view into memory that the host brings, and an owner for hosts
// that would rather not. A view that pack() returned is valid, so that kernels check nothing. Scales are stored as half
// with one power of two for the whole matrix, chosen so that the largest magnitude lies in [2^14, 2^15): every scale of
// at most 11 significant bits within 2^28 of the largest is kept exactly, with its sign.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/core/element.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/gemm/packing.hpp>

namespace cbq {

/// Packed N x K weights of any scheme. Plain data: it may cross files and be rebuilt from a stored copy of the bytes.
/// Write
/// `= {}`: `multiplier` has no initializer, because one would make an unoptimized constructor of vector instructions
/// that files with other flags share.
struct PackedMatrix {
  const std::byte* data = nullptr;  ///< packed_bytes(layout) bytes, of any alignment
  PackedLayout layout = {};
  float multiplier;  ///< the power of two that stored scales are multiplied with
};

/// Packed weights whose scheme the compiler knows.
template <Scheme S>
struct PackedWeightsView : PackedMatrix {};

inline namespace CBQ_ABI {

/// Bytes that pack<S>() writes for an `outputs` x `inputs` matrix.
template <Scheme S>
[[nodiscard]] constexpr Result<std::size_t> packed_size(std::size_t outputs, std::size_t inputs) noexcept {
  const Result<PackedLayout> layout = packed_layout(checked<S>().weight, outputs, inputs);
  if (!layout) return layout.error();
  return packed_bytes(*layout);
}

namespace packing {

/// 2^e with the magnitude of bits `largest` times 2^-e in [2^14, 2^15); 1 where that is zero or subnormal.
[[nodiscard]] constexpr float scale_multiplier(std::uint32_t largest) noexcept {
  if (largest < 0x00800000u) return 1.0f;
  const std::uint32_t exponent = largest >> 23;
  return __builtin_bit_cast(float, (exponent > 14 ? exponent - 14 : 1u) << 23);
}

/// The error that names the first scale that is no number; there is one.
[[nodiscard]] inline Error not_finite_scale(const MatrixView<const float>& scales) noexcept {
  Error error{Errc::not_finite, "[cbq] pack: scales must be finite"};
  for (std::size_t n = 0; n < scales.rows; ++n) {
    for (std::size_t g = 0; g < scales.columns; ++g) {
      if ((__builtin_bit_cast(std::uint32_t, row(scales, n)[g]) & 0x7f800000u) != 0x7f800000u) continue;
      error.where = ErrorText("output ") << n << ", group " << g;
      return error;
    }
  }
  return error;
}

/// The error that names the first code or zero point above `limit`; there is one.
[[nodiscard]] inline Error beyond_grid(const MatrixView<const std::uint8_t>& values, unsigned limit, const char* what,
                                       const char* column) noexcept {
  Error error{Errc::bad_argument, what, "", "", ErrorText("at most ") << limit};
  for (std::size_t n = 0; n < values.rows; ++n) {
    for (std::size_t c = 0; c < values.columns; ++c) {
      if (row(values, n)[c] <= limit) continue;
      error.where = ErrorText("output ") << n << column << c;
      error.got = ErrorText(unsigned{row(values, n)[c]});
      return error;
    }
  }
  return error;
}

/// The bits of the largest magnitude among `count` floats; those of infinities and NaNs are above all others.
[[nodiscard]] inline std::uint32_t largest_bits(const float* values, std::size_t count) noexcept {
  constexpr std::size_t lanes = 8;
  std::int32_t largest[lanes] = {};
  std::size_t i = 0;
  const auto raise = [&](std::size_t lane) {
    const std::int32_t bits = __builtin_bit_cast(std::int32_t, values[i + lane]) & 0x7fffffff;
    largest[lane] = bits > largest[lane] ? bits : largest[lane];
  };
  for (; count - i >= lanes; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) raise(lane);
  }
  for (; i < count; ++i) raise(0);
  for (const std::int32_t bits : largest) largest[0] = bits > largest[0] ? bits : largest[0];
  return static_cast<std::uint32_t>(largest[0]);
}

/// Raises `shared`, which several tasks raise at once, to `value`.
inline void raise(std::uint32_t& shared, std::uint32_t value) noexcept {
  std::uint32_t seen = __atomic_load_n(&shared, __ATOMIC_RELAXED);
  while (seen < value &&
         !__atomic_compare_exchange_n(&shared, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

/// Whether scales and zeros have one row per output and one column per group. Errc::bad_shape.
[[nodiscard]] inline Status check_parameter_shapes(const QuantizedMatrixView& matrix, const Grid& grid,
                                                   const PackedLayout& layout) noexcept {
  const auto fits = [&](const auto& view) { return view.rows == layout.outputs && view.columns == layout.groups; };
  const auto sizes = [](const auto& view) { return ErrorText(view.rows) << " x " << view.columns; };
  const ErrorText wanted = ErrorText(layout.outputs) << " x " << layout.groups;
  if (!fits(matrix.scales)) {
    return Error{Errc::bad_shape, "[cbq] pack: scales must be outputs x groups", "scales", sizes(matrix.scales),
                 wanted};
  }
  if (grid.zero == Zero::affine ? fits(matrix.zeros) : matrix.zeros.data == nullptr) return {};
  return Error{Errc::bad_shape, "[cbq] pack: zeros must be outputs x groups when affine and absent when symmetric",
               "zeros", sizes(matrix.zeros), wanted};
}

/// Checks that zero points lie on the grid and scales are finite, and returns scale_multiplier(). Errc::bad_argument,
/// Errc::not_finite.
template <Executor E>
[[nodiscard]] Result<float> check_parameters(const QuantizedMatrixView& matrix, const Grid& grid,
                                             const E& executor) noexcept {
  constexpr std::size_t rows_per_task = 256;
  const MatrixView<const float>& scales = matrix.scales;
  std::uint32_t largest = 0;
  std::uint32_t largest_zero = 0;
  executor.for_each_index(divide_up(scales.rows, rows_per_task), [&](std::size_t task) {
    const std::size_t last = (task + 1) * rows_per_task < scales.rows ? (task + 1) * rows_per_task : scales.rows;
    std::uint32_t scale = 0;
    unsigned zero = 0;
    for (std::size_t n = task * rows_per_task; n < last; ++n) {
      const std::uint32_t bits = largest_bits(row(scales, n), scales.columns);
      scale = bits > scale ? bits : scale;
      for (std::size_t g = 0; g < matrix.zeros.columns; ++g) {
        zero = row(matrix.zeros, n)[g] > zero ? row(matrix.zeros, n)[g] : zero;
      }
    }
    raise(largest, scale);
    raise(largest_zero, zero);
  });
  if (largest >= 0x7f800000u) return not_finite_scale(scales);
  const auto limit = static_cast<unsigned>(max_code(grid));
  if (largest_zero > limit) {
    return beyond_grid(matrix.zeros, limit, "[cbq] pack: a zero point does not fit the scheme's bits", ", group ");
  }
  return scale_multiplier(largest);
}

/// Codes that lie as bytes in rows; see pack_panel().
struct CodeRows {
  explicit CodeRows(const MatrixView<const std::uint8_t>& codes) noexcept
      : matrix(codes), bytes{reinterpret_cast<const std::byte*>(codes.data), codes.rows, codes.columns, codes.stride} {}

  [[nodiscard, gnu::always_inline]] BlockCodes codes(std::size_t n, std::size_t input,
                                                     std::size_t count) const noexcept {
    return load_codes(bytes.at(n, input), count);
  }
  [[gnu::always_inline]] void prefetch(std::size_t first, std::size_t count, std::size_t input) const noexcept {
    bytes.prefetch(first, count, input);
  }
  [[nodiscard]] Error bad_code(unsigned limit) const noexcept {
    return beyond_grid(matrix, limit, "[cbq] pack: a code does not fit the scheme's bits", ", input ");
  }

  MatrixView<const std::uint8_t> matrix;
  ByteRows bytes;
};

/// Scales and zero points that lie as numbers in rows; see pack_panel().
struct Parameters {
  [[nodiscard]] bool header(const Panel& panel, std::size_t group, std::byte* bytes) const noexcept {
    const auto scale = [&](std::size_t o) {
      return o < panel.count ? row(numbers.scales, panel.first + o)[group] * inverse_multiplier : 0.0f;
    };
    Floats scales[4];
    for (std::size_t i = 0; i < 4; ++i) {
      const std::size_t o = i / 2 * 8 + i % 2;
      scales[i] = Floats{scale(o), scale(o + 2), scale(o + 4), scale(o + 6)};
    }
    store_scales(scales, bytes);
    if (panel.layout->zero == Zero::symmetric) return true;
    std::uint8_t zeros[panel_outputs] = {};
    for (std::size_t o = 0; o < panel.count; ++o) zeros[o] = row(numbers.zeros, panel.first + o)[group];
    __builtin_memcpy(bytes + group_scales_bytes, zeros, sizeof zeros);
    return true;
  }

  QuantizedMatrixView numbers;
  float inverse_multiplier;
};

/// Codes from somewhere, scales and zero points from rows of numbers.
template <class Codes>
struct Source : Codes, Parameters {};

/// Packs `codes`, rows of codes with a bad_code(), with the scales and zero points of `parameters`, of whose own codes
/// only the shape counts. Errors as pack().
template <class Codes, Executor E>
[[nodiscard]] Result<PackedMatrix> pack_rows_of(const Codes& codes, const QuantizedMatrixView& parameters,
                                                const Grid& grid, std::span<std::byte> memory,
                                                const E& executor) noexcept {
  const Result<PackedLayout> layout = layout_for(grid, parameters.codes.rows, parameters.codes.columns, memory.size());
  if (!layout) return layout.error();
  if (const Status fits = check_parameter_shapes(parameters, grid, *layout); !fits) return fits.error();
  const Result<float> multiplier = check_parameters(parameters, grid, executor);
  if (!multiplier) return multiplier.error();
  const Source<Codes> source{{codes}, {parameters, 1.0f / *multiplier}};
  const bool valid = for_each_panel(*layout, grid, memory.data(), executor,
                                    [&](const Panel& panel) { return pack_panel(source, panel); });
  if (!valid) return codes.bad_code(static_cast<unsigned>(max_code(grid)));
  return PackedMatrix{memory.data(), *layout, *multiplier};
}

/// pack() for a grid known at run time.
template <Executor E = SerialExecutor>
[[nodiscard]] Result<PackedMatrix> pack_matrix(const QuantizedMatrixView& matrix, const Grid& grid,
                                               std::span<std::byte> memory, const E& executor = {}) noexcept {
  return pack_rows_of(CodeRows{matrix.codes}, matrix, grid, memory, executor);
}

}  // namespace packing

/// Packs `matrix` (N x K codes, N x groups scales, zeros if S is affine) into `memory` of at least packed_size<S>()
/// bytes; 64-byte alignment is fastest, none is needed. The view points into `memory`. Errors: bad_shape (sizes that do
/// not fit each other or the memory), bad_argument (a code or zero point beyond the grid), not_finite (scales). The
/// bytes do not depend on the executor.
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<PackedWeightsView<S>> pack(const QuantizedMatrixView& matrix, std::span<std::byte> memory,
                                                const E& executor = {}) noexcept {
  const Result<PackedMatrix> packed = packing::pack_matrix(matrix, checked<S>().weight, memory, executor);
  if (!packed) return packed.error();
  return PackedWeightsView<S>{*packed};
}

/// Packed weights with memory of their own.
template <Scheme S>
class PackedWeights {
 public:
  /// Allocates and packs; errors as pack<S>(), and out_of_memory.
  template <Executor E = SerialExecutor>
  [[nodiscard]] static Result<PackedWeights> from_codes(const QuantizedMatrixView& matrix,
                                                        const E& executor = {}) noexcept {
    const Result<std::size_t> size = packed_size<S>(matrix.codes.rows, matrix.codes.columns);
    if (!size) return size.error();
    Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(*size);
    if (!memory) return memory.error();
    const Result<PackedWeightsView<S>> view = pack<S>(matrix, {memory->data(), memory->size()}, executor);
    if (!view) return view.error();
    PackedWeights weights;
    weights.memory_ = *std::move(memory);
    weights.view_ = *view;
    return weights;
  }

  [[nodiscard]] const PackedWeightsView<S>& view() const noexcept { return view_; }
  [[nodiscard]] std::size_t outputs() const noexcept { return view_.layout.outputs; }
  [[nodiscard]] std::size_t inputs() const noexcept { return view_.layout.inputs; }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size(); }

 private:
  AlignedBuffer<std::byte> memory_;
  PackedWeightsView<S> view_ = {};
};

/// Code, scale and zero point of one weight, read back from the packed bytes; for tests, tools and debuggers.
struct UnpackedWeight {
  unsigned code = 0;
  float scale = 0.0f;
  int zero = 0;
};
[[nodiscard]] inline UnpackedWeight unpack(const PackedMatrix& weights, std::size_t output,
                                           std::size_t input) noexcept {
  const PackedLayout& layout = weights.layout;
  const std::size_t block_index = input / block_inputs;
  const std::size_t group = layout.groups == 1 ? 0 : input / (layout.blocks_per_group * block_inputs);
  const std::byte* header = weights.data + output / panel_outputs * layout.panel_bytes + group * layout.group_bytes;
  const std::size_t lane = output % panel_outputs;
  const std::byte* block =
      header + layout.header_bytes + (block_index - group * layout.blocks_per_group) * block_bytes(layout.bits);
  half scale;
  __builtin_memcpy(&scale, header + lane * sizeof scale, sizeof scale);
  UnpackedWeight weight;
  weight.code = block_code(block, layout.bits, lane, input % block_inputs);
  weight.scale = to_float(scale) * weights.multiplier;
  weight.zero =
      layout.zero == Zero::affine ? static_cast<int>(header[group_scales_bytes + lane]) : 1 << (layout.bits - 1);
  return weight;
}

}  // namespace CBQ_ABI
}  // namespace cbq
