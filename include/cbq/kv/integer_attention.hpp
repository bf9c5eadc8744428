// SPDX-License-Identifier: Apache-2.0
#pragma once

// Causal attention of grouped queries over an INT8 cache with both products in integers: queries are quantized to INT8
// (static scale per head, or each its own), scores are INT8 products, softmax is float, and its weights are integers of
// 16 bits or powers of two (SoftmaxWeights::log2, 4 bits), which multiply INT8 values. Products run on the kernels of
// <cbq/kv/kv_tile.hpp> for 8-bit codes: a weight is two planes of bytes, each an 8-bit dot product. Instruction sets
// without vectors, where dot products have no kernel, shift instead (<cbq/kv/shifted_values.hpp>): the same bits. Cost:
// scores twice beyond 256 positions (<cbq/kv/rounded_softmax.hpp>), values twice; 54 KiB of stack per task.
//
//   s_j = sq sk sum_c q8[c] k8[j][c]   o[c] = sv / 2^15 sum_j w_j v8[j][c]   w of <cbq/kv/rounded_weights.hpp>
//
// All sums are exact: |sum w v| <= 127 (2^15 + n / 2) < 2^24, with log2 weights 127 * 2^15.5, so that floats hold them.

#include <cstddef>
#include <cstdint>

#include <cbq/core/context.hpp>
#include <cbq/kv/attention.hpp>
#include <cbq/kv/dispatch.hpp>
#include <cbq/kv/int8_kv_cache.hpp>
#include <cbq/kv/rounded_softmax.hpp>
#include <cbq/kv/shifted_values.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Positions up to which all sums are exact.
inline constexpr std::size_t int8_most_positions = 131072;
static_assert(127 * (32768 + int8_most_positions / 2) < (1 << 24), "[cbq] floats must hold integer sums");

namespace attention {

/// Queries of one tile in INT8.
struct Int8Queries {
  alignas(64) std::int8_t codes[block_rows * int8_most_width];  // [row][padded width]
  float scales[block_rows];
};

/// One head of an INT8 cache and the rows that read it. Scores carry a constant per row, 128 times the sum of its
/// codes, which softmax does not see: values of codes are stored without sign.
struct Int8Source {
  static constexpr std::size_t unit = kv_page_positions;

  const KvKernels& kernels;
  const Int8KvView& cache;
  std::size_t head = 0;
  const Int8Queries& queries;
  std::size_t rows = 0;
  SoftmaxWeights kind = SoftmaxWeights::exact;
  Isa isa = Isa::scalar;

  [[nodiscard]] const std::byte* page(std::size_t position) const noexcept {
    const std::size_t bytes = int8_key_bytes(cache.width) + int8_value_bytes(cache.width);
    return cache.pages + head * cache.head_bytes + position / kv_page_positions * bytes;
  }

  void scores(const Positions& block, float* to) const noexcept {
    float ones[block_rows];
    const float zeros[block_rows] = {};
    for (float& one : ones) one = 1.0f;
    KeyTile tile;
    tile.key_panel_bytes = int8_key_bytes(cache.width) / int8_key_panels;
    tile.groups = 1;
    tile.blocks_per_group = tile.key_blocks = divide_up(cache.width, block_inputs);
    tile.channel_keys = true;
    tile.rows = rows;
    tile.queries = queries.codes;
    tile.query_scales = ones;
    tile.query_sums = zeros;
    tile.score_stride = block_positions;
    for (std::size_t p = block.first; p < block.end; p += kv_page_positions) {
      tile.keys = page(p);
      tile.panels = divide_up(block.end - p < kv_page_positions ? block.end - p : kv_page_positions, panel_outputs);
      tile.scores = to + (p - block.first);
      kernels.keys(tile);
    }
  }

  void add_values(const Positions& block, const float* weights, const RowSums& sums) const noexcept {
    const bool shifts = kind != SoftmaxWeights::exact && isa == Isa::scalar;
    for (std::size_t p = block.first; p < block.end; p += kv_page_positions) {
      const std::byte* values = page(p) + int8_key_bytes(cache.width);
      if (shifts) {
        add_shifted(values, weights + (p - block.first), sums);
      } else {
        add_planes(values, weights + (p - block.first), sums);
      }
    }
  }

  void add_planes(const std::byte* values, const float* weights, const RowSums& sums) const noexcept {
    alignas(64) std::uint8_t planes[2][block_rows * kv_page_positions];
    std::int32_t plane_sums[2][block_rows];
    float scales[2][block_rows];
    float offsets[2][block_rows];
    std::int32_t any[2] = {};
    for (std::size_t r = 0; r < rows; ++r) {
      WeightPlanes row{weights + r * block_positions, planes[0] + r * kv_page_positions,
                       planes[1] + r * kv_page_positions};
      split_weights(row, isa);
      plane_sums[0][r] = row.high_sum;
      plane_sums[1][r] = row.low_sum;
      for (std::size_t plane = 0; plane < 2; ++plane) {
        scales[plane][r] = plane == 0 ? 256.0f : 1.0f;
        offsets[plane][r] = -128.0f * scales[plane][r] * static_cast<float>(plane_sums[plane][r]);
        any[plane] |= plane_sums[plane][r];
      }
    }
    for (std::size_t plane = 0; plane < 2; ++plane) {
      if (any[plane] == 0) continue;
      kernels.values({.blocks = values,
                      .panels = divide_up(cache.width, panel_outputs),
                      .rows = rows,
                      .weights = planes[plane],
                      .weight_sums = plane_sums[plane],
                      .weight_scales = scales[plane],
                      .offset_sums = offsets[plane],
                      .out = sums.values,
                      .out_stride = sums.stride});
    }
  }

  void add_shifted(const std::byte* values, const float* weights, const RowSums& sums) const noexcept {
    std::uint8_t codes[block_rows * kv_page_positions];
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t p = 0; p < kv_page_positions; ++p) {
        codes[r * kv_page_positions + p] = log2_code(weights[r * block_positions + p] / whole_weight, 4);
      }
    }
    isa::scalar::shift_tile({values, divide_up(cache.width, panel_outputs), rows, codes, sums.values, sums.stride});
  }
};

/// Queries of a job in INT8; `scales`: static ones per query head, or none.
inline void encode_queries(const Job& job, const Int8KvView& cache, Int8Queries& to) noexcept {
  const std::size_t stride = divide_up(cache.width, block_inputs) * block_inputs;
  std::memset(to.codes, 0, job.rows * stride);
  for (std::size_t r = 0; r < job.rows; ++r) {
    const std::span<const float> query(job.queries + r * job.query_stride, cache.width);
    to.scales[r] =
        cache.query_scales.empty() ? int8_scale(max_abs(query)) : cache.query_scales[job.head + r * job.head_step];
    encode_int8(query, to.scales[r], to.codes + r * stride);
  }
}

/// What a score of codes is worth, within what softmax works with: beyond 2^100 every difference of integers is as good
/// as infinite, below 2^-100 none counts.
[[nodiscard]] constexpr float score_factor(float scale, float query_scale, float key_scale) noexcept {
  const double factor = static_cast<double>(scale) * static_cast<double>(query_scale) * static_cast<double>(key_scale);
  return static_cast<float>(factor < 0x1p-100 ? 0x1p-100 : factor < 0x1p100 ? factor : 0x1p100);
}

/// A slope over a factor of at least 2^-100. Beyond 2^110 it is as good as infinite, and its product with a distance
/// must be finite.
[[nodiscard]] constexpr float slope_over(float slope, float factor) noexcept {
  const double relative = static_cast<double>(slope) / static_cast<double>(factor);
  return static_cast<float>(relative < -0x1p110 ? -0x1p110 : relative < 0x1p110 ? relative : 0x1p110);
}

inline void run(const Job& job, const Int8KvView& cache, const KvKernels& kernels) noexcept {
  Int8Queries queries;
  encode_queries(job, cache, queries);
  std::size_t visible[block_rows];
  float scales[block_rows], slopes[block_rows], own[block_rows];
  for (std::size_t r = 0; r < job.rows; ++r) {
    visible[r] = job.first_visible + r * job.visible_step;
    scales[r] = score_factor(job.scale, queries.scales[r], cache.key_scales[job.kv_head]);
    own[r] = static_cast<float>(visible[r] - 1);
    if (job.slopes != nullptr) slopes[r] = slope_over(job.slopes[r * job.slope_step], scales[r]);
  }
  RowSumsMemory memory;
  const std::size_t stride = divide_up(cache.width, float_panel_width) * float_panel_width;
  RowSums sums = row_sums(memory, job.rows, stride, job.scale);
  if (job.slopes != nullptr) sums.biases = {slopes, own};
  visit_rounded(Int8Source{kernels, cache, job.kv_head, queries, job.rows, job.weights, job.isa},
                {visible, scales, job.weights, job.first_weights, job.first_stride}, sums, job.isa);
  for (std::size_t r = 0; r < job.rows; ++r) {
    float* out = job.out + r * job.out_stride;
    normalize(sums, r, out, cache.width);
    for (std::size_t i = 0; i < cache.width; ++i) out[i] *= cache.value_scales[job.kv_head];
  }
}

/// Errors of attend().
[[nodiscard]] inline Status check_call(const FloatCall& call, const Int8KvView& cache) noexcept {
  if (const Status valid = check_call(call.q, call.cache, call.scores, call.out); !valid) return valid;
  if (call.scores.column_sums.data != nullptr) {
    return Error{Errc::unsupported, "integer attention gives no sums of columns", "scores"};
  }
  if (!cache.query_scales.empty() && cache.query_scales.size() != call.heads()) {
    return Error{Errc::bad_shape, "static scales are one per query head", "scales", cache.query_scales.size(),
                 call.heads()};
  }
  if (cache.size > int8_most_positions) {
    return Error{Errc::unsupported, "integer attention sums exactly over at most 131072 positions", "positions",
                 cache.size, int8_most_positions};
  }
  return check_int8_rows(call.q, "queries");
}

}  // namespace attention

/// out [tokens x heads * width] = attention of the queries q of the same shape, which belong to the last `tokens`
/// positions of the cache: query t sees positions 0 .. size - tokens + t. Allocates nothing. The same bits for any
/// executor, and of the same scales for any cut of the queries. Errc::bad_shape, Errc::unsupported (column sums; more
/// than 131072 positions), Errc::bad_argument (check_scores()), Errc::not_finite (queries; see check_int8_rows()).
template <Executor E>
[[nodiscard]] Status attend(const MatrixView<const float>& q, const Int8KvCache& cache, const AttentionScores& scores,
                            const MatrixView<float>& out, ExecutionContext<E>& context) noexcept {
  const Int8KvView view = cache.view();
  const attention::FloatCall call{
      q, {.heads = view.heads, .width = view.width, .size = view.size}, scores, out, context.isa()};
  if (const Status valid = attention::check_call(call, view); !valid) return valid;
  const KvKernels kernels = kv_kernels_of<8>(context.isa());
  call.for_each_job(context.executor(), [&](const attention::Job& job) { attention::run(job, view, kernels); });
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
