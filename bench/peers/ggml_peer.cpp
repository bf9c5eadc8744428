// SPDX-License-Identifier: Apache-2.0

// ggml, the library of llama.cpp, with its repacked formats where it has them.

#include <ggml-cpu.h>

#include "ggml_matrix.hpp"

namespace peers {
namespace ggml {

void quantize(ggml_type type, const float* values, void* blocks, std::size_t rows, std::size_t inputs) {
  ggml_quantize_chunk(type, values, blocks, 0, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(inputs),
                      nullptr);
}

void dequantize(ggml_type type, const void* blocks, float* values, std::size_t inputs) {
  ggml_get_type_traits(type)->to_float(blocks, values, static_cast<std::int64_t>(inputs));
}

ggml_backend_buffer_type_t buffer_type(Order order) {
  if (order == Order::plain) return nullptr;
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  const auto list = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  if (list == nullptr) throw std::runtime_error("this build repacks nothing");
  for (ggml_backend_buffer_type_t* kind = list(device); kind != nullptr && *kind != nullptr; ++kind) {
    if (std::strstr(ggml_backend_buft_name(*kind), "REPACK") != nullptr) return *kind;
  }
  throw std::runtime_error("this build repacks nothing");
}

void repack(ggml_tensor* tensor) {
  // Its buffer repacks what is copied into it, and notes that here.
  if (tensor->extra == nullptr) throw std::runtime_error("the format has no repacked form on this processor");
}

ggml_backend_t backend(std::size_t threads) {
  static std::map<std::size_t, ggml_backend_t> made;
  ggml_backend_t& backend = made[threads];
  if (backend == nullptr) {
    backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, static_cast<int>(threads));
    ggml_threadpool_params params = ggml_threadpool_params_default(static_cast<int>(threads));
    params.poll = 100;
    ggml_backend_cpu_set_threadpool(backend, ggml_threadpool_new(&params));
  }
  return backend;
}

namespace {

class Ggml final : public Peer {
 public:
  std::string name() const override { return std::string("ggml ") + ggml_version(); }

  std::vector<Format> formats() const override {
    return {{"Q4_0 repacked", "w4_g32"}, {"Q4_0", "w4_g32"}, {"Q4_K repacked", "w4_g128"},
            {"Q2_K repacked", "w2"},     {"Q2_K", "w2"},     {"Q8_0", "w8"}};
  }

  std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) override {
    constexpr Type types[] = {{GGML_TYPE_Q4_0, Order::repacked}, {GGML_TYPE_Q4_0, Order::plain},
                              {GGML_TYPE_Q4_K, Order::repacked}, {GGML_TYPE_Q2_K, Order::repacked},
                              {GGML_TYPE_Q2_K, Order::plain},    {GGML_TYPE_Q8_0, Order::plain}};
    return std::make_unique<GgmlMatrix>(types[format], weights);
  }
};

}  // namespace
}  // namespace ggml

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<ggml::Ggml>();
}

}  // namespace peers
