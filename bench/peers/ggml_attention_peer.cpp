// SPDX-License-Identifier: Apache-2.0

// ggml_flash_attn_ext of ggml and of its fork in ik_llama.cpp, over caches as llama.cpp lays them out: a row of all
// key/value heads per position, seen as [width, context, heads], and a mask. Linked with ggml_peer.cpp or
// ik_llama_peer.cpp, which have what differs between both.

#include <cmath>

#include "attention_peer.hpp"
#include "ggml_matrix.hpp"

namespace peers {
namespace {

struct Free {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};
using Context = std::unique_ptr<ggml_context, Free>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Free>;

constexpr std::size_t padding = 256;  ///< of llama.cpp's caches, in positions; the fork's kernels rely on it
constexpr std::size_t nodes = 16;     ///< room of a graph

std::int64_t signed_size(std::size_t size) {
  return static_cast<std::int64_t>(size);
}

Context make_context(std::size_t tensors, std::size_t graphs) {
  return Context(
      ggml_init({tensors * ggml_tensor_overhead() + graphs * ggml_graph_overhead_custom(nodes, false), nullptr, true}));
}

class GgmlCache final : public AttentionCache {
 public:
  GgmlCache(ggml_type type, const AttentionShape& shape, const KeysValues& floats) : type_(type), shape_(shape) {
    if (shape.context % padding != 0) throw std::runtime_error("the positions are no multiple of 256");
    row_bytes_ = ggml_row_size(type, signed_size(shape.kv_columns()));
    const std::size_t count = copy_count(bytes());
    tensors_ = make_context(2 * count + 8, 0);
    for (std::size_t i = 0; i < 2 * count; ++i) {
      copies_.push_back(
          ggml_new_tensor_2d(tensors_.get(), type, signed_size(shape.kv_columns()), signed_size(shape.context)));
    }
    memory_.reset(ggml_backend_alloc_ctx_tensors_from_buft(tensors_.get(),
                                                           ggml_backend_get_default_buffer_type(ggml::backend(1))));
    if (memory_ == nullptr) throw std::runtime_error("no memory");
    fill(floats.keys, 0);
    fill(floats.values, 1);
  }

  std::size_t bytes() const override { return 2 * shape_.context * row_bytes_; }

  void run(const AttentionCall& call) override {
    if (graphs_.call.rows != call.rows || graphs_.call.q != call.q || graphs_.call.out != call.out) make_graphs(call);
    ggml_cgraph* graph = graphs_.graphs[turn_++ % graphs_.graphs.size()];
    if (ggml_backend_graph_compute(ggml::backend(call.threads), graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("the graph failed");
  }

 private:
  struct Graphs {
    AttentionCall call;
    cbq::AlignedBuffer<ggml_fp16_t> mask;
    Context context;
    Buffer q, out, mask_buffer;
    std::vector<ggml_cgraph*> graphs;
  };

  /// Every second copy, from the one of this index on.
  void fill(const float* rows, std::size_t first) {
    std::vector<char> distinct(KeysValues::distinct * row_bytes_);
    if (type_ == GGML_TYPE_F16) {
      ggml_fp32_to_fp16_row(rows, reinterpret_cast<ggml_fp16_t*>(distinct.data()),
                            signed_size(KeysValues::distinct * shape_.kv_columns()));
    } else {
      ggml::quantize(type_, rows, distinct.data(), KeysValues::distinct, shape_.kv_columns());
    }
    for (std::size_t i = first; i < copies_.size(); i += 2) {
      static_assert(KeysValues::distinct == padding);
      for (std::size_t p = 0; p < shape_.context; p += padding) {
        ggml_backend_tensor_set(copies_[i], distinct.data(), p * row_bytes_, distinct.size());
      }
    }
  }

  ggml_tensor* heads(ggml_tensor* cache) {
    const std::size_t head_bytes = ggml_row_size(type_, signed_size(shape_.width));
    return ggml_view_3d(graphs_.context.get(), cache, signed_size(shape_.width), signed_size(shape_.context),
                        signed_size(shape_.kv_heads), row_bytes_, head_bytes, 0);
  }

  /// Rows are padded as the fork demands; null where nothing is hidden would be an easier case than llama.cpp's.
  ggml_tensor* make_mask(std::size_t rows) {
    constexpr std::size_t multiple = 64;
    const std::size_t padded = (rows + multiple - 1) / multiple * multiple;
    auto memory = cbq::AlignedBuffer<ggml_fp16_t>::allocate(padded * shape_.context);
    if (!memory) throw std::runtime_error("no memory");
    graphs_.mask = std::move(*memory);
    std::fill_n(graphs_.mask.data(), graphs_.mask.size(), ggml_fp32_to_fp16(0.0f));
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t visible = shape_.context - rows + row + 1;
      std::fill_n(graphs_.mask.data() + row * shape_.context + visible, rows - 1 - row, ggml_fp32_to_fp16(-INFINITY));
    }
    ggml_tensor* mask =
        ggml_new_tensor_2d(graphs_.context.get(), GGML_TYPE_F16, signed_size(shape_.context), signed_size(padded));
    graphs_.mask_buffer.reset(ggml_backend_cpu_buffer_from_ptr(graphs_.mask.data(), ggml_nbytes(mask)));
    ggml_backend_tensor_alloc(graphs_.mask_buffer.get(), mask, graphs_.mask.data());
    return mask;
  }

  void make_graphs(const AttentionCall& call) {
    const std::size_t count = copies_.size() / 2;
    graphs_ = {};
    graphs_.call = call;
    graphs_.context = make_context(4 * count + 8, count);
    ggml_context* context = graphs_.context.get();
    auto* queries = const_cast<float*>(call.q);
    ggml_tensor* rows = ggml_new_tensor_3d(context, GGML_TYPE_F32, signed_size(shape_.width), signed_size(shape_.heads),
                                           signed_size(call.rows));
    graphs_.q.reset(ggml_backend_cpu_buffer_from_ptr(queries, ggml_nbytes(rows)));
    graphs_.out.reset(ggml_backend_cpu_buffer_from_ptr(call.out, ggml_nbytes(rows)));
    ggml_backend_tensor_alloc(graphs_.q.get(), rows, queries);
    ggml_tensor* q = ggml_permute(context, rows, 0, 2, 1, 3);
    ggml_tensor* mask = make_mask(call.rows);
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.width));
    for (std::size_t i = 0; i < count; ++i) {
      ggml_tensor* out =
          ggml_flash_attn_ext(context, q, heads(copies_[2 * i]), heads(copies_[2 * i + 1]), mask, scale, 0.0f, 0.0f);
      ggml_backend_tensor_alloc(graphs_.out.get(), out, call.out);
      graphs_.graphs.push_back(ggml_new_graph_custom(context, nodes, false));
      ggml_build_forward_expand(graphs_.graphs.back(), out);
    }
  }

  ggml_type type_;
  AttentionShape shape_;
  std::size_t row_bytes_ = 0;
  Context tensors_;
  Buffer memory_;
  std::vector<ggml_tensor*> copies_;  ///< keys, values, keys, ...
  Graphs graphs_;
  std::size_t turn_ = 0;
};

class Ggml final : public AttentionPeer {
 public:
  std::string name() const override { return make_peer()->name(); }
  std::vector<FormatName> formats() const override { return {{"q4_0", "kv4"}, {"q8_0", "kv8"}, {"f16", "f16"}}; }
  std::unique_ptr<AttentionCache> prepare(std::size_t format, const AttentionShape& shape,
                                          const KeysValues& floats) override {
    constexpr ggml_type types[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_F16};
    return std::make_unique<GgmlCache>(types[format], shape, floats);
  }
};

}  // namespace

std::unique_ptr<AttentionPeer> make_attention_peer() {
  return std::make_unique<Ggml>();
}

}  // namespace peers
