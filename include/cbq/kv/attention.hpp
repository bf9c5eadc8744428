// SPDX-License-Identifier: Apache-2.0
#pragma once

// Causal attention of grouped queries over a float cache: o = softmax(scale q K^T) V. Keys are visited in blocks of 256
// positions with a running maximum, so no matrix of scores ever exists; products run on the dispatched float tiles,
// straight from the cache. Work is cut into (head, 16 queries); a single query takes the heads that share keys and
// values together. Blocks begin at fixed positions, so the other rows of a call change a row's result by no more than
// rounding (up to four rows go through tiles that sum in another order), and executors do not change it at all. Cost:
// 4 * width multiply-adds per query, head and visible position pair; 34 KiB of stack per task.

#include <cstddef>

#include <cbq/core/context.hpp>
#include <cbq/kv/attention_scores.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/float_source.hpp>
#include <cbq/kv/online_softmax.hpp>
#include <cbq/kv/rounded_softmax.hpp>

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

/// Errors of attend().
[[nodiscard]] constexpr Status check_call(const MatrixView<const float>& q, const FloatKvView& cache,
                                          const AttentionScores& scores, const MatrixView<float>& out) noexcept {
  const AttentionShape shape{cache.width == 0 ? 0 : q.columns / cache.width, cache.heads, cache.width};
  if (const Status valid = check_attention(shape); !valid) return valid;
  if (q.columns % cache.width != 0 || out.columns != q.columns || out.rows != q.rows || q.rows > cache.size) {
    return Error{Errc::bad_shape, "attention needs whole heads, a result of the shape of the queries, and cached keys",
                 "q", ErrorText(q.rows) << " x " << q.columns, ErrorText(out.rows) << " x " << out.columns};
  }
  if (q.rows > 1 && (q.stride < q.columns || out.stride < q.columns)) {
    return Error{Errc::bad_shape, "rows of queries and of results must not overlap", "q, out",
                 ErrorText("strides ") << q.stride << ", " << out.stride, q.columns};
  }
  if (scores.column_sums.data != nullptr && scores.weights != SoftmaxWeights::exact) {
    return Error{Errc::unsupported, "attention gives sums of columns of exact weights only", "scores"};
  }
  return check_scores(scores, q.rows, shape.heads);
}

/// Some queries that read the same key/value head.
struct Job {
  const float* queries = nullptr;
  std::size_t query_stride = 0;
  float* out = nullptr;
  std::size_t out_stride = 0;
  std::size_t rows = 0;
  std::size_t kv_head = 0;
  std::size_t head = 0;           ///< query head of row 0
  std::size_t head_step = 0;      ///< to the head of the next row
  std::size_t first_visible = 0;  ///< positions that row 0 sees
  std::size_t visible_step = 0;   ///< how many more each next row sees
  float scale = 1.0f;
  SoftmaxWeights weights = SoftmaxWeights::exact;
  const float* slopes = nullptr;   ///< of row 0; null: none
  std::size_t slope_step = 0;      ///< to the slope of the next row
  float* first_weights = nullptr;  ///< of row 0; null: not wanted
  std::size_t first_stride = 0;
  float* column_sums = nullptr;  ///< in place of a result: what its keys get, of position column_first on
  std::size_t column_stride = 0;
  std::size_t column_first = 0;
  Isa isa = Isa::scalar;
};

/// A source whose positions have no values: adds weights to the sums of a job's columns, once sums are known.
struct ColumnSource {
  static constexpr std::size_t unit = FloatSource::unit;

  const FloatSource& floats;
  const Job& job;
  const float* inverses = nullptr;  ///< [rows], 1 / sum of all weights; null: not known yet

  void scores(const Positions& block, float* to) const noexcept { floats.scores(block, to); }
  void add_values(const Positions& block, const float* weights, const RowSums& sums) const noexcept {
    if (inverses == nullptr) return;
    for (std::size_t r = 0; r < sums.rows; ++r) {
      for (std::size_t p = block.first < job.column_first ? job.column_first : block.first; p < block.end; ++p) {
        const float weight = weights[r * block_positions + (p - block.first)];
        job.column_sums[(p - job.column_first) * job.column_stride] += weight * inverses[r];
      }
    }
  }
};

inline void add_columns(const FloatSource& source, const RowPositions& seen, RowSums sums, const Job& job) noexcept {
  sums.stride = 0;
  visit(ColumnSource{source, job}, seen, sums, job.isa);
  float inverses[block_rows];
  for (std::size_t r = 0; r < sums.rows; ++r) inverses[r] = 1.0f / sums.sums[r];
  visit(ColumnSource{source, job, inverses}, seen, sums, job.isa);
}

/// visit_rounded() of all rows of a job, whose scores have one scale.
inline void visit_rounded(const FloatSource& source, const Job& job, const RowSums& sums) noexcept {
  std::size_t visible[block_rows];
  float scales[block_rows];
  for (std::size_t r = 0; r < job.rows; ++r) {
    visible[r] = job.first_visible + r * job.visible_step;
    scales[r] = job.scale;
  }
  visit_rounded(source, {visible, scales, job.weights, job.first_weights, job.first_stride}, sums, job.isa);
}

inline void run(const Job& job, const FloatKvView& cache, const Tiles& tiles) noexcept {
  RowSumsMemory memory;
  const std::size_t stride = divide_up(cache.width, float_panel_width) * float_panel_width;
  RowSums sums = row_sums(memory, job.rows, stride, job.scale);
  clear(sums);
  RowPositions seen;
  float slopes[block_rows], own[block_rows];
  for (std::size_t r = 0; r < job.rows; ++r) {
    seen[r] = {0, job.first_visible + r * job.visible_step};
    own[r] = static_cast<float>(seen[r].end - 1);
    if (job.slopes != nullptr) slopes[r] = job.slopes[r * job.slope_step] / job.scale;
  }
  if (job.slopes != nullptr) sums.biases = {slopes, own};
  const FloatSource source{tiles, cache, job.kv_head, job.queries, job.query_stride, job.rows};
  if (job.column_sums != nullptr) return add_columns(source, seen, sums, job);
  if (job.weights != SoftmaxWeights::exact) {
    visit_rounded(source, job, sums);
  } else {
    visit(source, seen, sums, job.isa);
    if (job.first_weights != nullptr) write_first_weights(source, sums, job.first_weights, job.first_stride);
  }
  for (std::size_t r = 0; r < job.rows; ++r) normalize(sums, r, job.out + r * job.out_stride, cache.width);
}

/// A call of attend(), as jobs.
struct FloatCall {
  MatrixView<const float> q = {};
  FloatKvView cache = {};
  AttentionScores scores = {};
  MatrixView<float> out = {};
  Isa isa = Isa::scalar;

  [[nodiscard]] std::size_t heads() const noexcept { return q.columns / cache.width; }
  [[nodiscard]] std::size_t group() const noexcept { return heads() / cache.heads; }
  [[nodiscard]] std::size_t blocks() const noexcept { return divide_up(q.rows, block_rows); }

  /// The only query, of all heads that read one key/value head.
  [[nodiscard]] Job query(std::size_t kv_head) const noexcept {
    const std::size_t head = kv_head * group();
    Job job{.queries = q.data + head * cache.width,
            .query_stride = cache.width,
            .out = out.data + head * cache.width,
            .out_stride = cache.width,
            .rows = group(),
            .kv_head = kv_head,
            .head = head,
            .head_step = 1,
            .first_visible = cache.size,
            .scale = scores.scale,
            .weights = scores.weights,
            .slope_step = 1,
            .first_stride = 1,
            .isa = isa};
    if (!scores.slopes.empty()) job.slopes = &scores.slopes[head];
    if (scores.first_weights.data != nullptr) job.first_weights = scores.first_weights.data + head;
    return job;
  }
  /// Queries of one head from `first` on.
  [[nodiscard]] Job block(std::size_t head, std::size_t first) const noexcept {
    Job job{.queries = row(q, first) + head * cache.width,
            .query_stride = q.stride,
            .out = row(out, first) + head * cache.width,
            .out_stride = out.stride,
            .rows = q.rows - first < block_rows ? q.rows - first : block_rows,
            .kv_head = head / group(),
            .head = head,
            .first_visible = cache.size - q.rows + first + 1,
            .visible_step = 1,
            .scale = scores.scale,
            .weights = scores.weights,
            .first_stride = scores.first_weights.stride,
            .isa = isa};
    if (!scores.slopes.empty()) job.slopes = &scores.slopes[head];
    if (scores.first_weights.data != nullptr) job.first_weights = row(scores.first_weights, first) + head;
    return job;
  }
  /// Calls body(job) for all queries. Late queries see the most: first and last blocks alternate, so that every
  /// contiguous share of the tasks is equal work.
  template <Executor E, class Body>
  void for_each_job(const E& executor, const Body& body) const noexcept {
    if (q.rows == 1 && group() <= block_rows) {
      executor.for_each_index(cache.heads, [&](std::size_t kv_head) { body(query(kv_head)); });
      return;
    }
    const std::size_t count = blocks();
    executor.for_each_index(count * heads(), [&](std::size_t task) {
      const std::size_t turn = task / heads();
      const std::size_t index = turn % 2 == 0 ? turn / 2 : count - 1 - turn / 2;
      body(block(task % heads(), index * block_rows));
    });
  }
  /// Writes one head's sums of columns.
  void sum_columns(std::size_t head, const Tiles& tiles) const noexcept {
    const MatrixView<float>& sums = scores.column_sums;
    for (std::size_t t = 0; t < sums.rows; ++t) row(sums, t)[head] = 0.0f;
    for (std::size_t b = 0; b < blocks(); ++b) {
      Job job = block(head, b * block_rows);
      job.column_sums = sums.data + head;
      job.column_stride = sums.stride;
      job.column_first = cache.size - q.rows;
      run(job, cache, tiles);
    }
  }
};

}  // namespace attention

/// out [tokens x heads * width] = attention of the queries q of the same shape, which belong to the last `tokens`
/// positions of the cache: query t sees positions 0 .. size - tokens + t. `scores` is a scale, usually 1 / sqrt(width),
/// or more. Allocates nothing. The same bits for any executor. Errc::bad_shape, Errc::unsupported (heads of more than
/// 256 elements, column sums of rounded weights), Errc::bad_argument (check_scores()).
template <Executor E>
[[nodiscard]] Status attend(const MatrixView<const float>& q, const FloatKvCache& cache, const AttentionScores& scores,
                            const MatrixView<float>& out, ExecutionContext<E>& context) noexcept {
  const attention::FloatCall call{q, cache.view(), scores, out, context.isa()};
  if (const Status valid = attention::check_call(q, call.cache, scores, out); !valid) return valid;
  const attention::Tiles tiles = attention::float_tiles(context.isa());
  const auto columns = [&](std::size_t head) { call.sum_columns(head, tiles); };
  if (scores.column_sums.data != nullptr) context.executor().for_each_index(call.heads(), columns);
  call.for_each_job(context.executor(), [&](const attention::Job& job) { attention::run(job, call.cache, tiles); });
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
