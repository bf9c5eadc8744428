// SPDX-License-Identifier: Apache-2.0
#pragma once

// Causal attention of grouped queries over whole sequences, forward and backward, for calibration: no cache, every
// sequence by itself. Scores exist for 128 queries of one head at a time and are computed again in the backward pass.
// Work is cut into (sequence, key/value head), whose gradients of keys and values need no sharing: the same bits for
// any executor.
//
//   P = softmax(c Q K^T), O = P V        dV = P^T dO   dP = dO V^T   dS = c P o (dP - rowsum(dO o O))
//                                        dQ = dS K     dK = dS^T Q

#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include <cbq/kv/attention.hpp>
#include <cbq/kv/softmax.hpp>
#include <cbq/nn/differentiable.hpp>

namespace cbq {

/// Sequences of equal length, one after another in the rows of a matrix.
struct SequenceAttention {
  AttentionShape heads = {};
  std::size_t length = 0;
  double scale = 1.0;
};

/// q [tokens x heads * width], k and v [tokens x kv_heads * width].
template <class T>
struct AttentionOperands {
  MatrixView<T> q = {};
  MatrixView<T> k = {};
  MatrixView<T> v = {};
};

inline namespace CBQ_ABI {
namespace attention_gradient {

inline constexpr std::size_t block_queries = 128;

/// Replaces scores [rows x columns] by softmax(scale * scores); row r sees the first `visible` + r columns, the others
/// become 0. Memory reaches to a multiple of 16 columns.
template <class T>
void causal_softmax(const MatrixView<T>& scores, std::size_t visible, double scale, Isa isa) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    float maxima[block_queries];
    float sums[block_queries];
    std::size_t valid[block_queries];
    for (std::size_t r = 0; r < scores.rows; ++r) {
      maxima[r] = -__builtin_inff();
      sums[r] = 0.0f;
      valid[r] = visible + r;
    }
    softmax_block({.scores = scores.data,
                   .stride = scores.stride,
                   .rows = scores.rows,
                   .columns = divide_up(scores.columns, float_panel_width) * float_panel_width,
                   .valid = valid,
                   .scale = static_cast<float>(scale),
                   .maxima = maxima,
                   .sums = sums},
                  isa);
    for (std::size_t r = 0; r < scores.rows; ++r) {
      const float inverse = 1.0f / sums[r];
      for (std::size_t i = 0; i < scores.columns; ++i) row(scores, r)[i] *= inverse;
    }
  } else {
    for (std::size_t r = 0; r < scores.rows; ++r) {
      T* values = row(scores, r);
      const std::size_t valid = visible + r;
      T largest = values[0];
      for (std::size_t i = 1; i < valid; ++i) largest = values[i] > largest ? values[i] : largest;
      T sum = 0;
      for (std::size_t i = 0; i < scores.columns; ++i) {
        values[i] = i < valid ? std::exp(static_cast<T>(scale) * (values[i] - largest)) : T(0);
        sum += values[i];
      }
      for (std::size_t i = 0; i < valid; ++i) values[i] /= sum;
    }
  }
}

/// Memory of one task.
template <class T>
struct Scratch {
  std::span<T> weights = {};
  std::span<T> gradients = {};
  std::span<float> workspace = {};
  std::size_t stride = 0;
  Status status = {};
};

/// Scratch of every task; `passes` is 1 for forward, 2 for backward. Errc::out_of_memory.
template <class T, Executor E>
[[nodiscard]] Result<std::span<Scratch<T>>> take_scratch(std::size_t tasks, std::size_t length, int passes,
                                                         ExecutionContext<E>& context) noexcept {
  const auto all = context.workspace().template take<Scratch<T>>(tasks);
  if (!all) return all.error();
  const std::size_t stride = divide_up(length, float_panel_width) * float_panel_width;
  const Result<std::size_t> outer = products::outer_workspace(block_queries, length);
  if (!outer) return outer.error();
  for (Scratch<T>& each : *all) {
    each = {};
    each.stride = stride;
    const auto weights = context.workspace().template take<T>(block_queries * stride);
    if (!weights) return weights.error();
    each.weights = *weights;
    if (passes == 1) continue;
    const auto gradients = context.workspace().template take<T>(block_queries * stride);
    const auto workspace = context.workspace().template take<float>(*outer);
    if (!gradients) return gradients.error();
    if (!workspace) return workspace.error();
    each.gradients = *gradients;
    each.workspace = *workspace;
  }
  return *all;
}

[[nodiscard]] inline Status check(const SequenceAttention& shape, std::size_t tokens, std::size_t q, std::size_t kv) {
  if (const Status valid = check_attention(shape.heads); !valid) return valid;
  if (shape.length == 0 || tokens % shape.length != 0 || q != shape.heads.heads * shape.heads.width ||
      kv != shape.heads.kv_heads * shape.heads.width) {
    return Error{Errc::bad_shape, "attention needs whole sequences and whole heads", "q, k",
                 ErrorText(tokens) << " tokens, " << q << ", " << kv, shape.length};
  }
  return {};
}

/// A head of some rows.
template <class T>
[[nodiscard]] MatrixView<T> head(const MatrixView<T>& x, const RowBlock& block, std::size_t index,
                                 std::size_t width) noexcept {
  return columns(rows(x, block.first, block.count), index * width, width);
}

/// One block of queries of one head in one sequence.
struct Place {
  RowBlock queries = {};
  RowBlock keys = {};
  std::size_t head = 0;
  std::size_t kv_head = 0;
};

/// Calls task(place) for all query blocks of all heads that share key/value head `index` % kv_heads of sequence
/// `index` / kv_heads, until one fails.
template <class Task>
[[nodiscard]] Status for_each_place(const SequenceAttention& shape, std::size_t index, const Task& task) noexcept {
  const std::size_t sequence = index / shape.heads.kv_heads;
  const std::size_t group = shape.heads.heads / shape.heads.kv_heads;
  Place place;
  place.kv_head = index % shape.heads.kv_heads;
  for (std::size_t member = 0; member < group; ++member) {
    place.head = place.kv_head * group + member;
    for (std::size_t first = 0; first < shape.length; first += block_queries) {
      const std::size_t left = shape.length - first;
      const std::size_t count = left < block_queries ? left : block_queries;
      place.queries = {sequence * shape.length + first, count};
      place.keys = {sequence * shape.length, first + count};
      if (const Status done = task(place, first); !done) return done;
    }
  }
  return {};
}

/// The softmax weights of a place into scratch.
template <class T>
[[nodiscard]] Status weigh(const AttentionOperands<const T>& operands, const SequenceAttention& shape,
                           const Place& place, const MatrixView<T>& weights, Isa isa) noexcept {
  const std::size_t width = shape.heads.width;
  const FloatMatmulOptions<> options{.cap = isa};
  const Status done =
      products::multiply_transposed(head(operands.q, place.queries, place.head, width),
                                    head(operands.k, place.keys, place.kv_head, width), weights, options);
  if (done) causal_softmax(weights, place.keys.count - place.queries.count + 1, shape.scale, isa);
  return done;
}

template <class T>
[[nodiscard]] MatrixView<T> scores_view(std::span<T> memory, const Place& place, std::size_t stride) noexcept {
  return {memory.data(), place.queries.count, place.keys.count, stride};
}

template <class T>
[[nodiscard]] Status first_failure(std::span<Scratch<T>> all) noexcept {
  for (const Scratch<T>& each : all) {
    if (!each.status) return each.status;
  }
  return {};
}

}  // namespace attention_gradient

/// out [tokens x heads * width] = causal attention within each sequence. Errc::bad_shape, Errc::unsupported,
/// Errc::out_of_memory.
template <class T, Executor E>
[[nodiscard]] Status attend_sequences(const AttentionOperands<const T>& operands, const SequenceAttention& shape,
                                      const MatrixView<T>& out, ExecutionContext<E>& context) noexcept {
  namespace part = attention_gradient;
  const std::size_t tokens = operands.q.rows;
  if (const Status fits = part::check(shape, tokens, operands.q.columns, operands.k.columns); !fits) return fits;
  const Workspace::Frame frame(context.workspace());
  const std::size_t tasks = tokens / shape.length * shape.heads.kv_heads;
  const auto scratch = part::take_scratch<T>(tasks, shape.length, 1, context);
  if (!scratch) return scratch.error();
  context.executor().for_each_index(tasks, [&](std::size_t task) {
    part::Scratch<T>& own = (*scratch)[task];
    own.status = part::for_each_place(shape, task, [&](const part::Place& place, std::size_t) {
      const MatrixView<T> weights = part::scores_view(own.weights, place, own.stride);
      if (const Status done = part::weigh(operands, shape, place, weights, context.isa()); !done) return done;
      const FloatMatmulOptions<> options{.cap = context.isa()};
      return products::multiply(as_const(weights), part::head(operands.v, place.keys, place.kv_head, shape.heads.width),
                                part::head(out, place.queries, place.head, shape.heads.width), options);
    });
  });
  return part::first_failure(*scratch);
}

/// Gradients of attend_sequences(): `out` is its result, `dout` = dL/dout; writes all of `gradients`.
template <class T, Executor E>
[[nodiscard]] Status attend_sequences_backward(const AttentionOperands<const T>& operands,
                                               const SequenceAttention& shape, const MatrixView<const T>& out,
                                               const MatrixView<const T>& dout, const AttentionOperands<T>& gradients,
                                               ExecutionContext<E>& context) noexcept {
  namespace part = attention_gradient;
  const std::size_t tokens = operands.q.rows;
  const std::size_t width = shape.heads.width;
  if (const Status fits = part::check(shape, tokens, operands.q.columns, operands.k.columns); !fits) return fits;
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
    if (const Status done = products::multiply(as_const(slopes), k, dq, options); !done) return done;
    options.accumulate = Accumulate::add;
    const auto dk = part::head(gradients.k, place.keys, place.kv_head, width);
    const auto dv = part::head(gradients.v, place.keys, place.kv_head, width);
    if (const Status done = products::outer(as_const(slopes), q, dk, options); !done) return done;
    return products::outer(as_const(weights), upstream, dv, options);
  };
  context.executor().for_each_index(tasks, [&](std::size_t task) {
    const RowBlock sequence{task / shape.heads.kv_heads * shape.length, shape.length};
    for (const MatrixView<T>& gradient : {gradients.k, gradients.v}) {
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
