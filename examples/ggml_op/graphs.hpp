// SPDX-License-Identifier: Apache-2.0
#pragma once

// Owners for what ggml hands out: contexts, buffers, and the CPU backend with some threads.

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include <cstring>
#include <memory>
#include <stdexcept>

namespace cbq_ggml {

struct Free {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
  void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
  void operator()(ggml_threadpool* threads) const { ggml_threadpool_free(threads); }
};

/// Descriptions of tensors, and a buffer for what they hold.
class Tensors {
 public:
  explicit Tensors(std::size_t count)
      : context_(ggml_init({count * ggml_tensor_overhead() + graph_bytes, nullptr, true})) {
    if (context_ == nullptr) throw std::runtime_error("no memory");
  }

  [[nodiscard]] ggml_context* context() const { return context_.get(); }

  /// Memory for all tensors described so far that have none.
  void allocate(ggml_backend_buffer_type_t type) {
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context(), type));
    if (buffer_ == nullptr) throw std::runtime_error("no memory");
  }

  [[nodiscard]] ggml_cgraph* graph() const { return ggml_new_graph_custom(context(), nodes, false); }

 private:
  static constexpr std::size_t nodes = 64;
  static constexpr std::size_t graph_bytes = 1 << 16;
  std::unique_ptr<ggml_context, Free> context_;
  std::unique_ptr<ggml_backend_buffer, Free> buffer_;
};

/// ggml's CPU backend with threads that wait by polling between graphs, too.
class Backend {
 public:
  explicit Backend(int threads) : backend_(ggml_backend_cpu_init()) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    params.poll = 100;
    threads_.reset(ggml_threadpool_new(&params));
    ggml_backend_cpu_set_n_threads(backend_.get(), threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), threads_.get());
  }

  void compute(ggml_cgraph* graph) {
    if (ggml_backend_graph_compute(backend_.get(), graph) != GGML_STATUS_SUCCESS)
      throw std::runtime_error("the graph failed");
  }

 private:
  std::unique_ptr<ggml_backend, Free> backend_;
  std::unique_ptr<ggml_threadpool, Free> threads_;
};

/// The buffers in which ggml keeps weights in the order of its wide kernels; null where it has none.
inline ggml_backend_buffer_type_t repacking_buffers() {
  ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  const auto list = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
  if (list == nullptr) return nullptr;
  for (ggml_backend_buffer_type_t* kind = list(device); kind != nullptr && *kind != nullptr; ++kind) {
    if (std::strstr(ggml_backend_buft_name(*kind), "REPACK") != nullptr) return *kind;
  }
  return nullptr;
}

}  // namespace cbq_ggml
