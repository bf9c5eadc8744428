// SPDX-License-Identifier: Apache-2.0

// ik_llama.cpp's fork of ggml, with its own kernels and row-interleaved formats.

#include <iqk_quantize.h>

#include "ggml_matrix.hpp"

namespace peers {
namespace ggml {

void quantize(ggml_type type, const float* values, void* blocks, std::size_t rows, std::size_t inputs) {
  ggml_quantize_chunk(type, values, blocks, 0, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(inputs),
                      nullptr, nullptr);
}

void dequantize(ggml_type type, const void* blocks, float* values, std::size_t inputs) {
  ggml_internal_get_type_traits(type).to_float(blocks, values, static_cast<std::int64_t>(inputs));
}

ggml_backend_buffer_type_t buffer_type(Order) {
  return nullptr;
}

void repack(ggml_tensor* tensor) {
  const ggml_type before = tensor->type;
  iqk_repack_tensor(tensor);
  if (tensor->type == before) throw std::runtime_error("the format has no repacked form for this shape");
}

ggml_backend_t backend(std::size_t threads) {
  static std::map<std::size_t, ggml_backend_t> made;
  ggml_backend_t& backend = made[threads];
  if (backend == nullptr) {
    backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, static_cast<int>(threads));
  }
  return backend;
}

namespace {

class IkLlama final : public Peer {
 public:
  std::string name() const override { return "ik_llama.cpp"; }

  std::vector<Format> formats() const override {
    return {{"Q4_0_R8", "w4_g32"}, {"Q4_0", "w4_g32"}, {"IQ4_KS", "w4_g128"}, {"Q4_K_R4", "w4_g128"},
            {"Q2_K_R4", "w2"},     {"Q2_K", "w2"},     {"IQ2_KS", "w2"},      {"Q8_0_R8", "w8"}};
  }

  std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) override {
    constexpr Type types[] = {{GGML_TYPE_Q4_0, Order::repacked}, {GGML_TYPE_Q4_0, Order::plain},
                              {GGML_TYPE_IQ4_KS, Order::plain},  {GGML_TYPE_Q4_K, Order::repacked},
                              {GGML_TYPE_Q2_K, Order::repacked}, {GGML_TYPE_Q2_K, Order::plain},
                              {GGML_TYPE_IQ2_KS, Order::plain},  {GGML_TYPE_Q8_0, Order::repacked}};
    return std::make_unique<GgmlMatrix>(types[format], weights);
  }
};

}  // namespace
}  // namespace ggml

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<ggml::IkLlama>();
}

}  // namespace peers
