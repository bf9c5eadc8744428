// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whole sequences under causal attention, as calibration sees them: shapes, operands, and the parts that the forward
// and the backward pass of attention_gradient.hpp share. Work is cut into (sequence, key/value head) and, within, into
// places: 128 queries of one head.

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
  std::span<const float> slopes = {};  ///< of ALiBi, one per query head; empty: none
};

/// q [tokens x heads * width], k and v [tokens x kv_heads * width].
template <class T>
struct AttentionOperands {
  MatrixView<T> q = {};
  MatrixView<T> k = {};
  MatrixView<T> v = {};
  /// What a token attends to at its own position, in the shape of k and v; null: k and v. For caches that quantize what
  /// is past: k and v are then what is left of the past, these are exact.
  MatrixView<T> own_k = {};
  MatrixView<T> own_v = {};
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

template <class T>
[[nodiscard]] Status check(const SequenceAttention& shape, const AttentionOperands<const T>& operands) {
  const std::size_t tokens = operands.q.rows, q = operands.q.columns, kv = operands.k.columns;
  const auto alike = [&](const MatrixView<const T>& x) { return x.rows == tokens && x.columns == kv; };
  if (const Status valid = check_attention(shape.heads); !valid) return valid;
  if (shape.length == 0 || tokens % shape.length != 0 || q != shape.heads.heads * shape.heads.width ||
      kv != shape.heads.kv_heads * shape.heads.width || !alike(operands.k) || !alike(operands.v)) {
    return Error{Errc::bad_shape, "attention needs whole sequences and whole heads", "q, k, v",
                 ErrorText(tokens) << " tokens, " << q << ", " << kv << ", " << operands.v.columns, shape.length};
  }
  if (!shape.slopes.empty() && shape.slopes.size() != shape.heads.heads) {
    return Error{Errc::bad_shape, "attention has one slope per query head, or none", "slopes", shape.slopes.size(),
                 shape.heads.heads};
  }
  for (const MatrixView<const T>& own : {operands.own_k, operands.own_v}) {
    if ((own.data == nullptr) == (operands.own_k.data == nullptr) && (own.data == nullptr || alike(own))) {
      continue;
    }
    return Error{Errc::bad_shape, "what tokens attend to at their own positions has the shape of keys and values",
                 "own_k, own_v", ErrorText(own.rows) << " x " << own.columns, ErrorText(tokens) << " x " << kv};
  }
  return {};
}

/// Whether `gradients` have the shapes of `operands`, own_k and own_v where these have.
template <class T>
[[nodiscard]] Status check_gradients(const AttentionOperands<const T>& operands,
                                     const AttentionOperands<T>& gradients) {
  const auto alike = [](const MatrixView<const T>& x, const MatrixView<T>& gradient) {
    return x.data == nullptr || (gradient.data != nullptr && gradient.rows == x.rows && gradient.columns == x.columns);
  };
  if (alike(operands.q, gradients.q) && alike(operands.k, gradients.k) && alike(operands.v, gradients.v) &&
      alike(operands.own_k, gradients.own_k) && alike(operands.own_v, gradients.own_v)) {
    return {};
  }
  return Error{Errc::bad_shape, "gradients have the shapes of what attention read, own_k and own_v with them",
               "gradients"};
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

/// Of the rows of a place the entry of each row's own position.
template <class T>
[[nodiscard]] T& own_entry(const MatrixView<T>& scores, const Place& place, std::size_t r) noexcept {
  return row(scores, r)[place.keys.count - place.queries.count + r];
}

/// scores[r][own position of r] = a_r . b_r for rows a of the place and the place's part of b [tokens x kv_heads *
/// width]; nothing where b is null.
template <class T>
void set_own(const MatrixView<T>& scores, const MatrixView<const T>& a, const MatrixView<const T>& b,
             const Place& place) noexcept {
  if (b.data == nullptr) return;
  const auto own = head(b, place.queries, place.kv_head, a.columns);
  for (std::size_t r = 0; r < scores.rows; ++r) {
    T sum = 0;
    for (std::size_t i = 0; i < a.columns; ++i) sum += row(a, r)[i] * row(own, r)[i];
    own_entry(scores, place, r) = sum;
  }
}

/// Takes the entries of own positions out of `scores`, whose products then are those with the past alone.
template <class T>
void take_own(const MatrixView<T>& scores, const Place& place, T* own) noexcept {
  for (std::size_t r = 0; r < scores.rows; ++r) {
    own[r] = own_entry(scores, place, r);
    own_entry(scores, place, r) = 0;
  }
}

/// y_r += factor[r] x_r.
template <class T>
void add_rows(const T* factors, const MatrixView<const T>& x, const MatrixView<T>& y) noexcept {
  for (std::size_t r = 0; r < y.rows; ++r) {
    for (std::size_t i = 0; i < y.columns; ++i) row(y, r)[i] += factors[r] * row(x, r)[i];
  }
}

/// Adds what ALiBi says of the distances of a place's rows from their keys.
template <class T>
void add_biases(const SequenceAttention& shape, const Place& place, const MatrixView<T>& scores) noexcept {
  if (shape.slopes.empty()) return;
  const T slope = static_cast<T>(static_cast<double>(shape.slopes[place.head]) / shape.scale);
  for (std::size_t r = 0; r < scores.rows; ++r) {
    const T own = static_cast<T>(place.keys.count - place.queries.count + r);
    for (std::size_t i = 0; i < scores.columns; ++i) row(scores, r)[i] += slope * (static_cast<T>(i) - own);
  }
}

/// The softmax weights of a place into scratch.
template <class T>
[[nodiscard]] Status weigh(const AttentionOperands<const T>& operands, const SequenceAttention& shape,
                           const Place& place, const MatrixView<T>& weights, Isa isa) noexcept {
  const std::size_t width = shape.heads.width;
  const FloatMatmulOptions<> options{.cap = isa};
  const auto q = head(operands.q, place.queries, place.head, width);
  const Status done =
      products::multiply_transposed(q, head(operands.k, place.keys, place.kv_head, width), weights, options);
  if (done) set_own(weights, q, operands.own_k, place);
  if (done) add_biases(shape, place, weights);
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

}  // namespace CBQ_ABI
}  // namespace cbq
