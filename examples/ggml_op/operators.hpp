// SPDX-License-Identifier: Apache-2.0
#pragma once

// Two operators of cbq for graphs of ggml. Memory is the host's: packed weights lie in a tensor of bytes, in whatever
// buffer ggml keeps it; pages of keys and values lie in the host's pool. An operator cannot report an error to ggml: it
// fills its result with NaN, and status() says why.

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <span>

#include <cbq/gemm.hpp>
#include <cbq/io/gguf_packing.hpp>
#include <cbq/kv/packed_attention.hpp>

#include "team.hpp"

namespace cbq_ggml {

inline std::int64_t signed_size(std::size_t size) {
  return static_cast<std::int64_t>(size);
}

inline std::size_t size_at(const ggml_tensor* tensor, int dimension) {
  return static_cast<std::size_t>(tensor->ne[dimension]);
}

/// Rows of a tensor of floats as cbq sees them; further dimensions are more rows.
inline cbq::MatrixView<float> rows_of(const ggml_tensor* tensor) {
  const auto rows = static_cast<std::size_t>(ggml_nrows(tensor));
  return cbq::matrix_view(static_cast<float*>(tensor->data), rows, size_at(tensor, 0));
}

/// What both operators share: ggml's threads, and the first error.
class Operator {
 public:
  [[nodiscard]] const cbq::Status& status() const { return status_; }

 protected:
  /// To be called by all threads; `body(executor)` returns a status.
  template <class Body>
  void run(ggml_tensor* out, int index, int threads, const Body& body) {
    team_.run(index, threads, [&](const TeamExecutor& executor) {
      const cbq::Status done = body(executor);
      if (done) return;
      if (status_) status_ = done;
      const cbq::MatrixView<float> y = rows_of(out);
      std::fill_n(y.data, y.rows * y.columns, std::nanf(""));
    });
  }

 private:
  Team team_;
  cbq::Status status_;
};

/// y = x W^T with W in Q4_0 blocks that are packed for cbq once: 8-bit activations, one scale per token.
class PackedMatmul : public Operator {
 public:
  static constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g32;

  /// Bytes that a tensor of GGML_TYPE_I8 needs for these weights.
  static cbq::Result<std::size_t> bytes(std::size_t outputs, std::size_t inputs) {
    return cbq::packed_size<scheme>(outputs, inputs);
  }

  /// Packs the blocks of a Q4_0 tensor, code for code, into `packed`. `tokens`: rows of x at most.
  static cbq::Result<std::unique_ptr<PackedMatmul>> create(const ggml_tensor* q4_0, ggml_tensor* packed,
                                                           std::size_t tokens) {
    const std::size_t inputs = size_at(q4_0, 0);
    const std::size_t outputs = size_at(q4_0, 1);
    const cbq::GgufTensor blocks{.name = q4_0->name,
                                 .type = cbq::GgufType::q4_0,
                                 .shape = {.rank = 2, .sizes = {outputs, inputs}},
                                 .bytes = {static_cast<const std::byte*>(q4_0->data), ggml_nbytes(q4_0)}};
    const auto weights = cbq::pack_gguf<scheme>(blocks, {static_cast<std::byte*>(packed->data), ggml_nbytes(packed)});
    if (!weights) return weights.error();
    const auto size = cbq::activations_size<scheme>(tokens, inputs);
    if (!size) return size.error();
    auto activations = cbq::AlignedBuffer<std::byte>::allocate(*size);
    if (!activations) return activations.error();
    auto made = std::make_unique<PackedMatmul>();
    made->packed_ = packed;
    made->weights_ = *weights;
    made->activations_ = *std::move(activations);
    return made;
  }

  /// Adds the operator to a graph: x [inputs, tokens] of floats without gaps to [outputs, tokens].
  ggml_tensor* build(ggml_context* context, ggml_tensor* x) {
    ggml_tensor* args[] = {x, packed_};
    return ggml_custom_4d(context, GGML_TYPE_F32, signed_size(weights_.layout.outputs), x->ne[1], 1, 1, args, 2,
                          compute, GGML_N_TASKS_MAX, this);
  }

 private:
  static void compute(ggml_tensor* y, int index, int threads, void* self) {
    static_cast<PackedMatmul*>(self)->multiply(y, index, threads);
  }

  void multiply(ggml_tensor* y, int index, int threads) {
    run(y, index, threads, [&](const TeamExecutor& executor) -> cbq::Status {
      const std::span<std::byte> memory(activations_.data(), activations_.size());
      const auto x = cbq::quantize_activations<scheme>(cbq::as_const(rows_of(y->src[0])), memory, executor);
      if (!x) return x.error();
      return cbq::matmul(*x, weights_, rows_of(y), {}, executor);
    });
  }

  ggml_tensor* packed_ = nullptr;
  cbq::PackedWeightsView<scheme> weights_ = {};
  cbq::AlignedBuffer<std::byte> activations_;
};

/// Causal attention of the last positions over a packed cache, in place of ggml_flash_attn_ext and its mask.
class PackedAttention : public Operator {
 public:
  /// The view must be kept current by whoever appends to the cache.
  explicit PackedAttention(const cbq::QuantizedKvView& cache) : cache_(cache) {}

  /// Adds the operator to a graph: q [width, heads, tokens] of floats without gaps to a result of the same shape.
  ggml_tensor* build(ggml_context* context, ggml_tensor* q) {
    ggml_tensor* args[] = {q};
    return ggml_custom_4d(context, GGML_TYPE_F32, q->ne[0], q->ne[1], q->ne[2], 1, args, 1, compute, GGML_N_TASKS_MAX,
                          this);
  }

 private:
  static void compute(ggml_tensor* out, int index, int threads, void* self) {
    static_cast<PackedAttention*>(self)->attend(out, index, threads);
  }

  void attend(ggml_tensor* out, int index, int threads) {
    run(out, index, threads, [&](const TeamExecutor& executor) {
      // Where the executor lies changes from call to call, the workspace stays.
      if (!context_ || threads != threads_) context_.emplace(executor_.emplace(executor));
      threads_ = threads;
      const std::size_t tokens = size_at(out, 2);
      const std::size_t columns = size_at(out, 0) * size_at(out, 1);
      const float scale = 1.0f / std::sqrt(static_cast<float>(size_at(out, 0)));
      const auto q = cbq::matrix_view(static_cast<const float*>(out->src[0]->data), tokens, columns);
      const auto y = cbq::matrix_view(static_cast<float*>(out->data), tokens, columns);
      return cbq::attend(q, cache_, scale, y, *context_);
    });
  }

  cbq::QuantizedKvView cache_;
  int threads_ = 0;
  std::optional<TeamExecutor> executor_;
  std::optional<cbq::ExecutionContext<TeamExecutor>> context_;
};

}  // namespace cbq_ggml
