// SPDX-License-Identifier: Apache-2.0
#pragma once

// What ggml and its fork in ik_llama.cpp have in common: a graph of matrix products over the copies of one matrix, all
// from one input to one output. What differs is declared here and defined in each peer's file.

#include <ggml-alloc.h>
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
    graphs_.clear();
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
    std::vector<Graph>& graphs = graphs_for(product);
    const Graph& graph = graphs[turn_++ % graphs.size()];
    if (ggml_backend_graph_compute(backend(product.threads), graph.graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("the graph failed");
    return graph.products;
  }

 private:
  struct Graph {
    struct Free {
      void operator()(ggml_context* context) const { ggml_free(context); }
    };
    std::unique_ptr<ggml_context, Free> context;
    std::shared_ptr<ggml_backend_buffer> input, output;
    ggml_cgraph* graph = nullptr;
    std::size_t products = 0;
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

  /// Graphs that together visit every copy; each is long enough that starting it costs little.
  std::vector<Graph>& graphs_for(const Product& product) {
    if (graphs_m_ != product.m || graphs_x_ != product.x || graphs_y_ != product.y) graphs_.clear();
    if (graphs_.empty()) {
      graphs_m_ = product.m;
      graphs_x_ = product.x;
      graphs_y_ = product.y;
      const double operations = 2.0 * static_cast<double>(product.m * n_ * k_);
      const auto length = static_cast<std::size_t>(std::clamp(2e9 / operations, 1.0, 1000.0));
      for (std::size_t first = 0; first < copies_.size(); first += length) {
        graphs_.push_back(make_graph(product, first, std::min(length, copies_.size() - first)));
      }
    }
    return graphs_;
  }

  Graph make_graph(const Product& product, std::size_t first, std::size_t count) const {
    const auto extent = [](std::size_t size) { return static_cast<std::int64_t>(size); };
    const auto place = [](ggml_tensor* tensor, const float* memory) {
      void* at = const_cast<float*>(memory);
      auto* buffer = ggml_backend_cpu_buffer_from_ptr(at, ggml_nbytes(tensor));
      ggml_backend_tensor_alloc(buffer, tensor, at);
      return buffer;
    };
    Graph graph;
    graph.products = count;
    graph.context.reset(ggml_init(
        {ggml_tensor_overhead() * (count + 8) + ggml_graph_overhead_custom(count + 8, false), nullptr, true}));
    ggml_context* context = graph.context.get();
    graph.graph = ggml_new_graph_custom(context, count + 8, false);
    ggml_tensor* x = ggml_new_tensor_2d(context, GGML_TYPE_F32, extent(k_), extent(product.m));
    graph.input.reset(place(x, product.x), &ggml_backend_buffer_free);
    for (std::size_t i = 0; i < count; ++i) {
      ggml_tensor* y = ggml_mul_mat(context, copies_[first + i], x);
      if (graph.output) {
        ggml_backend_tensor_alloc(graph.output.get(), y, product.y);
      } else {
        graph.output.reset(place(y, product.y), &ggml_backend_buffer_free);
      }
      ggml_build_forward_expand(graph.graph, y);
    }
    return graph;
  }

  ggml_type type_;
  std::size_t n_ = 0, k_ = 0, bytes_ = 0;
  std::vector<char> distinct_;
  ggml_context* context_ = nullptr;
  ggml_backend_buffer_t memory_ = nullptr;
  std::vector<ggml_tensor*> copies_;
  std::vector<Graph> graphs_;
  std::size_t graphs_m_ = 0, turn_ = 0;
  const float* graphs_x_ = nullptr;
  const float* graphs_y_ = nullptr;
};

}  // namespace peers::ggml
