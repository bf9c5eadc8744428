// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values in float panels as a source of attention (<cbq/kv/online_softmax.hpp>): products run on the
// dispatched float tiles, straight from the cache.

#include <cstddef>

#include <cbq/gemm/float_dispatch.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/online_softmax.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

/// c [rows x 16 * panels] (+)= a [rows x inputs] * panels, which lie `panel_step` floats apart.
struct PanelProduct {
  const float* a = nullptr;
  std::size_t a_stride = 0;
  std::size_t rows = 0;
  std::size_t inputs = 0;
  const float* panels = nullptr;
  std::size_t panel_step = 0;
  std::size_t panel_count = 0;
  float* c = nullptr;
  std::size_t c_stride = 0;
  const float* initial = nullptr;  ///< null, or c
};

struct Tiles {
  FloatTallKernels tall = {};
  FloatNarrowKernels<float> narrow = {};
};

inline void multiply(const Tiles& tiles, const PanelProduct& product) noexcept {
  const bool narrow = product.rows <= float_narrow_rows;
  const std::size_t height = narrow ? product.rows : tiles.tall.rows;
  const std::size_t pieces = divide_up(product.rows, height);
  const std::size_t wide = narrow ? 1 : tiles.tall.panels;
  FloatTile<float> tile;
  tile.a_stride = product.a_stride;
  tile.panel_stride = float_panel_width;
  tile.inputs = product.inputs;
  tile.initial_stride = tile.c_stride = product.c_stride;
  for (std::size_t p = 0; p < product.panel_count; p += wide) {
    const std::size_t count = product.panel_count - p < wide ? product.panel_count - p : wide;
    tile.panels[0] = product.panels + p * product.panel_step;
    tile.panels[1] = count == 2 ? tile.panels[0] + product.panel_step : nullptr;
    for (std::size_t piece = 0; piece < pieces; ++piece) {
      const std::size_t first = product.rows * piece / pieces;
      const std::size_t rows = product.rows * (piece + 1) / pieces - first;
      tile.a = product.a + first * product.a_stride;
      tile.c = product.c + first * product.c_stride + p * float_panel_width;
      tile.initial = product.initial != nullptr ? tile.c : nullptr;
      (narrow ? tiles.narrow.tile[rows] : tiles.tall.tile[count - 1][rows])(tile);
    }
  }
}

[[nodiscard]] inline Tiles float_tiles(Isa isa) noexcept {
  return {float_tall_kernels<float>(isa), float_narrow_kernels<float>(isa)};
}

/// One head of a float cache and the rows that read it.
struct FloatSource {
  static constexpr std::size_t unit = float_panel_width;

  const Tiles& tiles;
  const FloatKvView& cache;
  std::size_t head = 0;
  const float* queries = nullptr;
  std::size_t query_stride = 0;
  std::size_t rows = 0;

  void scores(const Positions& block, float* to) const noexcept {
    multiply(tiles, {.a = queries,
                     .a_stride = query_stride,
                     .rows = rows,
                     .inputs = cache.width,
                     .panels = cache.keys + (head * cache.capacity + block.first) * cache.width,
                     .panel_step = cache.width * float_panel_width,
                     .panel_count = divide_up(block.end - block.first, float_panel_width),
                     .c = to,
                     .c_stride = block_positions});
  }

  void add_values(const Positions& block, const float* weights, const RowSums& sums) const noexcept {
    multiply(tiles, {.a = weights,
                     .a_stride = block_positions,
                     .rows = rows,
                     .inputs = block.end - block.first,
                     .panels = cache.values + head * sums.stride * cache.capacity + block.first * float_panel_width,
                     .panel_step = cache.capacity * float_panel_width,
                     .panel_count = sums.stride / float_panel_width,
                     .c = sums.values,
                     .c_stride = sums.stride,
                     .initial = sums.values});
  }
};

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
