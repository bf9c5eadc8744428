// SPDX-License-Identifier: Apache-2.0
#pragma once

// Causal attention of grouped queries over a quantized cache: o = softmax(scale q K^T) V, with integer products against
// the codes of what is past and float products against what is exact. All query heads that share a key/value head go
// together, up to 16 rows at a time. Few rows are cut into spans of 512 positions, read page by page with the heads
// inside, and merged; many rows into tiles of one head. Cost at 4 bits: the pages' bytes up to about 4 rows, integer
// products beyond; 96 KiB of stack per task. What 8-bit queries and weights cost in accuracy: docs/kv_attention.md.

#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/context.hpp>
#include <cbq/kv/attention_scores.hpp>
#include <cbq/kv/attention_tasks.hpp>
#include <cbq/kv/quantized_kv_view.hpp>

namespace cbq {

/// Queries of one sequence of a batch and its cache: `q` and `out` [tokens x heads * width], which belong to the last
/// `tokens` positions.
struct AttentionItem {
  MatrixView<const float> q = {};
  QuantizedKvView cache = {};
  float scale = 1.0f;  ///< of scores, see check_score_scale(); usually 1 / sqrt(width)
  MatrixView<float> out = {};
  std::span<const float> slopes = {};  ///< of ALiBi, one per query head; empty: none
};

inline namespace CBQ_ABI {
namespace attention {

[[nodiscard]] inline Sequence sequence_of(const AttentionItem& item) noexcept {
  Sequence sequence{.q = item.q, .out = item.out, .scale = item.scale, .cache = item.cache, .slopes = item.slopes};
  if (item.cache.layout != nullptr) {
    sequence.heads = item.cache.layout->heads;
    sequence.width = item.cache.layout->width;
  }
  return sequence;
}

}  // namespace attention

/// Attention of the queries of several sequences, each over its own cache: query t of a sequence sees its positions up
/// to size - tokens + t, within the cache's window, and the sinks. Allocates nothing once the context's workspace has
/// grown to the shape. The same bits for any executor and any other sequences. Errc::bad_shape, Errc::bad_argument (a
/// visible page is missing, a query's own position was given back with its window before a rollback,
/// check_score_scale()), Errc::unsupported, Errc::not_finite (queries that are NaN or, transformed as the keys, beyond
/// 2^100; results are then partly written), Errc::out_of_memory.
template <Executor E>
[[nodiscard]] Status attend_batch(std::span<const AttentionItem> items, ExecutionContext<E>& context) noexcept {
  const Workspace::Frame frame(context.workspace());
  const auto sequences = context.workspace().template take<attention::Sequence>(items.size());
  if (!sequences) return sequences.error();
  for (std::size_t i = 0; i < items.size(); ++i) (*sequences)[i] = attention::sequence_of(items[i]);
  return attention::compute(*sequences, context);
}

/// out [tokens x heads * width] = attention of the queries q of the same shape, which belong to the last `tokens`
/// positions of the cache; otherwise as attend_batch(). Errc::unsupported for weights to be given or
/// rounded.
template <Executor E>
[[nodiscard]] Status attend(const MatrixView<const float>& q, const QuantizedKvView& cache,
                            const AttentionScores& scores, const MatrixView<float>& out,
                            ExecutionContext<E>& context) noexcept {
  if (const Status known = check_exact_weights(scores); !known) return known;
  attention::Sequence sequence = attention::sequence_of({q, cache, scores.scale, out, scores.slopes});
  return attention::compute({&sequence, 1}, context);
}

/// The same for whatever owns such a cache.
template <class Cache, Executor E>
  requires requires(const Cache& cache) {
    { cache.view() } -> std::same_as<QuantizedKvView>;
  }
[[nodiscard]] Status attend(const MatrixView<const float>& q, const Cache& cache, const AttentionScores& scores,
                            const MatrixView<float>& out, ExecutionContext<E>& context) noexcept {
  return attend(q, cache.view(), scores, out, context);
}

}  // namespace CBQ_ABI
}  // namespace cbq
