// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packs floating-point weights in one pass: each panel of 16 outputs is fitted, rounded to nearest and packed while it
// lies in the cache, tasks of whole panels over an executor. The bytes are those of round_nearest() and pack() on every
// instruction set, without a matrix of codes between them. float_panel.hpp says how kernels do without division. Cost
// with MinMaxRange: on AVX-512 about half of the rate at which one core reads floats from memory, less for halves and
// on AVX2 (docs/benchmarks.md); elsewhere, and for double, one division and about ten more vector instructions for 4
// weights. With other finders that of their search.
//
// Scales are found before the largest of the matrix is known, to 11 significant bits, which is what storing keeps of
// nearly all of them. Panels with a scale more than 2^28 below the largest are quantized again with what is stored.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/aligned.hpp>
#include <cbq/core/cpu.hpp>
#include <cbq/gemm/float_codes.hpp>
#include <cbq/gemm/float_packing_avx2.hpp>
#include <cbq/gemm/float_packing_avx512.hpp>
#include <cbq/gemm/float_panel.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/packing.hpp>
#include <cbq/gemm/scale_headers.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

/// The kernel of an instruction set for elements T; null where there is none.
template <Zero Z, Element T>
[[nodiscard]] FloatPanelKernel<T> float_panel_kernel([[maybe_unused]] Isa isa) noexcept {
  if constexpr (!std::same_as<T, double>) {
#if defined(__x86_64__)
    switch (floating_point_isa(isa)) {
      case Isa::avx512_vnni:
        return &isa::avx512_vnni::float_packing::pack_panel<Z, T>;
      case Isa::avx2:
        return &isa::avx2::float_packing::pack_panel<Z, T>;
      default:
        break;
    }
#endif
  }
  return nullptr;
}

/// Weights, what they are quantized with, and how. Scales and zero points lie as groups x 16 for each panel.
template <Element T>
struct FloatMatrix {
  MatrixView<const T> weights;
  Grid grid;
  std::span<float> scales;
  std::span<std::uint8_t> zeros;  ///< affine grids only
  /// For each panel the multiplier that its headers were written for in the first pass, 0 where they were not.
  std::span<float> written;
  FloatPanelKernel<T> kernel = nullptr;

  [[nodiscard]] FloatPanel<T> job(const Panel& panel, Scales origin) const noexcept {
    const std::size_t at = panel.first * panel.layout->groups;
    return {weights, panel, scales.data() + at, zeros.empty() ? nullptr : zeros.data() + at, origin};
  }
};

/// Codes in the memory of a panel; headers come later.
struct HeadlessRows : CodeRows {
  [[nodiscard]] static constexpr bool header(const Panel&, std::size_t, std::byte*) noexcept { return true; }
};

/// Calls body(group, its part of the row).
template <class Body>
void for_each_group(std::span<const float> x, const Grid& grid, const Body& body) noexcept {
  const std::size_t length = group_length(grid, x.size());
  for (std::size_t first = 0, group = 0; first < x.size(); first += length, ++group) {
    body(group, x.subspan(first, x.size() - first < length ? x.size() - first : length));
  }
}

/// Row n as float: in place, or converted into `memory`.
template <Element T>
[[nodiscard]] std::span<const float> float_row(const MatrixView<const T>& weights, std::size_t n,
                                               AlignedBuffer<float>& memory) noexcept {
  if constexpr (std::same_as<T, float>) {
    return {row(weights, n), weights.columns};
  } else {
    to_float_row(row(weights, n), weights.columns, memory.data());
    return {memory.data(), weights.columns};
  }
}

/// Quantizes row `output` of a panel with its scales and zero points; a scale of 0 stands for a group of zeros.
template <Element T>
void quantize_output(const FloatPanel<T>& job, const Grid& grid, std::size_t output, std::span<const float> x,
                     std::uint8_t* codes) noexcept {
  for_each_group(x, grid, [&](std::size_t group, std::span<const float> segment) {
    const std::size_t at = group * panel_outputs + output;
    const float scale = job.scales[at];
    const int zero = grid.zero == Zero::affine ? int{job.zeros[at]} : symmetric_zero(grid);
    float_codes(segment, {scale == 0 ? 1.0f : scale, zero, max_code(grid)}, codes + (segment.data() - x.data()));
  });
}

/// Quantizes and packs one panel but for its headers with scales that are there; false without memory.
template <Element T>
[[nodiscard]] bool pack_given(const FloatMatrix<T>& matrix, const Panel& panel) noexcept {
  const FloatPanel<T> job = matrix.job(panel, Scales::given);
  if (matrix.kernel != nullptr) return matrix.kernel(job);
  const std::size_t inputs = matrix.weights.columns;
  auto codes = AlignedBuffer<std::uint8_t>::allocate(panel.count * inputs);
  auto floats = AlignedBuffer<float>::allocate(std::same_as<T, float> ? 0 : inputs);
  if (!codes || !floats) return false;
  for (std::size_t o = 0; o < panel.count; ++o) {
    const std::span<const float> x = float_row(matrix.weights, panel.first + o, *floats);
    quantize_output(job, matrix.grid, o, x, codes->data() + o * inputs);
  }
  const MatrixView<const std::uint8_t> view = as_const(matrix_view(codes->data(), panel.count, inputs));
  Panel local = panel;
  local.first = 0;  // rows of the buffer
  return packing::pack_panel(HeadlessRows{CodeRows(view)}, local);
}

/// finder.find(), for a segment whose largest magnitude costs less than its ends when only that is wanted.
template <RangeFinder Finder>
[[nodiscard]] CodeGrid find_grid(const Finder& finder, std::span<const float> segment, const Grid& grid) noexcept {
  if constexpr (std::same_as<Finder, MinMaxRange>) {
    if (grid.zero == Zero::symmetric) {
      const float limit = __builtin_bit_cast(float, largest_magnitude(segment));
      return ranges::from_interval({-limit, limit}, grid, ScalePrecision::half);
    }
  }
  return finder.find(segment, grid, ScalePrecision::half);
}

/// Chooses scales and zero points of a panel; false when a weight is not finite or without memory.
template <Element T, RangeFinder Finder>
[[nodiscard]] bool fit_panel(const FloatMatrix<T>& matrix, const Panel& panel, const Finder& finder) noexcept {
  auto floats = AlignedBuffer<float>::allocate(std::same_as<T, float> ? 0 : matrix.weights.columns);
  if (!floats) return false;
  const FloatPanel<T> job = matrix.job(panel, Scales::given);
  for (std::size_t o = 0; o < panel.count; ++o) {
    const std::span<const float> x = float_row(matrix.weights, panel.first + o, *floats);
    if (largest_magnitude(x) >= 0x7f800000u) return false;
    for_each_group(x, matrix.grid, [&](std::size_t group, std::span<const float> segment) {
      const CodeGrid found = find_grid(finder, segment, matrix.grid);
      job.scales[group * panel_outputs + o] = found.scale;
      if (job.zeros != nullptr) job.zeros[group * panel_outputs + o] = static_cast<std::uint8_t>(found.zero);
    });
  }
  for (std::size_t g = 0; g < panel.layout->groups; ++g) {
    for (std::size_t o = panel.count; o < panel_outputs; ++o) {
      job.scales[g * panel_outputs + o] = 0;
      if (job.zeros != nullptr) job.zeros[g * panel_outputs + o] = 0;
    }
  }
  return true;
}

/// Chooses scales and zero points of a panel and packs it but for its headers.
template <Element T, RangeFinder Finder>
[[nodiscard]] bool fit_and_pack(const FloatMatrix<T>& matrix, const Panel& panel, const Finder& finder) noexcept {
  if constexpr (std::same_as<Finder, MinMaxRange>) {
    if (matrix.kernel != nullptr) return matrix.kernel(matrix.job(panel, Scales::cover));
  }
  return fit_panel(matrix, panel, finder) && pack_given(matrix, panel);
}

/// Why a panel failed: the first weight that is not finite, else memory.
template <Element T>
[[nodiscard]] Error float_failure(const MatrixView<const T>& weights) noexcept {
  for (std::size_t n = 0; n < weights.rows; ++n) {
    for (std::size_t k = 0; k < weights.columns; ++k) {
      if (is_finite(to_float(row(weights, n)[k]))) continue;
      return Error{Errc::not_finite, "[cbq] pack_float: a weight is NaN or beyond the range of float",
                   ErrorText("row ") << n << ", column " << k};
    }
  }
  return Error{Errc::out_of_memory, "[cbq] pack_float: no memory for a panel of codes"};
}

/// Writes the headers of a panel that lies in the cache as if no larger scale came than those so far. That is true for
/// nearly all panels, and the second pass need not touch them.
template <Element T>
void write_early(const FloatMatrix<T>& matrix, const Panel& panel, float largest) noexcept {
  const std::size_t at = panel.first * panel.layout->groups;
  const std::size_t numbers = panel.layout->groups * panel_outputs;
  const std::span<const float> scales = matrix.scales.subspan(at, numbers);
  float& written = matrix.written[panel.first / panel_outputs];
  written = 0;
  if (!are_stored_exactly_below(scales, largest)) return;
  written = scale_multiplier(__builtin_bit_cast(std::uint32_t, largest));
  write_headers(panel, scales, matrix.zeros.empty() ? matrix.zeros : matrix.zeros.subspan(at, numbers), 1.0f / written);
}

/// The second pass: headers, and the codes of panels whose scales storing changed.
template <Element T, Executor E>
[[nodiscard]] Result<PackedMatrix> finish_float(const FloatMatrix<T>& matrix, const PackedLayout& layout,
                                                std::span<std::byte> memory, float largest,
                                                const E& executor) noexcept {
  const float stored = largest >= smallest_scale ? largest : layout.groups != 0 && layout.outputs != 0 ? 1.0f : 0.0f;
  const float multiplier = scale_multiplier(__builtin_bit_cast(std::uint32_t, stored));
  const std::size_t numbers = layout.groups * panel_outputs;
  const bool packed = for_each_panel(layout, matrix.grid, memory.data(), executor, [&](const Panel& panel) {
    if (matrix.written[panel.first / panel_outputs] == multiplier) return true;
    const std::size_t at = panel.first * layout.groups;
    const std::span<float> scales = matrix.scales.subspan(at, numbers);
    const bool changed = store_exactly(scales, panel, largest);
    if (changed && !pack_given(matrix, panel)) return false;
    write_headers(panel, scales, matrix.zeros.empty() ? matrix.zeros : matrix.zeros.subspan(at, numbers),
                  1.0f / multiplier);
    return true;
  });
  if (!packed) return float_failure(matrix.weights);
  return PackedMatrix{memory.data(), layout, multiplier};
}

/// Checks what pack_float() is given and says what it packs into.
template <Element T>
[[nodiscard]] Result<PackedLayout> check_float(const MatrixView<const T>& weights, const Grid& grid,
                                               std::size_t bytes) noexcept {
  const Result<PackedLayout> layout = layout_for(grid, weights.rows, weights.columns, bytes);
  if (layout && weights.stride < weights.columns) {
    return Error{Errc::bad_shape, "[cbq] pack_float: the stride is shorter than a row", "weights", weights.stride,
                 weights.columns};
  }
  return layout;
}

/// pack_float() of a matrix that brings memory for its scales.
template <Element T, RangeFinder Finder, Executor E>
[[nodiscard]] Result<PackedMatrix> pack_float_panels(const FloatMatrix<T>& matrix, const PackedLayout& layout,
                                                     std::span<std::byte> memory, const Finder& finder,
                                                     const E& executor) noexcept {
  std::uint32_t largest = 0;
  const bool packed = for_each_panel(layout, matrix.grid, memory.data(), executor, [&](const Panel& panel) {
    if (!fit_and_pack(matrix, panel, finder)) return false;
    raise(largest, largest_bits(matrix.scales.data() + panel.first * layout.groups, layout.groups * panel_outputs));
    write_early(matrix, panel, __builtin_bit_cast(float, __atomic_load_n(&largest, __ATOMIC_RELAXED)));
    return true;
  });
  if (!packed) return float_failure(matrix.weights);
  if (largest >= 0x7f800000u) {
    return Error{Errc::not_finite, "[cbq] pack_float: the range finder gave a scale that is not finite"};
  }
  return finish_float(matrix, layout, memory, __builtin_bit_cast(float, largest), executor);
}

}  // namespace packing

/// Quantizes `weights` (outputs x inputs) to the nearest codes of S.weight with the ranges of `finder` and packs them
/// into `memory` of at least packed_size<S>() bytes. Errors: bad_shape, not_finite (naming row and column),
/// out_of_memory (the scales as float, and where there is no kernel a panel of codes per task). The bytes depend
/// neither on the executor nor on the instruction set: `cap` limits the kernels for floats; codes are packed with AVX2
/// where the CPU has it, to the same bytes.
template <Scheme S, Element T, RangeFinder Finder = MseRange, Executor E = SerialExecutor>
[[nodiscard]] Result<PackedWeightsView<S>> pack_float(const MatrixView<const T>& weights, std::span<std::byte> memory,
                                                      const Finder& finder = {}, const E& executor = {},
                                                      Isa cap = detect()) noexcept {
  constexpr Grid grid = checked<S>().weight;
  const Result<PackedLayout> layout = packing::check_float(weights, grid, memory.size());
  if (!layout) return layout.error();
  const Result<std::size_t> count = checked_product(layout->panels, layout->groups, panel_outputs);
  if (!count) return count.error();
  auto scales = AlignedBuffer<float>::allocate(*count);
  if (!scales) return scales.error();
  auto zeros = AlignedBuffer<std::uint8_t>::allocate(grid.zero == Zero::affine ? *count : 0);
  if (!zeros) return zeros.error();
  auto written = AlignedBuffer<float>::allocate(layout->panels);
  if (!written) return written.error();
  const packing::FloatMatrix<T> matrix{weights,
                                       grid,
                                       {scales->data(), scales->size()},
                                       {zeros->data(), zeros->size()},
                                       {written->data(), written->size()},
                                       packing::float_panel_kernel<grid.zero, T>(capped(cap))};
  const Result<PackedMatrix> packed = packing::pack_float_panels(matrix, *layout, memory, finder, executor);
  if (!packed) return packed.error();
  return PackedWeightsView<S>{*packed};
}

}  // namespace CBQ_ABI
}  // namespace cbq
