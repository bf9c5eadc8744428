// SPDX-License-Identifier: Apache-2.0
#pragma once

// Causal attention of grouped queries over whole sequences, forward and backward, for calibration: no cache, every
// sequence by itself. Scores exist for 128 queries of one head at a time and are computed again in the backward pass.
// Work is cut into (sequence, key/value head), whose gradients of keys and values need no sharing: the same bits for
// any executor. Where past keys and values are not what a token sees at its own position (AttentionOperands::own_k), as
// with caches that quantize the past, the diagonal of scores and weights has operands of its own.
//
//   P = softmax(c Q K^T), O = P V        dV = P^T dO   dP = dO V^T   dS = c P o (dP - rowsum(dO o O))
//                                        dQ = dS K     dK = dS^T Q

#include <cstddef>
#include <span>

#include <cbq/nn/sequence_attention.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// out [tokens x heads * width] = causal attention within each sequence. Errc::bad_shape, Errc::unsupported,
/// Errc::out_of_memory.
template <class T, Executor E>
[[nodiscard]] Status attend_sequences(const AttentionOperands<const T>& operands, const SequenceAttention& shape,
                                      const MatrixView<T>& out, ExecutionContext<E>& context) noexcept {
  namespace part = attention_gradient;
  const std::size_t tokens = operands.q.rows;
  if (const Status fits = part::check(shape, operands); !fits) return fits;
  const Workspace::Frame frame(context.workspace());
  const std::size_t tasks = tokens / shape.length * shape.heads.kv_heads;
  const auto scratch = part::take_scratch<T>(tasks, shape.length, 1, context);
  if (!scratch) return scratch.error();
  context.executor().for_each_index(tasks, [&](std::size_t task) {
    part::Scratch<T>& own = (*scratch)[task];
    own.status = part::for_each_place(shape, task, [&](const part::Place& place, std::size_t) {
      const MatrixView<T> weights = part::scores_view(own.weights, place, own.stride);
      if (const Status done = part::weigh(operands, shape, place, weights, context.isa()); !done) return done;
      T shares[part::block_queries];
      const bool apart = operands.own_k.data != nullptr;
      if (apart) part::take_own(weights, place, shares);
      const FloatMatmulOptions<> options{.cap = context.isa()};
      const std::size_t width = shape.heads.width;
      const auto result = part::head(out, place.queries, place.head, width);
      const auto v = part::head(operands.v, place.keys, place.kv_head, width);
      const Status done = products::multiply(as_const(weights), v, result, options);
      if (apart) part::add_rows(shares, part::head(operands.own_v, place.queries, place.kv_head, width), result);
      return done;
    });
  });
  return part::first_failure(*scratch);
}

/// Gradients of attend_sequences(): `out` is its result, `dout` = dL/dout; writes all of `gradients`, which have own_k
/// and own_v where the operands have. Errors as attend_sequences().
template <class T, Executor E>
[[nodiscard]] Status attend_sequences_backward(const AttentionOperands<const T>& operands,
                                               const SequenceAttention& shape, const MatrixView<const T>& out,
                                               const MatrixView<const T>& dout, const AttentionOperands<T>& gradients,
                                               ExecutionContext<E>& context) noexcept {
  namespace part = attention_gradient;
  const std::size_t tokens = operands.q.rows;
  const std::size_t width = shape.heads.width;
  if (const Status fits = part::check(shape, operands); !fits) return fits;
  if (const Status fits = part::check_gradients(operands, gradients); !fits) return fits;
  const Workspace::Frame frame(context.workspace());
  const std::size_t tasks = tokens / shape.length * shape.heads.kv_heads;
  const auto scratch = part::take_scratch<T>(tasks, shape.length, 2, context);
  if (!scratch) return scratch.error();
  const auto run = [&](part::Scratch<T>& own, const part::Place& place, std::size_t first) -> Status {
    const MatrixView<T> weights = part::scores_view(own.weights, place, own.stride);
    const MatrixView<T> slopes = part::scores_view(own.gradients, place, own.stride);
    const auto q = part::head(operands.q, place.queries, place.head, width);
    const auto k = part::head(operands.k, place.keys, place.kv_head, width);
    const auto v = part::head(operands.v, place.keys, place.kv_head, width);
    const auto upstream = part::head(dout, place.queries, place.head, width);
    const auto result = part::head(out, place.queries, place.head, width);
    FloatMatmulOptions<> options{.cap = context.isa(), .workspace = own.workspace};
    if (const Status done = part::weigh(operands, shape, place, weights, context.isa()); !done) return done;
    if (const Status done = products::multiply_transposed(upstream, v, slopes, options); !done) return done;
    part::set_own(slopes, upstream, operands.own_v, place);
    for (std::size_t r = 0; r < slopes.rows; ++r) {
      T along = 0;
      for (std::size_t i = 0; i < width; ++i) along += row(upstream, r)[i] * row(result, r)[i];
      const T scale = static_cast<T>(shape.scale);
      const std::size_t seen = first + r + 1;
      for (std::size_t i = 0; i < seen; ++i)
        row(slopes, r)[i] = scale * row(weights, r)[i] * (row(slopes, r)[i] - along);
      for (std::size_t i = seen; i < slopes.columns; ++i) row(slopes, r)[i] = 0;
    }
    const auto dq = part::head(gradients.q, place.queries, place.head, width);
    T shares[part::block_queries], own_slopes[part::block_queries];
    const bool apart = operands.own_k.data != nullptr;
    if (apart) part::take_own(weights, place, shares);
    if (apart) part::take_own(slopes, place, own_slopes);
    if (const Status done = products::multiply(as_const(slopes), k, dq, options); !done) return done;
    if (apart) {
      const auto at = [&](const auto& matrix) { return part::head(matrix, place.queries, place.kv_head, width); };
      part::add_rows(own_slopes, at(operands.own_k), dq);
      part::add_rows(own_slopes, q, at(gradients.own_k));
      part::add_rows(shares, upstream, at(gradients.own_v));
    }
    options.accumulate = Accumulate::add;
    const auto dk = part::head(gradients.k, place.keys, place.kv_head, width);
    const auto dv = part::head(gradients.v, place.keys, place.kv_head, width);
    if (const Status done = products::outer(as_const(slopes), q, dk, options); !done) return done;
    return products::outer(as_const(weights), upstream, dv, options);
  };
  context.executor().for_each_index(tasks, [&](std::size_t task) {
    const RowBlock sequence{task / shape.heads.kv_heads * shape.length, shape.length};
    for (const MatrixView<T>& gradient : {gradients.k, gradients.v, gradients.own_k, gradients.own_v}) {
      if (gradient.data == nullptr) continue;
      const auto own = part::head(gradient, sequence, task % shape.heads.kv_heads, width);
      for (std::size_t r = 0; r < own.rows; ++r) {
        for (std::size_t i = 0; i < width; ++i) row(own, r)[i] = 0;
      }
    }
    part::Scratch<T>& own = (*scratch)[task];
    own.status = part::for_each_place(
        shape, task, [&](const part::Place& place, std::size_t first) { return run(own, place, first); });
  });
  return part::first_failure(*scratch);
}

}  // namespace CBQ_ABI
}  // namespace cbq
