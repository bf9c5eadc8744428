// SPDX-License-Identifier: Apache-2.0
#pragma once

// What ggml and its fork in ik_llama.cpp have in common: a graph of matrix products over the copies of one matrix, all
// from one input to one output. What differs is declared here and defined in each peer's file.

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "peer.hpp"

namespace peers::ggml {

/// A format of ggml, as it is stored or in the order that its wide kernels want.
enum class Order { plain, repacked };

struct Type {
  ggml_type type;
  Order order;
};

void quantize(ggml_type type, const float* values, void* blocks, std::size_t rows, std::size_t inputs);
void dequantize(ggml_type type, const void* blocks, float* values, std::size_t inputs);
/// Memory for weights in this order; null for the ordinary one.
ggml_backend_buffer_type_t buffer_type(Order order);
/// Called once for each filled tensor of Order::repacked; throws where the type has no such order.
void repack(ggml_tensor* tensor);
/// The CPU backend with this many threads, made once for each count.
ggml_backend_t backend(std::size_t threads);

class GgmlMatrix final : public Matrix {
 public:
  GgmlMatrix(const Type& type, const Weights& weights) : type_(type.type), n_(weights.outputs), k_(weights.inputs) {
    if (k_ % static_cast<std::size_t>(ggml_blck_size(type_)) != 0)
      throw std::runtime_error("the inputs are no multiple of the block");
    const std::size_t row_bytes = ggml_row_size(type_, static_cast<std::int64_t>(k_));
    distinct_.resize(Weights::distinct_rows * row_bytes);
    quantize(type_, weights.values, distinct_.data(), Weights::distinct_rows, k_);
    bytes_ = n_ * row_bytes;
    std::vector<char> all(bytes_);
    for (std::size_t n = 0; n < n_; ++n) {
      std::memcpy(all.data() + n * row_bytes, distinct_.data() + n % Weights::distinct_rows * row_bytes, row_bytes);
    }
    make_copies(type.order, all);
  }

  ~GgmlMatrix() override {
    graphs_ = {};
    ggml_backend_buffer_free(memory_);
    ggml_free(context_);
  }
  GgmlMatrix(const GgmlMatrix&) = delete;
  GgmlMatrix& operator=(const GgmlMatrix&) = delete;

  std::size_t bytes() const override { return bytes_; }

  void dequantize(std::size_t output, float* row) const override {
    ggml::dequantize(type_, distinct_.data() + output * (distinct_.size() / Weights::distinct_rows), row, k_);
  }

  std::size_t run(const Product& product) override {
    const Product& known = graphs_.product;
    if (known.m != product.m || known.x != product.x || known.y != product.y) make_graphs(product);
    const std::size_t turn = turn_++ % graphs_.graphs.size();
    if (ggml_backend_graph_compute(backend(product.threads), graphs_.graphs[turn]) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("the graph failed");
    return graphs_.products[turn];
  }

 private:
  /// Graphs over all copies, which share one context: the fork has 64 of them per process.
  struct Graphs {
    struct Free {
      void operator()(ggml_context* context) const { ggml_free(context); }
      void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
    };
    Product product;
    std::unique_ptr<ggml_context, Free> context;
    std::unique_ptr<ggml_backend_buffer, Free> input, output;
    std::vector<ggml_cgraph*> graphs;
    std::vector<std::size_t> products;
  };

  void make_copies(Order order, const std::vector<char>& all) {
    const std::size_t count = copy_count(bytes_);
    context_ = ggml_init({ggml_tensor_overhead() * (count + 8), nullptr, true});
    for (std::size_t i = 0; i < count; ++i) {
      copies_.push_back(
          ggml_new_tensor_2d(context_, type_, static_cast<std::int64_t>(k_), static_cast<std::int64_t>(n_)));
    }
    ggml_backend_buffer_type_t kind = buffer_type(order);
    if (kind == nullptr) kind = ggml_backend_get_default_buffer_type(backend(1));
    memory_ = ggml_backend_alloc_ctx_tensors_from_buft(context_, kind);
    if (memory_ == nullptr) throw std::runtime_error("no memory");
    for (ggml_tensor* copy : copies_) {
      ggml_backend_tensor_set(copy, all.data(), 0, all.size());
      if (order == Order::repacked) repack(copy);
    }
  }

  /// Each graph is long enough that starting it costs little.
  void make_graphs(const Product& product) {
    const double operations = 2.0 * static_cast<double>(product.m * n_ * k_);
    const auto length = static_cast<std::size_t>(std::clamp(2e9 / operations, 1.0, 1000.0));
    const std::size_t count = (copies_.size() + length - 1) / length;
    graphs_ = {};
    graphs_.product = product;
    graphs_.context.reset(ggml_init(
        {ggml_tensor_overhead() * (copies_.size() + 8) + count * ggml_graph_overhead_custom(length + 8, false), nullptr,
         true}));
    ggml_context* context = graphs_.context.get();
    ggml_tensor* x =
        ggml_new_tensor_2d(context, GGML_TYPE_F32, static_cast<std::int64_t>(k_), static_cast<std::int64_t>(product.m));
    graphs_.input.reset(ggml_backend_cpu_buffer_from_ptr(const_cast<float*>(product.x), ggml_nbytes(x)));
    graphs_.output.reset(ggml_backend_cpu_buffer_from_ptr(product.y, product.m * n_ * sizeof(float)));
    ggml_backend_tensor_alloc(graphs_.input.get(), x, const_cast<float*>(product.x));
    for (std::size_t i = 0; i < copies_.size(); ++i) {
      if (i % length == 0) {
        graphs_.graphs.push_back(ggml_new_graph_custom(context, length + 8, false));
        graphs_.products.push_back(std::min(length, copies_.size() - i));
      }
      ggml_tensor* y = ggml_mul_mat(context, copies_[i], x);
      ggml_backend_tensor_alloc(graphs_.output.get(), y, product.y);
      ggml_build_forward_expand(graphs_.graphs.back(), y);
    }
  }

  ggml_type type_;
  std::size_t n_ = 0, k_ = 0, bytes_ = 0;
  std::vector<char> distinct_;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t memory_ = nullptr;
  std::vector<ggml_tensor*> copies_;
  Graphs graphs_;
  std::size_t turn_ = 0;
};

}  // namespace peers::ggml
