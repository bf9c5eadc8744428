// SPDX-License-Identifier: Apache-2.0
#pragma once

// Causal attention of grouped queries over a float cache: o = softmax(scale q K^T) V. Keys are visited in blocks of 256
// positions with a running maximum, so no matrix of scores ever exists; products run on the dispatched float tiles,
// straight from the cache. Work is cut into (head, 16 queries); a single query takes the heads that share keys and
// values together. Blocks begin at fixed positions, so a row's result does not depend on how many rows came before it
// in the same call. Cost: 4 * width multiply-adds per query, head and visible position pair; 40 KiB of stack per task.

#include <cstddef>

#include <cbq/core/context.hpp>
#include <cbq/gemm/float_dispatch.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/softmax.hpp>

namespace cbq {

/// Heads of an attention layer: `kv_heads` divides `heads`; query head h reads key/value head h / (heads / kv_heads).
struct AttentionShape {
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t width = 0;  ///< elements per head
};

inline namespace CBQ_ABI {

/// Whether cbq can compute such an attention. Errc::bad_shape, Errc::unsupported (heads of more than 256 elements).
[[nodiscard]] constexpr Status check_attention(const AttentionShape& shape) noexcept {
  if (shape.heads == 0 || shape.kv_heads == 0 || shape.width == 0 || shape.heads % shape.kv_heads != 0) {
    return Error{Errc::bad_shape, "the number of key/value heads must divide the number of heads", "heads",
                 ErrorText(shape.heads) << " over " << shape.kv_heads << " of " << shape.width};
  }
  if (shape.width > 256) {
    return Error{Errc::unsupported, "attention heads have at most 256 elements", "head width", shape.width, 256};
  }
  return {};
}

namespace attention {

inline constexpr std::size_t block_positions = 256;
inline constexpr std::size_t block_rows = 16;
inline constexpr std::size_t most_width = 256;

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

/// Some queries that read the same key/value head.
struct Job {
  const float* queries = nullptr;
  std::size_t query_stride = 0;
  float* out = nullptr;
  std::size_t out_stride = 0;
  std::size_t rows = 0;
  std::size_t kv_head = 0;
  std::size_t first_visible = 0;  ///< positions that row 0 sees
  std::size_t visible_step = 0;   ///< how many more each next row sees
  float scale = 1.0f;
  Isa isa = Isa::scalar;
};

inline void run(const Job& job, const FloatKvView& cache, const Tiles& tiles) noexcept {
  alignas(64) float scores[block_rows * block_positions];
  alignas(64) float values[block_rows * most_width];
  float maxima[block_rows];
  float sums[block_rows];
  std::size_t valid[block_rows];
  const std::size_t value_width = divide_up(cache.width, float_panel_width) * float_panel_width;
  for (std::size_t r = 0; r < job.rows; ++r) {
    maxima[r] = -__builtin_inff();
    sums[r] = 0.0f;
  }
  __builtin_memset(values, 0, job.rows * value_width * sizeof(float));
  const std::size_t visible = job.first_visible + (job.rows - 1) * job.visible_step;
  for (std::size_t first = 0; first < visible; first += block_positions) {
    const std::size_t count = visible - first < block_positions ? visible - first : block_positions;
    const std::size_t panels = divide_up(count, float_panel_width);
    multiply(tiles, {.a = job.queries,
                     .a_stride = job.query_stride,
                     .rows = job.rows,
                     .inputs = cache.width,
                     .panels = cache.keys + (job.kv_head * cache.capacity + first) * cache.width,
                     .panel_step = cache.width * float_panel_width,
                     .panel_count = panels,
                     .c = scores,
                     .c_stride = block_positions});
    for (std::size_t r = 0; r < job.rows; ++r) {
      const std::size_t seen = job.first_visible + r * job.visible_step;
      valid[r] = seen <= first ? 0 : seen - first < count ? seen - first : count;
    }
    softmax_block({.scores = scores,
                   .stride = block_positions,
                   .rows = job.rows,
                   .columns = panels * float_panel_width,
                   .valid = valid,
                   .scale = job.scale,
                   .maxima = maxima,
                   .sums = sums,
                   .values = values,
                   .value_stride = value_width,
                   .value_columns = value_width},
                  job.isa);
    multiply(tiles, {.a = scores,
                     .a_stride = block_positions,
                     .rows = job.rows,
                     .inputs = count,
                     .panels = cache.values + job.kv_head * value_width * cache.capacity + first * float_panel_width,
                     .panel_step = cache.capacity * float_panel_width,
                     .panel_count = value_width / float_panel_width,
                     .c = values,
                     .c_stride = value_width,
                     .initial = values});
  }
  for (std::size_t r = 0; r < job.rows; ++r) {
    const float inverse = 1.0f / sums[r];
    for (std::size_t i = 0; i < cache.width; ++i)
      job.out[r * job.out_stride + i] = values[r * value_width + i] * inverse;
  }
}

}  // namespace attention

/// out [tokens x heads * width] = attention of the queries q of the same shape, which belong to the last `tokens`
/// positions of the cache: query t sees positions 0 .. size - tokens + t. `scale` multiplies scores, usually 1 /
/// sqrt(width); > 0. Allocates nothing. The same bits for any executor. Errc::bad_shape, Errc::unsupported.
template <Executor E>
[[nodiscard]] Status attend(const MatrixView<const float>& q, const FloatKvCache& cache, float scale,
                            const MatrixView<float>& out, ExecutionContext<E>& context) noexcept {
  const FloatKvView view = cache.view();
  const AttentionShape shape{view.width == 0 ? 0 : q.columns / view.width, view.heads, view.width};
  if (const Status valid = check_attention(shape); !valid) return valid;
  if (q.columns % view.width != 0 || out.columns != q.columns || out.rows != q.rows || q.rows > view.size) {
    return Error{Errc::bad_shape, "attention needs whole heads, a result of the shape of the queries, and cached keys",
                 "q", ErrorText(q.rows) << " x " << q.columns, ErrorText(out.rows) << " x " << out.columns};
  }
  attention::Tiles tiles{float_tall_kernels<float>(context.isa()), float_narrow_kernels<float>(context.isa())};
  const std::size_t group = shape.heads / shape.kv_heads;
  const std::size_t past = view.size - q.rows;
  attention::Job common{.query_stride = q.stride, .out_stride = out.stride, .scale = scale, .isa = context.isa()};
  if (q.rows == 1 && group <= attention::block_rows) {
    const auto one_query = [&](std::size_t kv_head) {
      attention::Job job = common;
      job.queries = q.data + kv_head * group * view.width;
      job.out = out.data + kv_head * group * view.width;
      job.query_stride = job.out_stride = view.width;
      job.rows = group;
      job.kv_head = kv_head;
      job.first_visible = view.size;
      attention::run(job, view, tiles);
    };
    context.executor().for_each_index(shape.kv_heads, one_query);
    return {};
  }
  // Late queries see the most. First and last blocks alternate, so that every contiguous share of the tasks is equal
  // work.
  const std::size_t blocks = divide_up(q.rows, attention::block_rows);
  context.executor().for_each_index(blocks * shape.heads, [&](std::size_t task) {
    const std::size_t head = task % shape.heads;
    const std::size_t turn = task / shape.heads;
    const std::size_t first = (turn % 2 == 0 ? turn / 2 : blocks - 1 - turn / 2) * attention::block_rows;
    attention::Job job = common;
    job.queries = row(q, first) + head * view.width;
    job.out = row(out, first) + head * view.width;
    job.rows = q.rows - first < attention::block_rows ? q.rows - first : attention::block_rows;
    job.kv_head = head / group;
    job.first_visible = past + first + 1;
    job.visible_step = 1;
    attention::run(job, view, tiles);
  });
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
