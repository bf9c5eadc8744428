// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention of a text as decoding it token by token would compute it, in one pass: every query sees the positions that
// its cache would have quantized by then as codes, and the others, its own with past_only, exactly. For evaluation and
// calibration: a prefill would see nothing of the cache's error. Needs all positions twice, quantized and exact; costs
// what attention over the quantized ones costs, and one block of exact ones per 16 rows.

#include <cstddef>
#include <span>

#include <cbq/core/context.hpp>
#include <cbq/kv/attention_tasks.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/kv_policy.hpp>
#include <cbq/kv/quantized_kv_view.hpp>

namespace cbq {

/// What decoding would have found exact, and when.
struct TeacherForcing {
  KvScheme scheme = {};    ///< past_only, channel_keys: which positions were quantized when
  KvPolicy policy = {};    ///< likewise
  FloatKvView exact = {};  ///< all positions, transformed as the quantized ones; none where nothing is seen exactly
  float scale = 1.0f;      ///< of scores, see check_score_scale()
  std::span<const float> slopes = {};  ///< of ALiBi, one per query head; empty: none
};

inline namespace CBQ_ABI {
namespace attention {

[[nodiscard]] inline Sequence decoded_sequence(const MatrixView<const float>& q, const MatrixView<float>& out,
                                               const TeacherForcing& forcing) noexcept {
  return {.q = q,
          .out = out,
          .scale = forcing.scale,
          .time = Time::decoding,
          .scheme = forcing.scheme,
          .policy = forcing.policy,
          .slopes = forcing.slopes};
}

}  // namespace attention

/// out [tokens x heads * width] = attention of the queries q, which belong to the last `tokens` of past.size positions.
/// The query at position p sees as codes what quantized_positions() says of p (past_only) or p + 1 positions; `past`
/// has at least these quantized, and its own sinks, exact rows and window are not looked at. Errors and promises as
/// attend_batch().
template <Executor E>
[[nodiscard]] Status attend_teacher_forced(const MatrixView<const float>& q, const QuantizedKvView& past,
                                           const TeacherForcing& forcing, const MatrixView<float>& out,
                                           ExecutionContext<E>& context) noexcept {
  attention::Sequence sequence = attention::decoded_sequence(q, out, forcing);
  sequence.cache = past;
  sequence.cache.sinks = {};
  sequence.cache.exact = forcing.exact;
  if (past.layout != nullptr) {
    sequence.heads = past.layout->heads;
    sequence.width = past.layout->width;
  }
  return attention::compute({&sequence, 1}, context);
}

/// The same over floats that were quantized and decoded, for schemes and operators without kernels; `past` and
/// forcing.exact are as the queries are, not transformed.
template <Executor E>
[[nodiscard]] Status attend_teacher_forced(const MatrixView<const float>& q, const FloatKvView& past,
                                           const TeacherForcing& forcing, const MatrixView<float>& out,
                                           ExecutionContext<E>& context) noexcept {
  attention::Sequence sequence = attention::decoded_sequence(q, out, forcing);
  sequence.cache.size = past.size;
  sequence.cache.exact = forcing.exact;
  sequence.past = past;
  sequence.heads = past.heads;
  sequence.width = past.width;
  return attention::compute({&sequence, 1}, context);
}

}  // namespace CBQ_ABI
}  // namespace cbq
