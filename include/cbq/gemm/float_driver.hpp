// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loops of the float matmul around its tiles: how work is cut, how K blocks are chained, how tiles meet the edges
// of C and the epilogue. Not called by hosts; <cbq/gemm/float_matmul.hpp> is.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <cbq/gemm/float_panel_sources.hpp>
#include <cbq/gemm/output.hpp>

namespace cbq {

/// Whether a product replaces C or is added to it.
enum class Accumulate : unsigned char { overwrite, add };

inline namespace CBQ_ABI {
namespace float_driver {

inline constexpr std::size_t width = float_panel_width;
inline constexpr std::size_t strip_width = float_tile_most_panels * width;
inline constexpr std::size_t block_rows = 128;  ///< rows that share one decoded strip: decoding costs 1/128th per row
inline constexpr std::size_t decoded_inputs = 256;    ///< a decoded strip is 32 KiB of stack
inline constexpr std::size_t in_place_inputs = 2048;  ///< a strip of packed floats is 256 KiB of L2

struct How {
  Accumulate accumulate = Accumulate::overwrite;
  Isa isa = Isa::scalar;
};

template <class B>
struct PanelTraits {
  using Stored = float;
  static constexpr bool in_place = false;  ///< float_panel() never touches its scratch
};
template <class T>
struct PanelTraits<FloatPanelsView<T>> {
  using Stored = T;
  static constexpr bool in_place = std::is_same_v<T, float>;
};

/// One call, shared by all its tasks.
template <PanelSource B, Epilogue E, OutputElement T>
struct Multiplication {
  using Stored = typename PanelTraits<B>::Stored;

  Multiplication(const MatrixView<const float>& a_view, const B& b_source, const MatrixView<T>& c_view, const E& post,
                 How with) noexcept
      : a(a_view), b(b_source), c(c_view), how(with), output(driver::output(c_view, post, with.isa)) {}

  MatrixView<const float> a;
  const B& b;
  MatrixView<T> c;
  How how;
  driver::Output<E, T> output;
  FloatTallKernels tall = float_tall_kernels<float>(how.isa);
  FloatNarrowKernels<float> narrow = float_narrow_kernels<float>(how.isa);
  FloatNarrowKernels<Stored> narrow_stored = float_narrow_kernels<Stored>(how.isa);
};

/// Whether one panel at a time is read for all rows.
template <class B, class E, class T>
[[nodiscard]] bool is_narrow(const Multiplication<B, E, T>& work) noexcept {
  const std::size_t rows = work.a.rows;
  return rows <= float_narrow_rows || (rows <= float_tile_most_rows && work.narrow_stored.tile[rows] != nullptr);
}

/// Tasks are (column chunk, row block), row blocks innermost so that neighbouring tasks share weights.
struct Cut {
  std::size_t rows = 0;
  std::size_t row_blocks = 1;
  std::size_t chunks = 1;
  std::size_t strips = 0;
  std::size_t strip_panels = 1;
  std::size_t first_panel = 0;
  std::size_t end_column = 0;
};

/// What is cut: rows x inputs times the outputs of `range`, strips of `strip_panels` panels at a time.
struct CutShape {
  std::size_t rows = 0;
  std::size_t inputs = 0;
  OutputRange range = {};  ///< resolved
  std::size_t strip_panels = 1;
};

[[nodiscard]] constexpr Cut cut_work(const CutShape& shape) noexcept {
  // Multiply-adds per task: 10 to 40 microseconds, well above the cost of handing out a task. Reading weights for few
  // rows costs about as much as multiplying them with 8.
  constexpr std::size_t task = std::size_t{1} << 19;
  constexpr std::size_t most_tasks = 512;
  Cut cut;
  cut.rows = shape.rows;
  cut.row_blocks = divide_up(shape.rows, block_rows);
  cut.strip_panels = shape.strip_panels;
  cut.strips = divide_up(divide_up(shape.range.count, width), cut.strip_panels);
  cut.first_panel = shape.range.first / width;
  cut.end_column = shape.range.first + shape.range.count;
  const std::size_t block = divide_up(shape.rows, cut.row_blocks);
  const std::size_t strip_cost = (block < 8 ? 8 : block) * cut.strip_panels * width * (shape.inputs + 1);
  const std::size_t strips_per_task = divide_up(task, strip_cost);
  // A power of two, so that static schedules on 2, 4, 8 threads come out even.
  const std::size_t chunks = std::bit_ceil(divide_up(cut.strips, strips_per_task));
  const std::size_t most_chunks = cut.strips < most_tasks ? cut.strips : most_tasks;
  cut.chunks = chunks < most_chunks ? chunks : most_chunks;
  return cut;
}

using driver::Patch;  // a tile's place in C; `columns` may be fewer than the tile's panels have

/// Calls run(patch) for the strips of one task.
template <class Run>
void for_each_strip(const Cut& cut, std::size_t task, const Run& run) {
  const std::size_t chunk = task / cut.row_blocks;
  const std::size_t block = task % cut.row_blocks;
  const std::size_t first_row = cut.rows * block / cut.row_blocks;
  const std::size_t rows = cut.rows * (block + 1) / cut.row_blocks - first_row;
  for (std::size_t s = cut.strips * chunk / cut.chunks; s < cut.strips * (chunk + 1) / cut.chunks; ++s) {
    const std::size_t column = (cut.first_panel + s * cut.strip_panels) * width;
    const std::size_t left = cut.end_column - column;
    const std::size_t columns = left < cut.strip_panels * width ? left : cut.strip_panels * width;
    run(Patch{first_row, column, rows, columns});
  }
}

/// Sums of a patch between K blocks; `from` or `to` is null in the first or last block.
struct Partial {
  const float* from = nullptr;
  float* to = nullptr;
};

/// A patch of C as floats, zero beyond its columns, where products are added to it through the stack.
template <class B, class E, class T>
void load_patch(const Multiplication<B, E, T>& work, const Patch& patch, float* staging) noexcept {
  if constexpr (!std::is_same_v<T, std::int8_t>) {
    for (std::size_t r = 0; r < patch.rows; ++r) {
      const T* c = row(work.c, patch.row + r) + patch.column;
      for (std::size_t j = 0; j < strip_width; ++j) {
        staging[r * strip_width + j] = j < patch.columns ? to_float(c[j]) : 0.0f;
      }
    }
  }
}

/// Where whole panels of C can be read and written in place; null where C holds no floats.
template <class B, class E, class T>
[[nodiscard]] float* floats_of(const Multiplication<B, E, T>& work, const Patch& patch) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    if (patch.columns % width == 0) return row(work.c, patch.row) + patch.column;
  }
  return nullptr;
}

/// Runs one kernel on one patch: whole tiles without an epilogue go straight to C, others through the stack.
template <class B, class E, class T, class Stored>
void run_tile(const Multiplication<B, E, T>& work, FloatTileKernel<Stored> kernel, FloatTile<Stored> tile,
              const Patch& patch, const Partial& partial) noexcept {
  float staging[float_tile_most_rows * strip_width];
  float* c = floats_of(work, patch);
  if (partial.from != nullptr) {
    tile.initial = partial.from;
    tile.initial_stride = strip_width;
  } else if (work.how.accumulate == Accumulate::add && c != nullptr) {
    tile.initial = c;
    tile.initial_stride = work.c.stride;
  } else if (work.how.accumulate == Accumulate::add) {
    load_patch(work, patch, staging);
    tile.initial = staging;
    tile.initial_stride = strip_width;
  }
  const bool direct = c != nullptr && std::is_same_v<E, NoEpilogue>;
  tile.c = partial.to != nullptr ? partial.to : direct ? c : staging;
  tile.c_stride = tile.c == c ? work.c.stride : strip_width;
  kernel(tile);
  if (partial.to == nullptr && !direct) driver::store_patch(staging, strip_width, work.output, patch);
}

/// More than 4 rows: rows [first_row, end_row), at most block_rows, times the strip of `panels` panels from `panel`.
template <class B, class E, class T>
void run_tall_strip(const Multiplication<B, E, T>& work, const Patch& strip, std::size_t panels) noexcept {
  constexpr bool in_place = PanelTraits<B>::in_place;
  constexpr std::size_t depth = in_place ? in_place_inputs : decoded_inputs;
  alignas(64) float scratch[in_place ? 1 : strip_width * depth];
  alignas(64) float sums[block_rows * strip_width];
  const std::size_t inputs = work.a.columns;
  const std::size_t tiles = divide_up(strip.rows, work.tall.rows);
  std::size_t first = 0;
  do {
    const std::size_t count = inputs - first < depth ? inputs - first : depth;
    FloatTile<float> tile{.a_stride = work.a.stride, .panel_stride = width, .inputs = count};
    for (std::size_t p = 0; p < panels; ++p) {
      const PanelBlock block{.panel = strip.column / width + p, .first = first, .count = count};
      tile.panels[p] = float_panel(work.b, block, scratch + (in_place ? 0 : p * depth * width), work.how.isa);
    }
    for (std::size_t i = 0; i < tiles; ++i) {
      const std::size_t begin = strip.rows * i / tiles;
      const std::size_t end = strip.rows * (i + 1) / tiles;
      float* partial = sums + begin * strip_width;
      tile.a = row(work.a, strip.row + begin) + first;
      run_tile(work, work.tall.tile[panels - 1][end - begin], tile,
               {strip.row + begin, strip.column, end - begin, strip.columns},
               {first != 0 ? partial : nullptr, first + count < inputs ? partial : nullptr});
    }
    first += count;
  } while (first < inputs);
}

/// A panel that a narrow tile can read where it lies; a stride of zero says that it must be decoded.
template <class T>
struct NarrowPanel {
  const T* data = nullptr;
  std::size_t stride = 0;
};

template <class B, class E, class T>
[[nodiscard]] NarrowPanel<typename PanelTraits<B>::Stored> narrow_panel(const Multiplication<B, E, T>& work,
                                                                        std::size_t column) noexcept {
  if constexpr (std::is_same_v<B, RowMajorOperand>) {
    if (work.b.outputs - column >= width) return {work.b.data + column, work.b.stride};
  } else if constexpr (std::is_same_v<B, FloatPanelsView<typename PanelTraits<B>::Stored>>) {
    if (work.narrow_stored.tile[1] != nullptr) return {work.b.data + column * work.b.inputs, width};
  }
  return {};
}

/// Few rows (see is_narrow()) times one panel.
template <class B, class E, class T>
void run_narrow_panel(const Multiplication<B, E, T>& work, const Patch& patch) noexcept {
  const std::size_t inputs = work.a.columns;
  if (const auto panel = narrow_panel(work, patch.column); panel.stride != 0) {
    using Stored = typename PanelTraits<B>::Stored;
    const FloatTile<Stored> tile{.a = work.a.data,
                                 .a_stride = work.a.stride,
                                 .panels = {panel.data, nullptr},
                                 .panel_stride = panel.stride,
                                 .inputs = inputs};
    run_tile(work, work.narrow_stored.tile[patch.rows], tile, patch, {});
    return;
  }
  alignas(64) float scratch[decoded_inputs * width];
  float sums[float_narrow_rows * strip_width];
  std::size_t first = 0;
  do {
    const std::size_t count = inputs - first < decoded_inputs ? inputs - first : decoded_inputs;
    const PanelBlock block{.panel = patch.column / width, .first = first, .count = count};
    const float* panel = float_panel(work.b, block, scratch, work.how.isa);
    const FloatTile<float> tile{.a = work.a.data + first,
                                .a_stride = work.a.stride,
                                .panels = {panel, nullptr},
                                .panel_stride = width,
                                .inputs = count};
    run_tile(work, work.narrow.tile[patch.rows], tile, patch,
             {first != 0 ? sums : nullptr, first + count < inputs ? sums : nullptr});
    first += count;
  } while (first < inputs);
}

template <class B, class E, class T>
void run_task(const Multiplication<B, E, T>& work, const Cut& cut, std::size_t task) noexcept {
  for_each_strip(cut, task, [&](const Patch& patch) {
    if (is_narrow(work)) {
      run_narrow_panel(work, patch);
    } else {
      run_tall_strip(work, patch, divide_up(patch.columns, width));
    }
  });
}

/// Rows [16 * group, 16 * group + 16) of `to` [M x K] from the columns of `from` [K x M].
inline void transpose_rows(const MatrixView<const float>& from, const MatrixView<float>& to, std::size_t group,
                           Isa isa) noexcept {
  const std::size_t first = group * width;
  const std::size_t filled = to.rows - first < width ? to.rows - first : width;
  const std::size_t blocks = filled == width ? to.columns / width : 0;
  const FloatTransposeKernel transpose = float_transpose_kernel(isa);
  for (std::size_t i = 0; i < blocks; ++i) {
    transpose({.from = row(from, i * width) + first,
               .from_stride = from.stride,
               .to = row(to, first) + i * width,
               .to_stride = to.stride});
  }
  for (std::size_t k = blocks * width; k < to.columns; ++k) {
    for (std::size_t r = first; r < first + filled; ++r) row(to, r)[k] = row(from, k)[r];
  }
}

}  // namespace float_driver
}  // namespace CBQ_ABI
}  // namespace cbq
