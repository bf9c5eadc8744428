// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T with bfloat16 activations and packed weights (schemes w<bits>a16), for hosts that keep their stream in
// bfloat16. Nothing is rounded to bfloat16 here; floats go through <cbq/gemm/weight_only_matmul.hpp>.
//
//   8 tokens and more, AVX512-BF16, no AMX     products of bfloat16, two per lane: panels of 256 inputs are decoded to
//                                              code - zero, which is exact in bfloat16, once per 128 tokens, and the
//                                              sum over a group is multiplied by its scale: twice the rate of floats
//   all others                                 what the overload for floats does with the same values, to the same bits
//                                              (but with up to 4 tokens of more than 16,384 inputs on Arm, for which
//                                              panels are decoded)
//
// So results of CPUs with and without these products agree within a bound and not bit for bit. Products of two bfloat16
// are exact in float; each addition rounds once, first of at most n = min(group, 256) products, then of the S <= groups
// + K / 256 + 1 sums. With u = 2^-24,
//
//   |error| <= (n + S + 1) u * sum of |x w| + 2^-118 K * largest |scale|
//
// The last term is what vdpbf16ps flushes whatever MXCSR says: a denormal activation counts as zero (2^-126 * 255 each
// at most), and so does a sum below 2^-126. Sums are scaled afterwards: activations * 255 of one group must add up to
// less than 2^128. NaN and infinity spread as in products of floats. Allocates nothing; a task takes up to 57 KiB of
// stack, fixed point as much as the overload for floats, and up to 4 tokens on Arm 64 KiB of the caller's. Results are
// the same bits for any executor.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/float_driver.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace driver {

/// Up to so many tokens fixed point is as fast as products of bfloat16, which decode to memory first.
inline constexpr std::size_t few_bfloat16_rows = 7;

/// Packed weights and every kernel that may multiply them with bfloat16.
struct Bfloat16Weights {
  DecodedPanels panels = {};
  WeightOnlyKernels few = {};
  Bfloat16Kernels products = {};
  FloatTallKernels tall = {};
  FloatNarrowKernels<float> narrow = {};
  Bfloat16Decoder decode_row = nullptr;
  Isa isa = Isa::scalar;
};

/// `count` values as floats.
inline void to_floats(Bfloat16Decoder decode, const bfloat16* from, std::size_t count, float* to) noexcept {
  const std::size_t whole = count / 16 * 16;
  decode(from, whole, to);
  for (std::size_t i = whole; i < count; ++i) to[i] = to_float(from[i]);
}

/// Tokens that convert_tokens() takes.
struct Bfloat16Tokens : MatrixView<const bfloat16> {
  Bfloat16Decoder decode = nullptr;
};

/// Tokens [first, first + count) of x in fixed point; false where a value is not finite.
[[nodiscard]] inline bool convert_tokens(const WeightOnlyKernels& kernels, const Bfloat16Tokens& x, std::size_t first,
                                         std::size_t count, FixedBlock* blocks) noexcept {
  constexpr std::size_t piece = 16 * block_inputs;
  float values[piece];
  bool finite = true;
  for (std::size_t r = first; r < first + count; ++r) {
    for (std::size_t input = 0; input < x.columns; input += piece) {
      const std::size_t inputs = x.columns - input < piece ? x.columns - input : piece;
      to_floats(x.decode, row(x, r) + input, inputs, values);
      finite = kernels.to_fixed_point(
                   {.values = values, .inputs = inputs, .zero_factor = kernels.zero_factor, .blocks = blocks}) &&
               finite;
      blocks += divide_up(inputs, block_inputs);
    }
  }
  return finite;
}

/// Adds a block of rows times one or two panels, decoded to pairs of bfloat16, to `sums` [rows][32].
[[gnu::noinline]] inline void add_pairs(const Bfloat16Weights& weights, const MatrixView<const bfloat16>& x,
                                        const Patch& strip, float* sums) noexcept {
  constexpr std::size_t depth = float_driver::decoded_inputs;
  alignas(64) std::uint32_t pairs[2][depth / 2 * panel_outputs];
  alignas(64) float scales[2][depth / block_inputs * panel_outputs];
  const PackedMatrix& packed = weights.panels.weights;
  const std::size_t panels = divide_up(strip.columns, panel_outputs);
  const std::size_t tiles = divide_up(strip.rows, bfloat16_tile_rows);
  PairDecodeJob job;
  job.header_bytes = packed.layout.header_bytes;
  job.group_bytes = packed.layout.group_bytes;
  job.blocks_per_group = packed.layout.blocks_per_group;
  job.multiplier = packed.multiplier;
  Bfloat16Tile tile{.x_stride = x.stride, .pairs = {pairs[0], pairs[1]}, .scales = {scales[0], scales[1]}};
  tile.group_inputs = job.blocks_per_group * block_inputs;
  for (std::size_t first = 0; first < x.columns; first += depth) {
    tile.inputs = x.columns - first < depth ? x.columns - first : depth;
    job.first_block = first / block_inputs;
    job.blocks = divide_up(tile.inputs, block_inputs);
    tile.first_inputs = tile.group_inputs - job.first_block % job.blocks_per_group * block_inputs;
    for (std::size_t p = 0; p < panels; ++p) {
      job.panel = packed.data + (strip.column / panel_outputs + p) * packed.layout.panel_bytes;
      job.pairs = pairs[p];
      job.scales = scales[p];
      weights.products.decode(job);
    }
    for (std::size_t i = 0; i < tiles; ++i) {
      const std::size_t begin = strip.rows * i / tiles;
      const std::size_t end = strip.rows * (i + 1) / tiles;
      tile.x = row(x, strip.row + begin) + first;
      tile.sums = sums + begin * float_driver::strip_width;
      weights.products.tile[panels - 1][end - begin](tile);
    }
  }
}

/// Adds a block of rows times one or two panels, both as floats, to `sums` [rows][32].
[[gnu::noinline]] inline void add_floats(const Bfloat16Weights& weights, const MatrixView<const bfloat16>& x,
                                         const Patch& strip, float* sums) noexcept {
  constexpr std::size_t depth = float_driver::decoded_inputs;
  alignas(64) float panels[2][depth * panel_outputs];
  alignas(64) float values[float_tile_most_rows][depth];
  // As float_matmul() chooses: by all rows.
  const bool narrow = x.rows <= float_narrow_rows;
  const std::size_t tile_panels = narrow ? 1 : weights.tall.panels;
  const std::size_t tiles = narrow ? 1 : divide_up(strip.rows, weights.tall.rows);
  const std::size_t count = divide_up(strip.columns, panel_outputs);
  FloatTile<float> tile{.a = values[0], .a_stride = depth, .panels = {nullptr, panels[1]}};
  tile.panel_stride = panel_outputs;
  tile.initial_stride = tile.c_stride = float_driver::strip_width;
  for (std::size_t first = 0; first < x.columns; first += depth) {
    tile.inputs = x.columns - first < depth ? x.columns - first : depth;
    for (std::size_t p = 0; p < count; ++p) {
      const PanelBlock block{.panel = strip.column / panel_outputs + p, .first = first, .count = tile.inputs};
      (void)float_panel(weights.panels, block, panels[p], weights.isa);
    }
    for (std::size_t i = 0; i < tiles; ++i) {
      const std::size_t begin = strip.rows * i / tiles;
      const std::size_t rows = strip.rows * (i + 1) / tiles - begin;
      for (std::size_t r = 0; r < rows; ++r) {
        to_floats(weights.decode_row, row(x, strip.row + begin + r) + first, tile.inputs, values[r]);
      }
      for (std::size_t p = 0; p < count; p += tile_panels) {
        const std::size_t width = count - p < tile_panels ? 1 : tile_panels;
        tile.panels[0] = panels[p];
        tile.initial = tile.c = sums + begin * float_driver::strip_width + p * panel_outputs;
        (narrow ? weights.narrow.tile[rows] : weights.tall.tile[width - 1][rows])(tile);
      }
    }
  }
}

/// All tokens (at most 4) as floats on the stack, as many at a time as fit, with codes that are decoded in registers.
/// False, and nothing written, where one token does not fit.
template <class Post, OutputElement T, class E>
[[nodiscard, gnu::noinline]] bool multiply_few_as_floats(const Bfloat16Weights& weights,
                                                         const MatrixView<const bfloat16>& x, OutputRange range,
                                                         const Output<Post, T>& result, const E& executor) {
  constexpr std::size_t most_values = 16384;
  if (x.columns > most_values) return false;
  float values[most_values];
  const std::size_t fitting = x.columns == 0 ? x.rows : most_values / x.columns;
  const std::size_t step = fitting < x.rows ? fitting : x.rows;
  for (std::size_t first = 0; first < x.rows; first += step) {
    const std::size_t count = x.rows - first < step ? x.rows - first : step;
    for (std::size_t r = 0; r < count; ++r) {
      to_floats(weights.decode_row, row(x, first + r), x.columns, values + r * x.columns);
    }
    Output<Post, T> part = result;
    part.y = rows(result.y, first, count);
    part.epilogue_row += first;
    const auto floats = matrix_view<const float>(values, count, x.columns);
    for_each_strip(executor, range, [&](OutputRange strip) {
      multiply_few(weights.few.floats, floats, weights.panels.weights, strip, part);
    });
  }
  return true;
}

/// Any number of tokens, a block of 128 rows and a strip of 32 outputs at a time.
template <class Post, OutputElement T, class E>
void multiply_blocks(const Bfloat16Weights& weights, const MatrixView<const bfloat16>& x, OutputRange range,
                     const Output<Post, T>& result, const E& executor) {
  const bool pairs = weights.products.decode != nullptr && x.rows > few_bfloat16_rows;
  const float_driver::Cut cut = float_driver::cut_work(
      {.rows = x.rows, .inputs = x.columns, .range = range, .strip_panels = float_tile_most_panels});
  executor.for_each_index(cut.row_blocks * cut.chunks, [&](std::size_t task) {
    float_driver::for_each_strip(cut, task, [&](const Patch& strip) {
      alignas(64) float sums[float_driver::block_rows * float_driver::strip_width];
      __builtin_memset(sums, 0, strip.rows * float_driver::strip_width * sizeof(float));
      if (pairs) {
        add_pairs(weights, x, strip, sums);
      } else {
        add_floats(weights, x, strip, sums);
      }
      store_patch(sums, float_driver::strip_width, result, strip);
    });
  });
}

/// y = x W^T once nothing depends on the scheme any more.
template <class Post, class E, OutputElement T>
[[nodiscard]] Status multiply_bfloat16(const Bfloat16Weights& weights, const MatrixView<const bfloat16>& x,
                                       OutputRange wanted, const Output<Post, T>& result, const E& executor) {
  const PackedMatrix& packed = weights.panels.weights;
  if (const Status fit = check_operands(x, packed); !fit) return fit;
  if (const Status fits = check_result(result.y, x.rows, packed.layout.outputs); !fits) return fits;
  const Result<OutputRange> range = resolve(wanted, packed.layout.outputs);
  if (!range) return range.error();
  if (const Status fits = check_epilogue(result.epilogue, result.y.rows, range->first + range->count); !fits) {
    return fits;
  }
  if (x.rows == 0) return {};
  const std::size_t most_fixed = weights.products.decode == nullptr ? fixed_point_rows : few_bfloat16_rows;
  if (weights.few.fixed_point != nullptr && x.rows <= most_fixed) {
    const Bfloat16Tokens tokens{x, weights.decode_row};
    if (multiply_in_fixed_point(weights.few, tokens, packed, *range, result, executor)) return {};
  } else if (weights.few.floats != nullptr && x.rows <= weight_only_rows) {
    if (multiply_few_as_floats(weights, x, *range, result, executor)) return {};
  }
  multiply_blocks(weights, x, *range, result, executor);
  return {};
}

}  // namespace driver

/// Outputs `range` of y = x W^T followed by the epilogue, for bfloat16 activations; otherwise as the overload for
/// floats.
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
  requires(S.activation.bits == 16)
[[nodiscard]] Status matmul_outputs(const MatrixView<const bfloat16>& x, const PackedWeightsView<S>& weights,
                                    OutputRange range, const MatrixView<T>& y, const Post& epilogue = {},
                                    const E& executor = {}, Isa cap = detect()) {
  const Isa isa = capped(cap);
  const driver::Bfloat16Weights work{.panels = decoded_panels<Kernels>(weights, isa),
                                     .few = Kernels::template weight_only_tile<S.weight.bits, S.weight.zero>(isa),
                                     .products = Kernels::template bfloat16_tile<S.weight.bits, S.weight.zero>(isa),
                                     .tall = float_tall_kernels<float>(isa),
                                     .narrow = float_narrow_kernels<float>(isa),
                                     .decode_row = bfloat16_decoder<bfloat16>(isa),
                                     .isa = isa};
  return driver::multiply_bfloat16(work, x, range, driver::output(y, epilogue, isa), executor);
}

/// y = x W^T followed by the epilogue, for bfloat16 activations. x: M x K; y: M x N float, half, bfloat16 or int8,
/// fully written. `cap` lowers the instruction set; products of bfloat16 need avx512_vnni and a CPU that has them.
/// Errors: bad_shape, bad_argument (null memory).
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
  requires(S.activation.bits == 16)
[[nodiscard]] Status matmul(const MatrixView<const bfloat16>& x, const PackedWeightsView<S>& weights,
                            const MatrixView<T>& y, const Post& epilogue = {}, const E& executor = {},
                            Isa cap = detect()) {
  return matmul_outputs<S, Post, Kernels, E, T>(x, weights, OutputRange{}, y, epilogue, executor, cap);
}

}  // namespace CBQ_ABI
}  // namespace cbq
