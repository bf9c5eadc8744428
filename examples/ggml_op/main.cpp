// SPDX-License-Identifier: Apache-2.0

// cbq's packed matmul and its attention over a packed cache as operators in graphs of ggml, beside ggml's own on the
// same Q4_0 codes and on a q4_0 cache: how far results are apart, and how long both take.
//   ggml_op [THREADS]     checks and times at the sizes of a 7B model
//   ggml_op check         only checks, at small sizes

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <cbq/kv.hpp>

#include "graphs.hpp"
#include "operators.hpp"

namespace cbq_ggml {
namespace {

void expect(const cbq::Status& status) {
  if (status) return;
  std::string message;
  cbq::append_message(message, status.error());
  throw std::runtime_error(message);
}

template <class T>
T expect(cbq::Result<T> result) {
  if (!result) expect(cbq::Status(result.error()));
  return *std::move(result);
}

std::vector<float> normal_numbers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  std::generate(numbers.begin(), numbers.end(), [&] { return normal(random); });
  return numbers;
}

std::vector<char> q4_0_blocks(const std::vector<float>& values, std::size_t columns) {
  const std::size_t rows = values.size() / columns;
  std::vector<char> blocks(rows * ggml_row_size(GGML_TYPE_Q4_0, signed_size(columns)));
  ggml_quantize_chunk(GGML_TYPE_Q4_0, values.data(), blocks.data(), 0, signed_size(rows), signed_size(columns),
                      nullptr);
  return blocks;
}

std::vector<float> values_of(const ggml_tensor* tensor) {
  std::vector<float> values(static_cast<std::size_t>(ggml_nelements(tensor)));
  ggml_backend_tensor_get(tensor, values.data(), 0, ggml_nbytes(tensor));
  return values;
}

/// Root of the mean square of a - b, in percent of that of b.
template <class A, class B>
double percent_apart(const A& a, const B& b) {
  double difference = 0.0, whole = 0.0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double exact = static_cast<double>(b[i]);
    difference += (static_cast<double>(a[i]) - exact) * (static_cast<double>(a[i]) - exact);
    whole += exact * exact;
  }
  return 100.0 * std::sqrt(difference / whole);
}

/// Graphs that are timed against each other; each holds the same operator `products` times, over other memory.
struct Contender {
  std::string name;
  ggml_cgraph* graph = nullptr;
};

/// Medians of microseconds per operator, of graphs that take turns.
std::vector<double> time_in_turns(const std::vector<Contender>& contenders, std::size_t products, Backend& backend) {
  constexpr std::size_t rounds = 21;
  std::vector<std::vector<double>> times(contenders.size());
  for (std::size_t round = 0; round <= rounds; ++round) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      backend.compute(contenders[i].graph);
      const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
      if (round != 0) times[i].push_back(taken.count() / static_cast<double>(products));
    }
  }
  std::vector<double> medians;
  for (std::vector<double>& each : times) {
    std::nth_element(each.begin(), each.begin() + rounds / 2, each.end());
    medians.push_back(each[rounds / 2]);
  }
  return medians;
}

void print_times(const char* what, const std::vector<Contender>& contenders, const std::vector<double>& times) {
  std::printf("%s:", what);
  for (std::size_t i = 0; i < times.size(); ++i) {
    std::printf("%s %s %.0f us", i == 0 ? "" : ",", contenders[i].name.c_str(), times[i]);
    if (i != 0) std::printf(" (%.2f times as long)", times[i] / times[0]);
  }
  std::printf("\n");
}

/// Computes a graph with 1, 2 and 3 threads; whether `result` is the same bits each time.
bool same_bits(ggml_cgraph* graph, const ggml_tensor* result) {
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 3}) {
    Backend backend(threads);
    backend.compute(graph);
    results.push_back(values_of(result));
  }
  const auto equal = [&](const std::vector<float>& other) {
    return std::memcmp(other.data(), results[0].data(), other.size() * sizeof(float)) == 0;
  };
  return std::all_of(results.begin(), results.end(), equal);
}

// ---- products ----

/// One matrix of Q4_0 blocks, as ggml keeps it and packed for cbq, some times each.
class Matrices {
 public:
  Matrices(std::size_t outputs, std::size_t inputs, std::size_t tokens, std::size_t copies)
      : values_(normal_numbers(outputs * inputs, 1)), plain_(2 * copies), repacked_(copies) {
    const std::vector<char> blocks = q4_0_blocks(values_, inputs);
    ggml_get_type_traits(GGML_TYPE_Q4_0)->to_float(blocks.data(), values_.data(), signed_size(values_.size()));
    const auto add = [&](const Tensors& tensors) {
      return ggml_new_tensor_2d(tensors.context(), GGML_TYPE_Q4_0, signed_size(inputs), signed_size(outputs));
    };
    const std::size_t bytes = expect(PackedMatmul::bytes(outputs, inputs));
    std::vector<ggml_tensor*> packed;
    for (std::size_t i = 0; i < copies; ++i) {
      own.push_back(add(plain_));
      packed.push_back(ggml_new_tensor_1d(plain_.context(), GGML_TYPE_I8, signed_size(bytes)));
      repacked.push_back(add(repacked_));
    }
    plain_.allocate(ggml_backend_cpu_buffer_type());
    if (ggml_backend_buffer_type_t type = repacking_buffers(); type != nullptr) {
      repacked_.allocate(type);
    } else {
      repacked.clear();
    }
    for (ggml_tensor* tensor : own) ggml_backend_tensor_set(tensor, blocks.data(), 0, blocks.size());
    for (ggml_tensor* tensor : repacked) ggml_backend_tensor_set(tensor, blocks.data(), 0, blocks.size());
    for (std::size_t i = 0; i < copies; ++i)
      operators.push_back(expect(PackedMatmul::create(own[i], packed[i], tokens)));
  }

  /// What the codes stand for, outputs x inputs.
  [[nodiscard]] const std::vector<float>& values() const { return values_; }

  std::vector<ggml_tensor*> own;
  std::vector<ggml_tensor*> repacked;  ///< none where ggml was built without
  std::vector<std::unique_ptr<PackedMatmul>> operators;

 private:
  std::vector<float> values_;
  Tensors plain_, repacked_;
};

ggml_tensor* new_input(const Tensors& tensors, std::size_t columns, std::size_t rows) {
  return ggml_new_tensor_2d(tensors.context(), GGML_TYPE_F32, signed_size(columns), signed_size(rows));
}

void set_normal(ggml_tensor* tensor, unsigned seed) {
  const std::vector<float> numbers = normal_numbers(static_cast<std::size_t>(ggml_nelements(tensor)), seed);
  ggml_backend_tensor_set(tensor, numbers.data(), 0, ggml_nbytes(tensor));
}

/// x W^T in double precision.
std::vector<double> exact_product(const std::vector<float>& x, const std::vector<float>& w, std::size_t inputs) {
  const std::size_t outputs = w.size() / inputs;
  std::vector<double> y(x.size() / inputs * outputs);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const float* a = &x[i / outputs * inputs];
    const float* b = &w[i % outputs * inputs];
    for (std::size_t k = 0; k < inputs; ++k) y[i] += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  }
  return y;
}

/// A graph in which both products stand between operators of ggml. False where one is wrong.
bool check_matmul(std::size_t outputs, std::size_t inputs, std::size_t tokens) {
  const Matrices matrices(outputs, inputs, tokens, 1);
  Tensors tensors(16);
  ggml_tensor* input = new_input(tensors, inputs, tokens);
  ggml_tensor* x = ggml_rms_norm(tensors.context(), input, 1e-5f);
  ggml_tensor* y = matrices.operators[0]->build(tensors.context(), x);
  ggml_tensor* reference = ggml_mul_mat(tensors.context(), matrices.own[0], x);
  ggml_tensor* difference = ggml_sub(tensors.context(), y, reference);
  ggml_cgraph* graph = tensors.graph();
  ggml_build_forward_expand(graph, difference);
  tensors.allocate(ggml_backend_cpu_buffer_type());
  set_normal(input, 2);
  const bool same = same_bits(graph, y);
  expect(matrices.operators[0]->status());
  const std::vector<double> exact = exact_product(values_of(x), matrices.values(), inputs);
  const double apart = percent_apart(values_of(y), values_of(reference));
  const double cbq_error = percent_apart(values_of(y), exact);
  const double ggml_error = percent_apart(values_of(reference), exact);
  std::printf(
      "matmul, %zu x %zu, %zu tokens: cbq and ggml differ by %.2f %%; from the exact product of the same codes cbq "
      "by %.2f %%, ggml by %.2f %%; 1, 2 and 3 threads: %s\n",
      outputs, inputs, tokens, apart, cbq_error, ggml_error, same ? "the same bits" : "OTHER BITS");
  // 8-bit activations of a normal distribution: a scale per token errs by 1 %, a scale per 32 by half of it.
  return same && cbq_error < 1.5 && ggml_error < 1.5 && apart < 2.0;
}

void time_matmul(std::size_t tokens, std::size_t copies, Backend& backend) {
  constexpr std::size_t size = 4096;
  const Matrices matrices(size, size, tokens, copies);
  Tensors tensors(4 * copies + 4);
  ggml_tensor* x = new_input(tensors, size, tokens);
  std::vector<Contender> contenders{{"cbq", tensors.graph()}, {"ggml", tensors.graph()}};
  if (!matrices.repacked.empty()) contenders.push_back({"ggml repacked", tensors.graph()});
  for (std::size_t i = 0; i < copies; ++i) {
    ggml_build_forward_expand(contenders[0].graph, matrices.operators[i]->build(tensors.context(), x));
    ggml_build_forward_expand(contenders[1].graph, ggml_mul_mat(tensors.context(), matrices.own[i], x));
    if (matrices.repacked.empty()) continue;
    ggml_build_forward_expand(contenders[2].graph, ggml_mul_mat(tensors.context(), matrices.repacked[i], x));
  }
  tensors.allocate(ggml_backend_cpu_buffer_type());
  set_normal(x, 2);
  const std::string what = "matmul, 4096 x 4096, " + std::to_string(tokens) + (tokens == 1 ? " token" : " tokens");
  print_times(what.c_str(), contenders, time_in_turns(contenders, copies, backend));
}

// ---- attention ----

struct Shape {
  std::size_t heads = 0, kv_heads = 0, width = 0, context = 0;
  [[nodiscard]] std::size_t columns() const { return heads * width; }
  [[nodiscard]] std::size_t kv_columns() const { return kv_heads * width; }
};

/// One sequence's keys and values: in q4_0 as llama.cpp lays them out, and in cbq's pages; some times each.
class Caches {
 public:
  Caches(const Shape& shape, std::size_t copies)
      : keys(normal_numbers(shape.context * shape.kv_columns(), 3)),
        values(normal_numbers(shape.context * shape.kv_columns(), 4)),
        shape_(shape),
        tensors_(2 * copies) {
    for (std::size_t i = 0; i < 2 * copies; ++i) {
      own_.push_back(ggml_new_tensor_2d(tensors_.context(), GGML_TYPE_Q4_0, signed_size(shape.kv_columns()),
                                        signed_size(shape.context)));
    }
    tensors_.allocate(ggml_backend_cpu_buffer_type());
    const std::vector<char> blocks[] = {q4_0_blocks(keys, shape.kv_columns()), q4_0_blocks(values, shape.kv_columns())};
    for (std::size_t i = 0; i < 2 * copies; ++i) {
      ggml_backend_tensor_set(own_[i], blocks[i % 2].data(), 0, blocks[i % 2].size());
    }
    fill_pages(copies);
  }

  /// ggml's attention of q [width, heads, tokens] over copy `index`.
  ggml_tensor* flash_attention(ggml_context* context, ggml_tensor* q, ggml_tensor* mask, std::size_t index) const {
    const auto heads = [&](ggml_tensor* rows) {
      return ggml_view_3d(context, rows, signed_size(shape_.width), signed_size(shape_.context),
                          signed_size(shape_.kv_heads), rows->nb[1],
                          ggml_row_size(GGML_TYPE_Q4_0, signed_size(shape_.width)), 0);
    };
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.width));
    return ggml_flash_attn_ext(context, ggml_permute(context, q, 0, 2, 1, 3), heads(own_[2 * index]),
                               heads(own_[2 * index + 1]), mask, scale, 0.0f, 0.0f);
  }

  std::vector<float> keys, values;
  std::vector<std::unique_ptr<PackedAttention>> operators;

 private:
  void fill_pages(std::size_t copies) {
    constexpr std::size_t rows = 256;
    const cbq::KvScheme scheme = expect(cbq::parse_kv_scheme("kv4"));
    const auto layout = expect(cbq::kv_layout(scheme, shape_.kv_heads, shape_.width));
    const std::size_t pages = copies * cbq::divide_up(shape_.context, cbq::kv_page_positions);
    memory_ = expect(cbq::AlignedBuffer<std::byte>::allocate(pages * layout.page_bytes));
    pool_.emplace(expect(cbq::KvPagePool::create({memory_.data(), memory_.size()}, layout.page_bytes)));
    const auto all_keys = cbq::matrix_view<const float>(keys.data(), shape_.context, shape_.kv_columns());
    const auto all_values = cbq::matrix_view<const float>(values.data(), shape_.context, shape_.kv_columns());
    for (std::size_t i = 0; i < copies; ++i) {
      pages_.push_back(expect(cbq::QuantizedKvCache::create(*pool_, {.scheme = scheme,
                                                                     .heads = shape_.kv_heads,
                                                                     .width = shape_.width,
                                                                     .capacity = shape_.context,
                                                                     .largest_append = rows})));
      for (std::size_t p = 0; p < shape_.context; p += rows) {
        expect(pages_.back().append(cbq::rows(all_keys, p, rows), cbq::rows(all_values, p, rows)));
      }
    }
    for (const cbq::QuantizedKvCache& cache : pages_)
      operators.push_back(std::make_unique<PackedAttention>(cache.view()));
  }

  Shape shape_;
  Tensors tensors_;
  std::vector<ggml_tensor*> own_;  ///< keys, values, keys, ...
  cbq::AlignedBuffer<std::byte> memory_;
  std::optional<cbq::KvPagePool> pool_;
  std::vector<cbq::QuantizedKvCache> pages_;
};

/// Which positions each of the last `tokens` queries sees, as ggml wants to know it.
void set_causal(ggml_tensor* mask) {
  const std::size_t context = size_at(mask, 0);
  const std::size_t tokens = size_at(mask, 1);
  std::vector<ggml_fp16_t> seen(context * tokens, ggml_fp32_to_fp16(0.0f));
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t visible = context - tokens + t + 1;
    std::fill_n(seen.begin() + signed_size(t * context + visible), tokens - 1 - t, ggml_fp32_to_fp16(-INFINITY));
  }
  ggml_backend_tensor_set(mask, seen.data(), 0, ggml_nbytes(mask));
}

/// Attention in double precision over what was stored, before any rounding.
std::vector<double> exact_attention(const std::vector<float>& q, const Caches& caches, const Shape& shape) {
  const std::size_t tokens = q.size() / shape.columns();
  std::vector<double> out(q.size());
  std::vector<double> weights(shape.context);
  for (std::size_t i = 0; i < tokens * shape.heads; ++i) {
    const std::size_t column = i % shape.heads / (shape.heads / shape.kv_heads) * shape.width;
    const std::size_t visible = shape.context - tokens + i / shape.heads + 1;
    double sum = 0.0;
    for (std::size_t p = 0; p < visible; ++p) {
      const float* key = &caches.keys[p * shape.kv_columns() + column];
      double score = 0.0;
      for (std::size_t d = 0; d < shape.width; ++d)
        score += static_cast<double>(q[i * shape.width + d]) * static_cast<double>(key[d]);
      weights[p] = std::exp(score / std::sqrt(static_cast<double>(shape.width)));
      sum += weights[p];
    }
    for (std::size_t p = 0; p < visible; ++p) {
      const float* value = &caches.values[p * shape.kv_columns() + column];
      for (std::size_t d = 0; d < shape.width; ++d)
        out[i * shape.width + d] += weights[p] / sum * static_cast<double>(value[d]);
    }
  }
  return out;
}

/// Queries and mask of a graph over caches.
struct Queries {
  ggml_tensor* q = nullptr;
  ggml_tensor* mask = nullptr;

  Queries(const Tensors& tensors, const Shape& shape, std::size_t tokens)
      : q(ggml_new_tensor_3d(tensors.context(), GGML_TYPE_F32, signed_size(shape.width), signed_size(shape.heads),
                             signed_size(tokens))),
        mask(ggml_new_tensor_2d(tensors.context(), GGML_TYPE_F16, signed_size(shape.context), signed_size(tokens))) {}

  void set() const {
    set_normal(q, 5);
    set_causal(mask);
  }
};

bool check_attention(const Shape& shape, std::size_t tokens) {
  const Caches caches(shape, 1);
  Tensors tensors(16);
  const Queries queries(tensors, shape, tokens);
  ggml_tensor* out = caches.operators[0]->build(tensors.context(), queries.q);
  ggml_tensor* reference = caches.flash_attention(tensors.context(), queries.q, queries.mask, 0);
  ggml_tensor* difference = ggml_sub(tensors.context(), out, reference);
  ggml_cgraph* graph = tensors.graph();
  ggml_build_forward_expand(graph, difference);
  tensors.allocate(ggml_backend_cpu_buffer_type());
  queries.set();
  const bool same = same_bits(graph, out);
  expect(caches.operators[0]->status());
  const std::vector<double> exact = exact_attention(values_of(queries.q), caches, shape);
  const double cbq_error = percent_apart(values_of(out), exact);
  const double ggml_error = percent_apart(values_of(reference), exact);
  std::printf(
      "attention, %zu heads over %zu of %zu, %zu positions, %zu tokens: from exact attention over the unquantized "
      "cache cbq differs by %.1f %%, ggml by %.1f %%; 1, 2 and 3 threads: %s\n",
      shape.heads, shape.kv_heads, shape.width, shape.context, tokens, cbq_error, ggml_error,
      same ? "the same bits" : "OTHER BITS");
  return same && cbq_error < 30.0 && ggml_error < 30.0;
}

void time_attention(const Shape& shape, std::size_t copies, Backend& backend) {
  const Caches caches(shape, copies);
  Tensors tensors(8 * copies + 8);
  const Queries queries(tensors, shape, 1);
  const std::vector<Contender> contenders{{"cbq kv4", tensors.graph()}, {"ggml q4_0", tensors.graph()}};
  for (std::size_t i = 0; i < copies; ++i) {
    ggml_build_forward_expand(contenders[0].graph, caches.operators[i]->build(tensors.context(), queries.q));
    ggml_build_forward_expand(contenders[1].graph,
                              caches.flash_attention(tensors.context(), queries.q, queries.mask, i));
  }
  tensors.allocate(ggml_backend_cpu_buffer_type());
  queries.set();
  print_times("attention, 32 heads over 8 of 128, 4096 positions, 1 token", contenders,
              time_in_turns(contenders, copies, backend));
}

bool check_small() {
  bool fine = check_matmul(320, 256, 5);
  fine = check_matmul(96, 64, 1) && fine;
  fine = check_attention({.heads = 8, .kv_heads = 2, .width = 64, .context = 512}, 1) && fine;
  return check_attention({.heads = 8, .kv_heads = 2, .width = 64, .context = 512}, 3) && fine;
}

bool check_and_time(int threads) {
  constexpr Shape shape{.heads = 32, .kv_heads = 8, .width = 128, .context = 4096};
  std::printf("ggml %s, cbq on %s, %d threads\n", ggml_version(), cbq::isa_name(cbq::detect()), threads);
  bool fine = check_matmul(4096, 4096, 1);
  fine = check_matmul(4096, 4096, 16) && fine;
  fine = check_attention(shape, 1) && fine;
  Backend backend(threads);
  // So many copies that weights and caches of one token come from memory.
  time_matmul(1, 16, backend);
  time_matmul(512, 1, backend);
  time_attention(shape, 16, backend);
  return fine;
}

}  // namespace
}  // namespace cbq_ggml

int main(int count, char** arguments) {
  try {
    ggml_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) std::fputs(text, stderr);
        },
        nullptr);
    const std::string argument = count > 1 ? arguments[1] : "";
    if (argument == "check") return cbq_ggml::check_small() ? 0 : 1;
    const int threads =
        argument.empty() ? static_cast<int>(std::thread::hardware_concurrency()) : std::atoi(arguments[1]);
    if (threads < 1 || threads > 512) throw std::runtime_error("ggml_op [THREADS | check]");
    return cbq_ggml::check_and_time(threads) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "ggml_op: %s\n", error.what());
    return 1;
  }
}
