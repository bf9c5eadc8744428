// SPDX-License-Identifier: Apache-2.0

// cbq's attention over its quantized cache. Copies of the cache hold the pages that one cache has written.

#include <cmath>

#include <cbq/kv/packed_attention.hpp>
#include <cbq/kv/quantized_kv_cache.hpp>

#include "../machine.hpp"
#include "../rotation.hpp"
#include "../threads.hpp"
#include "attention_peer.hpp"

namespace peers {
namespace {

[[noreturn]] void fail(const cbq::Error& error) {
  std::string message;
  cbq::append_message(message, error);
  throw std::runtime_error(message);
}

template <class T>
T value_or_throw(cbq::Result<T> result) {
  if (!result) fail(result.error());
  return std::move(*result);
}

class CbqCache final : public AttentionCache {
 public:
  CbqCache(const char* scheme, const AttentionShape& shape, const KeysValues& floats)
      : shape_(shape), scheme_(value_or_throw(cbq::parse_kv_scheme(scheme))) {
    layout_ = value_or_throw(cbq::kv_layout(scheme_, shape.kv_heads, shape.width));
    bytes_ = cbq::divide_up(shape.context, cbq::kv_page_positions) * layout_.page_bytes;
    const auto fill = [&](std::byte* memory) { return write(memory, floats); };
    rotation_ = value_or_throw(bench::Rotation::make({.copy_bytes = bytes_, .piece_bytes = bytes_}, fill));
    pages_.resize(offsets_.size());
    view_ = {.layout = &layout_, .pages = pages_.data(), .packed = shape.context, .size = shape.context};
  }

  std::size_t bytes() const override { return bytes_; }

  void run(const AttentionCall& call) override {
    const std::byte* memory = rotation_->next();
    for (std::size_t p = 0; p < pages_.size(); ++p) pages_[p] = memory + offsets_[p];
    if (context_ == nullptr || threads_ != call.threads) {
      threads_ = call.threads;
      executor_ = bench::threads(threads_);
      context_ = std::make_unique<cbq::ExecutionContext<bench::Threads>>(executor_, isa_);
    }
    const auto q = cbq::matrix_view(call.q, call.rows, shape_.columns());
    const auto out = cbq::matrix_view(call.out, call.rows, shape_.columns());
    const float scale = 1.0f / std::sqrt(static_cast<float>(shape_.width));
    if (const cbq::Status done = cbq::attend(q, view_, scale, out, *context_); !done) fail(done.error());
  }

 private:
  /// Appends all positions to a cache whose pages lie in `memory`, and notes where each of them lies.
  cbq::Status write(std::byte* memory, const KeysValues& floats) {
    auto pool = cbq::KvPagePool::create({memory, bytes_}, layout_.page_bytes);
    if (!pool) return pool.error();
    auto cache = cbq::QuantizedKvCache::create(*pool, {.scheme = scheme_,
                                                       .heads = shape_.kv_heads,
                                                       .width = shape_.width,
                                                       .capacity = shape_.context,
                                                       .largest_append = KeysValues::distinct});
    if (!cache) return cache.error();
    while (cache->size() < shape_.context) {
      const std::size_t rows = std::min(KeysValues::distinct, shape_.context - cache->size());
      const auto keys = cbq::matrix_view(floats.keys, rows, shape_.kv_columns());
      const auto values = cbq::matrix_view(floats.values, rows, shape_.kv_columns());
      if (const cbq::Status appended = cache->append(keys, values); !appended) return appended;
    }
    const cbq::QuantizedKvView view = cache->view();
    if (view.packed != shape_.context) throw std::runtime_error("the scheme leaves positions exact");
    for (std::size_t p = 0; p * cbq::kv_page_positions < shape_.context; ++p) {
      offsets_.push_back(view.pages[p] - memory);
    }
    return {};
  }

  AttentionShape shape_;
  cbq::KvScheme scheme_;
  cbq::KvLayout layout_;
  std::size_t bytes_ = 0;
  std::shared_ptr<bench::Rotation> rotation_;
  std::vector<std::ptrdiff_t> offsets_;
  std::vector<const std::byte*> pages_;
  cbq::QuantizedKvView view_;
  cbq::Isa isa_ = value_or_throw(bench::isa_cap());
  std::size_t threads_ = 0;
  bench::Threads executor_ = bench::threads(1);
  std::unique_ptr<cbq::ExecutionContext<bench::Threads>> context_;
};

class Cbq final : public AttentionPeer {
 public:
  std::string name() const override { return std::string("cbq ") + cbq::isa_name(value_or_throw(bench::isa_cap())); }
  std::vector<FormatName> formats() const override { return {{"kv4", "kv4"}, {"kv8", "kv8"}}; }
  std::unique_ptr<AttentionCache> prepare(std::size_t format, const AttentionShape& shape,
                                          const KeysValues& floats) override {
    return std::make_unique<CbqCache>(formats()[format].name.c_str(), shape, floats);
  }
};

}  // namespace

std::unique_ptr<AttentionPeer> make_attention_peer() {
  return std::make_unique<Cbq>();
}

}  // namespace peers
