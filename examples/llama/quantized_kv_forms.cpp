// SPDX-License-Identifier: Apache-2.0
#include "quantized_kv_forms.hpp"

#include <cstring>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/kv/packed_attention.hpp>
#include <cbq/kv/page_pool.hpp>
#include <cbq/kv/quantized_kv_cache.hpp>
#include <cbq/kv/teacher_forced_attention.hpp>

#include "rounded_kv_cache.hpp"

namespace cbq_llama {

using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

using Rows = MatrixView<const float>;
using FormPointer = std::unique_ptr<LayerKv::Form>;

// A cache with its own pages.
struct CacheWithPages {
  cbq::AlignedBuffer<std::byte> memory;
  cbq::KvPagePool pool;
  cbq::QuantizedKvCache cache;

  static Result<CacheWithPages> create(const cbq::QuantizedKvOptions& options, const cbq::RowTransform& transform) {
    const Result<cbq::KvLayout> layout = cbq::kv_layout(options.scheme, options.heads, options.width);
    if (!layout) return layout.error();
    const auto bytes =
        cbq::checked_product(cbq::divide_up(options.capacity, cbq::kv_page_positions), layout->page_bytes);
    if (!bytes) return bytes.error();
    auto memory = cbq::AlignedBuffer<std::byte>::allocate(*bytes);
    if (!memory) return memory.error();
    auto pool = cbq::KvPagePool::create({memory->data(), *bytes}, layout->page_bytes);
    if (!pool) return pool.error();
    auto cache = cbq::QuantizedKvCache::create(*pool, options, transform);
    if (!cache) return cache.error();
    return CacheWithPages{*std::move(memory), *std::move(pool), *std::move(cache)};
  }

  std::size_t size() const { return cache.size(); }
  std::size_t capacity() const { return cache.capacity(); }
  void truncate(std::size_t size) { cache.truncate(size); }
  Status append(const Rows& keys, const Rows& values) { return cache.append(keys, values); }
};

Status attend_decoding(const Rows& q, const CacheWithPages& cache, const cbq::AttentionScores& scores,
                       const MatrixView<float>& out, LayerKv::Context& context) {
  return cbq::attend(q, cache.cache.view(), scores, out, context);
}
Status attend_decoding(const Rows& q, const RoundedKvCache& cache, const cbq::AttentionScores& scores,
                       const MatrixView<float>& out, LayerKv::Context& context) {
  return cbq::attend(q, cache.floats(), scores, out, context);
}
Status attend_text(const Rows& q, const CacheWithPages& cache, const cbq::TeacherForcing& forcing,
                   const MatrixView<float>& out, LayerKv::Context& context) {
  return cbq::attend_teacher_forced(q, cache.cache.view(), forcing, out, context);
}
Status attend_text(const Rows& q, const RoundedKvCache& cache, const cbq::TeacherForcing& forcing,
                   const MatrixView<float>& out, LayerKv::Context& context) {
  return cbq::attend_teacher_forced(q, cache.floats().view(), forcing, out, context);
}

// A cache as a host uses it.
template <class Cache>
class DecodingForm final : public LayerKv::Form {
 public:
  explicit DecodingForm(Cache cache) : cache_(std::move(cache)) {}
  std::size_t size() const override { return cache_.size(); }
  std::size_t capacity() const override { return cache_.capacity(); }
  void truncate(std::size_t size) override { cache_.truncate(size); }
  Status append(const Rows& keys, const Rows& values) override { return cache_.append(keys, values); }
  Status attend(const Rows& q, const cbq::AttentionScores& scores, const MatrixView<float>& out,
                LayerKv::Context& context) override {
    return attend_decoding(q, cache_, scores, out, context);
  }

 private:
  Cache cache_;
};

// All rows twice, quantized and exact in the same space; each query sees of either what decoding would have found.
template <class Cache>
class TextForm final : public LayerKv::Form {
 public:
  TextForm(Cache past, cbq::FloatKvCache exact, const cbq::QuantizedKvOptions& options,
           const cbq::RowTransform& transform)
      : past_(std::move(past)), exact_(std::move(exact)), options_(options), transform_(transform) {}
  std::size_t size() const override { return past_.size(); }
  std::size_t capacity() const override { return past_.capacity(); }
  void truncate(std::size_t size) override {
    past_.truncate(size);
    exact_.truncate(size);
  }
  Status append(const Rows& keys, const Rows& values) override {
    const std::size_t before = past_.size();
    if (const Status done = past_.append(keys, values); !done) return done;
    const Status done = append_exact(keys, values);
    if (!done) past_.truncate(before);
    return done;
  }
  Status attend(const Rows& q, const cbq::AttentionScores& scores, const MatrixView<float>& out,
                LayerKv::Context& context) override {
    if (const Status known = check_exact_weights(scores); !known) return known;
    const cbq::TeacherForcing forcing{options_.scheme, options_.policy, exact_.view(), scores.scale, scores.slopes};
    return attend_text(q, past_, forcing, out, context);
  }

 private:
  Status append_exact(const Rows& keys, const Rows& values) {
    const cbq::FloatKvView shape = exact_.view();
    const MatrixView<float> exact_keys = copy(keys, keys_);
    const MatrixView<float> exact_values = copy(values, values_);
    if (const Status done = transform_keys(transform_, {shape.heads, shape.width}, exact_keys); !done) return done;
    if (const Status done = transform_values(transform_, {shape.heads, shape.width}, exact_values); !done) return done;
    return exact_.append(as_const(exact_keys), as_const(exact_values));
  }
  static MatrixView<float> copy(const Rows& from, std::vector<float>& memory) {
    memory.resize(from.rows * from.columns);
    const MatrixView<float> to = cbq::matrix_view(memory.data(), from.rows, from.columns);
    for (std::size_t t = 0; t < from.rows; ++t) std::memcpy(row(to, t), row(from, t), from.columns * sizeof(float));
    return to;
  }

  Cache past_;
  cbq::FloatKvCache exact_;
  cbq::QuantizedKvOptions options_;
  cbq::RowTransform transform_;  // of exact rows
  std::vector<float> keys_;
  std::vector<float> values_;
};

template <class Cache>
Result<FormPointer> decoding_form(Result<Cache> cache) {
  if (!cache) return cache.error();
  return FormPointer(std::make_unique<DecodingForm<Cache>>(*std::move(cache)));
}

template <class Cache>
Result<FormPointer> text_form(Result<Cache> past, const cbq::QuantizedKvOptions& options,
                              const cbq::RowTransform& transform) {
  if (!past) return past.error();
  Result<cbq::FloatKvCache> exact = cbq::FloatKvCache::create(options.heads, options.width, options.capacity);
  if (!exact) return exact.error();
  return FormPointer(std::make_unique<TextForm<Cache>>(*std::move(past), *std::move(exact), options, transform));
}

}  // namespace

Result<FormPointer> make_quantized_form(const cbq::QuantizedKvOptions& cache, const cbq::RowTransform& transform,
                                        const KvOptions& options) {
  const bool packed = options.operators == Operators::packed;
  if (packed && options.rotary != nullptr) {
    return cbq::Error{cbq::Errc::unsupported, "packed attention multiplies keys as they are after rotary embedding",
                      "--kv-rope", "pre", "--operators fake_quantized"};
  }
  if (options.use == KvUse::decoding) {
    if (!packed && cache.policy != cbq::KvPolicy()) {
      return cbq::Error{cbq::Errc::unsupported, "rounded rows know no sinks, recent rows or windows", "--kv"};
    }
    return packed ? decoding_form(CacheWithPages::create(cache, transform))
                  : decoding_form(RoundedKvCache::create(cache, transform, options.rotary));
  }
  // Everything is quantized at once; which queries see it is decided later.
  cbq::QuantizedKvOptions whole = cache;
  whole.scheme.past_only = false;
  whole.policy = {};
  whole.largest_append = cache.capacity;
  return packed ? text_form(CacheWithPages::create(whole, transform), cache, transform)
                : text_form(RoundedKvCache::create(whole, transform, options.rotary), cache, {});
}

}  // namespace cbq_llama
